"""Runs in two processes: results of one process, one run folder, one error message, and a resume after a crash."""

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import TCPStore

from kdkit.cli.main import _ALONE, cli
from kdkit.engine.storage.comparison import differences
from tests.helpers.command_line import environment
from tests.helpers.processes import ForkedPython, wait_until
from tests.helpers.ranks import in_two_processes, run_two_ranks, variables_of_torchrun

# 70 samples: 4 batches of 16, and a last one of 6, of which each process gets 3. The batch norm is frozen, since its
# statistics are those of the part of a batch that a process has.
RECIPE = """
import os
import signal
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Ema, Match, Net, Optimizer, Past, Recipe, Stage, Tap, TorchData, Training
from kdkit.losses import Hint, QueueKL, SoftTargets
from kdkit import Truth


class Small(nn.Module):
    def __init__(self, width, frozen=True):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(6, width), nn.BatchNorm1d(width), nn.Linear(width, 3)
        self.norm.requires_grad_(not frozen)
        self.idle = nn.Linear(2, 2)  # has no gradient: DDP must not wait for it
        self.register_buffer("switch", torch.tensor([True, False]))

    def forward(self, inputs):
        if not self.training and Path("trained").exists():
            time.sleep(0.2)
        return self.head(self.norm(self.body(inputs)).relu())


@kdkit.hookimpl
def step_ended(event):
    '''Append the step to a log, and wait in the second step of the second epoch, if there is a file wait.

    If there is a file slow, the validation after the last step of an epoch takes seconds.
    '''
    with open("log.txt", "a") as log:
        print(event.epoch, event.batch, file=log)
    if event.batch == 4 and Path("slow").exists():
        Path("slow").rename("trained")
    while (event.epoch, event.batch) == (1, 1) and Path("wait").exists():
        Path("waiting").touch()
        time.sleep(0.02)


def samples(count, first=0, wrong=None):
    generator = torch.Generator().manual_seed(first)
    labels = torch.arange(count) % 3
    inputs = torch.eye(3, 6)[labels] * 1.5 + torch.randn(count, 6, generator=generator)
    if wrong is not None:
        inputs[wrong] = torch.nan
    return TensorDataset(inputs, labels)


def recipe(
    epochs: int = 4,
    count: int = 70,
    validated: int = 25,
    frozen: bool = True,
    past: bool = True,
    lose: Path | None = None,
    fail: bool = False,
    apart: bool = False,
    drawn: int | None = None,
    width: int = 4,
    wrong: int | None = None,
    queue: bool = False,
):
    if drawn is not None:
        torch.manual_seed(drawn)
    teacher, student = Net("teacher", Small(8), trained=True), Net("student", Small(width, frozen))
    taps = {"student": Tap(student.module.body), "target": Tap(teacher.module.body)}
    objective = 0.5 * Truth(nn.CrossEntropyLoss()) + 0.3 * Match(teacher, SoftTargets())
    objective = objective + Match(teacher, Hint(), **taps)
    if past:
        objective = objective + 0.2 * Match(Past(student), SoftTargets()) + 0.2 * Match(Ema(student), SoftTargets())
    if queue:
        objective = objective + 0.1 * Match(teacher, QueueKL(size=12), **taps)
    if lose is not None or fail:
        objective = objective + 0.0 * Truth(Failing(lose), label="failing")
    options = dict(extra) if (extra := globals().get("training")) else {}
    defaults = {"epochs": epochs, "batch_size": 16, "optimizer": Optimizer(torch.optim.SGD, lr=0.1, momentum=0.9)}
    first = int(os.environ["RANK"]) if apart else 0
    data = TorchData(samples(count, first, wrong), samples(validated, 1), samples(24, 2), classes=("a", "b", "c"))
    return Recipe(data=data, schedule=[Stage({student: objective}, Training(**{**defaults, **options}))])


class Failing:
    "A loss at which the second process ends in the third epoch: by a signal, but only once, or by an error."

    def __init__(self, lose):
        self.lose = lose

    def __call__(self, outputs, labels, *, progress):
        if os.environ.get("RANK") == "1" and progress >= 0.5:
            if self.lose is None:
                raise kdkit.DataError("a record cannot be read")
            if not self.lose.exists():
                self.lose.touch()
                # A thread of the first process writes the checkpoints of the first two epochs.
                while len(list(Path("run", "1-student").glob("checkpoint-*"))) < 2:
                    time.sleep(0.02)
                os.kill(os.getpid(), signal.SIGKILL)
        return outputs.square().mean()
"""

# All training options, in one process and then in two. Each process saves its results.
SAME = """
import os
import shutil
import sys
from pathlib import Path

import torch
from torch import distributed, nn

import kdkit
import recipe_file
from kdkit import AverageWeights, Optimizer
from kdkit.recipe.balancing import CAGrad, GradNorm, PCGrad, UncertaintyWeighting
from kdkit.utils.collectives import sync_buffers, sync_module

number, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
OPTIONS = {
    "sum": {},
    "accumulated": {"accumulate_steps": 3, "max_grad_norm": 0.5},
    "averaged": {"ema": AverageWeights(decay=0.9)},
    "uncertainty": {"balancing": UncertaintyWeighting()},
    "gradnorm": {"balancing": GradNorm()},
    "pcgrad": {"balancing": PCGrad()},
    "cagrad": {"balancing": CAGrad(), "accumulate_steps": 2},
    "workers": {"workers": 1, "epochs": 1},
    "short": {"steps_per_epoch": 4, "accumulate_steps": 2},  # of which some hold the smaller last batch of a pass
}
PARAMETERS = {
    **{name: {} for name in OPTIONS if name != "sum"},
    "averaged": {"drawn": number},  # the processes draw different initial weights
    "pcgrad": {"past": False},  # at first, the gradient of an Ema is nothing but rounding, on which PCGrad depends
}
SINGLE = {"adam": {"optimizer": Optimizer(torch.optim.Adam, lr=0.01)}}


def run(name, out=None, **parameters):
    recipe_file.training = {"epochs": 2, **{**OPTIONS, **SINGLE}[name]}
    result = kdkit.run(lambda: recipe_file.recipe(**parameters), device="cpu", out=out, gradients=2)
    figures = ("terms", "accuracy", "best", "gradients")
    epochs = [{key: epoch[key] for key in figures} for epoch in result.history["student"]]
    metrics = {net: {name: metric.value for name, metric in metrics.items()} for net, metrics in result.metrics.items()}
    return {"weights": result.student.module.state_dict(), "epochs": epochs, "metrics": metrics}


def run_all(out=None):
    results = {name: run(name, **parameters) for name, parameters in PARAMETERS.items()}
    results["sum"] = run("sum", out)
    # a last batch of 2, too few to be split, which both processes compute
    results["alike"] = run("sum", count=66, queue=True)
    torch.set_default_dtype(torch.float32)
    results["adam"] = run("adam")
    results["norm"] = run("sum", frozen=False)
    torch.set_default_dtype(torch.float64)
    return results


def error_of(name="sum", *, first={}, second={}, **options):
    "Return the error of a run, whose processes may have different recipes or options."
    try:
        recipe_file.training = OPTIONS[name]
        kdkit.run(lambda: recipe_file.recipe(**(second if number else first)), device="cpu", **options)
    except kdkit.KdkitError as error:
        return str(error)


if __name__ == "__main__":  # from Python 3.14 on, workers of a DataLoader import the script
    whole = run_all() if number == 0 else None
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
    net = nn.BatchNorm1d(2)
    net.running_mean.fill_(number)
    net.num_batches_tracked.fill_(number + 7)
    net.register_buffer("mask", torch.tensor([-torch.inf, number]))
    net.register_buffer("switch", torch.tensor([True, number == 0]))
    sync_buffers([net])
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    net.running_mean.fill_(number)
    net.weight.data.fill_(number)
    for name, dtype in {"a": torch.int16, "b": torch.bfloat16, "c": torch.complex64}.items():
        net.register_buffer(name, torch.full((2, 3), number, dtype=dtype).T)
    sync_module(net, torch.device("cpu"))
    errors = {
        "epochs": error_of(second={"epochs": 5}),
        "optimizer": error_of("accumulated" if number else "averaged"),
        "net": error_of(second={"width": 5}),
        "option": error_of(gradients=number),
        "wrong": error_of(first={"wrong": 8}, second={"wrong": 8}, out=folder / "wrong"),
    }

    all_results = run_all(folder / "run")
    own_folder = folder / f"{number}"
    own_folder.mkdir()
    os.chdir(own_folder)
    if number == 0:
        shutil.copytree(folder / "run", "run")
    errors["folder"] = error_of(out="run", resume=True)
    results = {"net": net.state_dict(), "buffers": buffers, "errors": errors}
    torch.save((whole, all_results, results), folder / f"{number}.pt")
    distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of all training options: in one process, and in each of two."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "recipe_file.py").write_text(RECIPE)
    in_two_processes(SAME, folder)
    (whole, *first), (_, *second) = (torch.load(folder / f"{number}.pt") for number in range(2))
    others = (first[1], second[1])
    return SimpleNamespace(folder=folder, whole=whole, first=first[0], second=second[0], others=others)


# The names of OPTIONS above, and a data set whose last batch is too small for two processes.
NAMES = ["sum", "accumulated", "averaged", "uncertainty", "gradnorm", "pcgrad", "cagrad", "workers", "short", "alike"]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_end_in_the_weights_and_metrics_of_one(results, name):
    whole, first = results.whole, results.first
    assert len(whole[name]["epochs"]) == (1 if name == "workers" else 2)  # of five steps each
    for key, value in whole[name]["weights"].items():
        torch.testing.assert_close(first[name]["weights"][key], value, rtol=0, atol=1e-6)
    for epoch, expected in zip(first[name]["epochs"], whole[name]["epochs"], strict=True):
        assert epoch["terms"] == pytest.approx(expected["terms"], rel=1e-6)
        assert (epoch["accuracy"], epoch["best"]) == (expected["accuracy"], expected["best"])
        for statistic in ("norms", "cosines"):
            # Without the terms of Past and Ema ("past of student"), whose gradients are zero or rounding at first.
            pair = [
                {key: value for key, value in line["gradients"][statistic].items() if " of " not in key}
                for line in (epoch, expected)
            ]
            assert pair[0] == pytest.approx(pair[1], rel=1e-6)
    assert first[name]["metrics"] == whole[name]["metrics"]


@pytest.mark.parametrize("name", [*NAMES, "adam", "norm"])
def test_both_processes_end_in_the_same_bits(results, name):
    first, second = results.first, results.second
    assert first[name]["weights"].keys() == second[name]["weights"].keys()
    for key, value in first[name]["weights"].items():
        assert torch.equal(second[name]["weights"][key], value), key
    assert first[name]["metrics"] == second[name]["metrics"]
    # As text, in which NaN equals NaN: the cosine of the gradient of a Past, which is zero in the first epoch.
    assert repr(first[name]["epochs"]) == repr(second[name]["epochs"])


def test_adam_in_single_precision_ends_near_the_weights_of_one_process(results):
    pairs = [(results.first["adam"]["weights"][key], value) for key, value in results.whole["adam"]["weights"].items()]
    distance = max(float((weight.double() - expected.double()).abs().max()) for weight, expected in pairs)
    print(f"Adam, fp32, 10 steps: weights of two processes are at most {distance:.1e} from those of one")
    assert distance < 1e-3


def test_one_process_of_two_writes_the_folder(results):
    folder = results.folder
    run = json.loads((folder / "run" / "run.json").read_text())
    assert run["processes"] == 2
    files = {path.name for path in (folder / "run" / "1-student").iterdir()}
    assert {"weights.safetensors", "history.jsonl", "stage.json", "predictions-student-test.safetensors"} <= files
    assert not [name for name in files if name.startswith(".")]


def test_running_statistics_are_averaged_and_other_buffers_copied_from_the_first_process(results):
    for buffers in (other["buffers"] for other in results.others):
        assert buffers["running_mean"].tolist() == [0.5, 0.5]
        assert int(buffers["num_batches_tracked"]) == 7
        assert buffers["mask"].tolist() == [-torch.inf, 0.0]
        assert buffers["switch"].tolist() == [True, True]


def test_a_module_gets_the_parameters_and_buffers_of_the_first_process(results):
    for net in (other["net"] for other in results.others):
        assert net.pop("num_batches_tracked") == 7
        assert net.pop("switch").tolist() == [True, True]
        assert net.pop("mask").tolist() == [-torch.inf, 0.0]
        assert net.pop("running_var").tolist() == [1.0, 1.0]
        assert sorted(net) == ["a", "b", "bias", "c", "running_mean", "weight"]
        assert not any(tensor.any() for tensor in net.values())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("epochs", "epochs of stage 'student' (4 in process 0, 5 in process 1)"),
        ("optimizer", "accumulate_steps of stage 'student' (1 in process 0, 3 in process 1); max_grad_norm of"),
        ("net", "tensor body.weight of net 'student' ((4, 6) float64, trained in process 0, (5, 6) float64, trained"),
        ("option", "option gradients (0 in process 0, 1 in process 1)"),
    ],
)
def test_processes_with_different_recipes_or_options_are_refused(results, name, message):
    for other in results.others:
        assert f"the processes of this run have different recipes or options: {message}" in other["errors"][name]


def test_processes_that_do_not_share_the_folder_of_a_run_do_not_resume_it(results):
    for other in results.others:
        assert "find different files in run, the folder to resume; processes" in other["errors"]["folder"]


def test_the_process_that_has_a_row_with_nan_names_it_for_all(results):
    (saved,) = results.folder.glob("wrong/1-student/not-finite-batch.pt")
    assert 8 in torch.load(saved)["ids"]
    for other in results.others:
        assert f"(saved in {saved}); the inputs of row 8 of the train data are not" in other["errors"]["wrong"]


# Runs in two processes whose teacher counts its samples, and a run in one process, for its weights.
COUNTED = """
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Match, Net, Stage, Tap, TorchData, Training
from kdkit.losses import SoftTargets

number, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


class Teacher(nn.Sequential):
    samples = 0

    def forward(self, inputs):
        Teacher.samples += len(inputs) if len(inputs) >= 8 else 0  # parts of batches, and not dry runs and audits
        return super().forward(inputs)


def samples(count):
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(count))
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def halving(student, target):
    # In place and unseen by the check: the cache must not record the changed tensor.
    return (student - target.data.div_(2)).square().mean()


def run(out, epochs):
    def recipe():
        module, small = Teacher(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), nn.Linear(6, 3)
        teacher, student = Net("teacher", module, trained=True), Net("student", small)
        hint = Match(teacher, kdkit.losses.Hint(), student=Tap(small), target=Tap(module[0]))
        objective = Match(teacher, SoftTargets()) + hint
        objective = objective + Match(teacher, halving)
        optimizer = kdkit.Optimizer(torch.optim.SGD, lr=0.1)
        stage = Stage({student: objective}, Training(epochs=epochs, batch_size=16, optimizer=optimizer))
        return kdkit.Recipe(data=TorchData(samples(64), samples(12)), schedule=[stage])

    Teacher.samples = 0
    result = kdkit.run(recipe, device="cpu", out=out)
    return Teacher.samples, result.student.module.state_dict()


alone = run(None, 3)
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
shared = [run(folder / "one", 3), run(folder / "two", 3), run(None, 3)]
torch.save((alone, shared), folder / f"{number}.pt")
distributed.destroy_process_group()
"""


def test_processes_share_cached_teacher_outputs_from_the_next_epoch_on(tmp_path):
    in_two_processes(COUNTED, tmp_path)
    for number in range(2):
        (samples, weights), shared = torch.load(tmp_path / f"{number}.pt")
        assert samples == 64 + 12  # with the validation split, whose parts in two processes are too small to count
        first, again, without_folder = (count for count, _ in shared)
        assert (first, again) == (32, 0)  # half of the first epoch; nothing in a second run, which reads the cache
        assert without_folder == 32
        for _, module in shared:
            torch.testing.assert_close(module["weight"], weights["weight"], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--fail"], "a record cannot be read"),
        (["--apart"], "the processes of this run have different data"),
        pytest.param(["--out", "full"], "exists and is not a run folder", marks=pytest.mark.slow),
        pytest.param(["--misspelt"], "No such option", marks=pytest.mark.slow),
    ],
)
def test_an_error_ends_both_processes_with_one_message(tmp_path, args, message):
    (tmp_path / "recipe_file.py").write_text(RECIPE)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    codes, _, err = run_two_ranks(tmp_path, "-m", "kdkit", "run", "recipe_file.py", *args)
    assert codes == [2, 2], err
    assert err.count(message) == 1  # the other process ends without a message
    assert "Traceback" not in err


def test_a_run_that_torchrun_may_restart_needs_a_folder(kdkit_here, tmp_path, monkeypatch):
    (tmp_path / "recipe_file.py").write_text(RECIPE)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    done = kdkit_here("run", "recipe_file.py")
    assert done.code == 2
    assert "--out FOLDER" in done.err
    assert not (tmp_path / "runs").exists()


def test_one_process_of_torchrun_runs_the_commands_that_share_no_work(kdkit_here, tmp_path, monkeypatch):
    (tmp_path / "recipe_file.py").write_text(RECIPE)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for command in (("check", "recipe_file.py"), ("list",), ("--version",), ("run", "recipe_file.py", "--help"), ()):
        outputs = []
        for rank in ("0", "1"):
            monkeypatch.setenv("RANK", rank)
            outputs.append(kdkit_here(*command))
        assert outputs[0].out or outputs[0].err
        assert (outputs[1].code, outputs[1].out, outputs[1].err) == (0, "", "")
    plugins = {name for name, command in cli.commands.items() if not command.callback.__module__.startswith("kdkit.")}
    assert {*cli.commands} - plugins == {*_ALONE, "run", "rerun", "evaluate", "sweep"}


# The agent of torchrun, whose two processes are forked and so need not import torch. Each saves its exit code.
AGENT = """
import os
import sys
from pathlib import Path

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from kdkit.cli.main import call


def program(*arguments):
    code = call(arguments)
    Path(f"code-{os.environ['RANK']}").write_text(str(code))
    if code:
        sys.exit(code)


config = LaunchConfig(
    min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=1, run_id="test", start_method="fork",
    rdzv_backend="c10d", rdzv_endpoint="localhost:0", monitor_interval=0.1,
)
elastic_launch(config, program)(*sys.argv[1:])
"""
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1", "-m", "kdkit"]


class Launched:
    """Starts a run with torchrun in a folder; `lost` is a file, without which one of its processes is killed."""

    def __init__(self, folder, launcher=("agent.py",)):
        self.folder, self.lost = folder, folder / "lost"
        self.command = [*launcher, "run", "recipe_file.py", "--lose", str(self.lost), "--validated", "640"]
        (folder / "recipe_file.py").write_text(RECIPE)
        (folder / "agent.py").write_text(AGENT)

    def start(self, *options):
        # A forked process cannot use CUDA.
        command = [*self.command, "--device", "cpu", "--checkpoint-every", "2", "--out", "run", *options]
        return ForkedPython(command, self.folder, environment(OMP_NUM_THREADS="1"))

    def finish(self, *options):
        """Run to the end, and return what is printed."""
        process = self.start(*options)
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        return out

    def ranks(self, process):
        """Return the processes that torchrun has started."""
        return [*map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())]

    def checkpoints(self):
        """Return the numbers of batches of the checkpoints."""
        files = (self.folder / "run" / "1-student").glob("checkpoint-*.safetensors")
        return {int(file.stem.removeprefix("checkpoint-")) for file in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an undisturbed run."""
    launched = Launched(tmp_path_factory.mktemp("whole"))
    launched.lost.touch()
    launched.finish()
    return launched.folder / "run"


LAUNCHERS = [
    pytest.param(("agent.py",), id="agent"),
    pytest.param(("-m", *TORCHRUN), id="torchrun", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_run_resumes_after_one_of_its_processes_was_killed(tmp_path, whole, launcher):
    launched = Launched(tmp_path, launcher)
    out = launched.finish()
    assert launched.lost.exists()
    assert "resumed after epoch 2" in out
    assert out.count("Metrics on test") == 1
    assert set(json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]) == {"student", "teacher"}
    assert len((tmp_path / "run" / "1-student" / "history.jsonl").read_text().splitlines()) == 4
    assert differences(tmp_path / "run", whole) == []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the processes of torchrun are found in /proc")
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_all_processes_after_one_step_with_a_checkpoint_and_no_step_is_repeated(
    tmp_path, whole, launcher, number
):
    launched = Launched(tmp_path, launcher)
    launched.lost.touch()
    (tmp_path / "wait").touch()
    process = launched.start()
    wait_until((tmp_path / "waiting").exists, process)
    ranks = launched.ranks(process)
    process.send_signal(number)
    os.kill(ranks[1], number)  # as a scheduler does, which sends it to all processes
    time.sleep(0.2)
    (tmp_path / "wait").unlink()
    assert process.wait(60) == 1  # of torchrun
    assert process.output(2).count("stopped\n") == 1
    assert "stopping after this batch\n" in process.output(2)
    assert "checkpoint: torchrun --nproc-per-node=2 -m kdkit run --resume run\n" in process.output(2)
    if launcher == ("agent.py",):
        assert {(tmp_path / f"code-{rank}").read_text() for rank in (0, 1)} == {str(128 + number)}
    assert max(launched.checkpoints()) >= 7  # it waited in the second epoch

    # Torchrun kills processes that take long to end, which is too early for this validation.
    before = {batches for batches in launched.checkpoints() if batches % 5 == 0}
    (tmp_path / "slow").touch()
    process = launched.start("--resume")
    wait_until((tmp_path / "trained").exists, process)
    time.sleep(0.1)
    ranks = launched.ranks(process)
    for rank in ranks:
        os.kill(rank, number)
    wait_until(lambda: {batches for batches in launched.checkpoints() if batches % 5 == 0} - before, process)
    for killed in (process.pid, *ranks):  # torchrun first, which would start others
        with suppress(ProcessLookupError):
            os.kill(killed, signal.SIGKILL)
    process.wait(60)

    (tmp_path / "trained").unlink()
    assert "Metrics on test" in launched.finish("--resume")
    assert differences(tmp_path / "run", whole) == []
    steps = (tmp_path / "log.txt").read_text().splitlines()
    assert sorted(steps) == [f"{epoch} {batch}" for epoch in range(4) for batch in range(5)]


LAUNCHER = """
import os
import time
from pathlib import Path

from kdkit.engine.distributed.process_group import joined
from kdkit.engine.interrupts import Interrupts

for rank in range(2):
    if os.fork() == 0:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        break
else:
    time.sleep(90)  # the launcher is killed
with joined(), Interrupts() as interrupts, interrupts.deferred():
    assert not interrupts.agree()
    Path(f"waits-{rank}").touch()
    while not interrupts.agree():
        time.sleep(0.02)
    Path(f"ended-{rank}").write_text(interrupts.requested.name)
os._exit(0)
"""


def test_processes_end_as_after_sigterm_if_torchrun_is_killed(tmp_path):
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    process = ForkedPython(["launcher.py"], tmp_path, environment(**variables_of_torchrun(store)))
    wait_until(lambda: len([*tmp_path.glob("waits-*")]) == 2, process)
    process.send_signal(signal.SIGKILL)
    wait_until(lambda: [file.read_text() for file in tmp_path.glob("ended-*")] == ["SIGTERM", "SIGTERM"])


# A thread of a process group that is still there when the interpreter ends may end the process by a signal.
JOINED = """
import os
from pathlib import Path

import pytest

import kdkit
import recipe_file
from kdkit.engine.distributed.process_group import joined
from kdkit.errors import RemoteRankError
from kdkit.utils.collectives import broadcast, is_distributed, rank

with pytest.raises(kdkit.KdkitError) as raised:  # of the second process, which goes on, and so does the first
    kdkit.run(lambda: recipe_file.recipe(epochs=2, fail=True), device="cpu")
assert type(raised.value) is (kdkit.DataError if os.environ["RANK"] == "1" else RemoteRankError)
for number in range(2):
    with joined(), joined():
        assert is_distributed()
        assert broadcast(rank() + number) == number
        kdkit.run(lambda: recipe_file.recipe(epochs=1), device="cpu")
    assert not is_distributed()
    threads = [name.read_text() for name in Path("/proc/self/task").glob("*/comm")]  # none without /proc
    assert not [name for name in threads if "gloo" in name], threads
"""


@pytest.mark.slow
def test_a_program_may_join_a_group_again_also_after_an_error_and_leaves_no_thread_of_it(tmp_path):
    (tmp_path / "recipe_file.py").write_text(RECIPE)
    (tmp_path / "joins.py").write_text(JOINED)
    codes, _, err = run_two_ranks(tmp_path, "joins.py", fresh=True)
    assert codes == [0, 0], err
