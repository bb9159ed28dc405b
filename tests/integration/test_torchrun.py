"""Runs in two processes: the figures and weights of one, one folder, one message, and going on after a loss."""

import json
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.command_line import environment

from .test_distributed_balancing import in_two_processes

# A recipe whose batches of 16 leave 6 at the end, which are 3 each, and whose batch norm is frozen.
RECIPE = """
import os
import signal
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Ema, Match, Net, Optimizer, Past, Recipe, Stage, Tap, TorchData, Training
from kdkit.losses import Hint, SoftTargets
from kdkit import Truth


class Small(nn.Module):
    def __init__(self, width, frozen=True):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(6, width), nn.BatchNorm1d(width), nn.Linear(width, 3)
        self.norm.requires_grad_(not frozen)
        self.idle = nn.Linear(2, 2)  # no step reaches it
        self.register_buffer("switch", torch.tensor([True, False]))

    def forward(self, inputs):
        return self.head(self.norm(self.body(inputs)).relu())


def samples(count, first=0):
    generator = torch.Generator().manual_seed(first)
    labels = torch.arange(count) % 3
    return TensorDataset(torch.eye(3, 6)[labels] * 1.5 + torch.randn(count, 6, generator=generator), labels)


def recipe(
    epochs: int = 4,
    count: int = 70,
    frozen: bool = True,
    past: bool = True,
    lose: Path | None = None,
    fail: bool = False,
    apart: bool = False,
):
    teacher, student = Net("teacher", Small(8), trained=True), Net("student", Small(4, frozen))
    taps = {"student": Tap(student.module.body), "target": Tap(teacher.module.body)}
    objective = 0.5 * Truth(nn.CrossEntropyLoss()) + 0.3 * Match(teacher, SoftTargets()) + Match(teacher, Hint(), **taps)
    if past:
        objective = objective + 0.2 * Match(Past(student), SoftTargets()) + 0.2 * Match(Ema(student), SoftTargets())
    if lose is not None or fail:
        objective = objective + 0.0 * Truth(Meeting(lose), label="meeting")
    options = dict(extra) if (extra := globals().get("training")) else {}
    how = {"epochs": epochs, "batch_size": 16, "optimizer": Optimizer(torch.optim.SGD, lr=0.1, momentum=0.9)}
    own = int(os.environ["RANK"]) if apart else 0
    data = TorchData(samples(count, own), samples(25, 1), samples(24, 2), classes=("a", "b", "c"))
    return Recipe(data=data, schedule=[Stage({student: objective}, Training(**{**how, **options}))])


class Meeting:
    "A loss at which the second process meets its end in the third epoch: once by a signal, or by an error."

    def __init__(self, lose):
        self.lose = lose

    def __call__(self, outputs, labels, *, progress):
        if os.environ.get("RANK") == "1" and progress >= 0.5:
            if self.lose is None:
                raise kdkit.DataError("a record cannot be read")
            if not self.lose.exists():
                self.lose.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return outputs.square().mean()
"""

# Every way of training, in one process and then in two, from which each saves what came of it.
SAME = """
import sys
from pathlib import Path

import torch
from torch import distributed, nn

import kdkit
import recipe_file
from kdkit import AverageWeights, Optimizer
from kdkit.recipe.balancing import CAGrad, GradNorm, PCGrad, UncertaintyWeighting
from kdkit.utils.collectives import sync_buffers

number, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
WAYS = {
    "sum": {},
    "accumulated": {"accumulate_steps": 3, "max_grad_norm": 0.5},
    "averaged": {"ema": AverageWeights(decay=0.9)},
    "uncertainty": {"balancing": UncertaintyWeighting()},
    "gradnorm": {"balancing": GradNorm()},
    "pcgrad": {"balancing": PCGrad()},
    "cagrad": {"balancing": CAGrad(), "accumulate_steps": 2},
    "workers": {"workers": 1, "epochs": 1},
}
SINGLE = {"adam": {"optimizer": Optimizer(torch.optim.Adam, lr=0.01)}}


def ended(name, out=None, **how):
    recipe_file.training = {**WAYS, **SINGLE}[name]
    result = kdkit.run(lambda: recipe_file.recipe(**how), device="cpu", out=out, gradients=2)
    figures = ("terms", "accuracy", "kept", "gradients")
    epochs = [{key: epoch[key] for key in figures} for epoch in result.history["student"]]
    metrics = {net: {name: each.value for name, each in metrics.items()} for net, metrics in result.metrics.items()}
    return {"weights": result.student.module.state_dict(), "epochs": epochs, "metrics": metrics}


def all_ways(out=None):
    # PCGrad would turn on the direction of a gradient that is nothing but rounding, as that of a Past is at first
    found = {name: ended(name, out if name == "sum" else None, past=name != "pcgrad") for name in WAYS}
    found["alike"] = ended("sum", count=66)  # of which two are left at the end, too few to be shared out
    torch.set_default_dtype(torch.float32)
    found["adam"] = ended("adam")
    found["norm"] = ended("sum", frozen=False)
    torch.set_default_dtype(torch.float64)
    return found


whole = all_ways() if number == 0 else None
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
net = nn.BatchNorm1d(2)
net.running_mean.fill_(number)
net.num_batches_tracked.fill_(number + 7)
net.register_buffer("mask", torch.tensor([-torch.inf, number]))
net.register_buffer("switch", torch.tensor([True, number == 0]))
sync_buffers([net])
torch.save((whole, all_ways(folder / "run"), dict(net.named_buffers())), folder / f"{number}.pt")
distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """What came of every way of training: in one process, and in each of two."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "recipe_file.py").write_text(RECIPE)
    in_two_processes(SAME, folder)
    (whole, *first), (_, *second) = (torch.load(folder / f"{number}.pt") for number in range(2))
    return SimpleNamespace(folder=folder, whole=whole, first=first[0], second=second[0], buffers=(first[1], second[1]))


WAYS = ["sum", "accumulated", "averaged", "uncertainty", "gradnorm", "pcgrad", "cagrad", "workers", "alike"]


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_give_the_weights_and_figures_of_one(ended, way):
    whole, first = ended.whole, ended.first
    assert len(whole[way]["epochs"]) == (1 if way == "workers" else 4)  # of five steps each
    for key, value in whole[way]["weights"].items():
        torch.testing.assert_close(first[way]["weights"][key], value, rtol=0, atol=1e-6)
    for mine, theirs in zip(first[way]["epochs"], whole[way]["epochs"], strict=True):
        assert mine["terms"] == pytest.approx(theirs["terms"], rel=1e-6)
        assert (mine["accuracy"], mine["kept"]) == (theirs["accuracy"], theirs["kept"])
        for figures in ("norms", "cosines"):  # not of what is rounding alone at first, a past and an average
            told = [{k: v for k, v in each["gradients"][figures].items() if " of " not in k} for each in (mine, theirs)]
            assert told[0] == pytest.approx(told[1], rel=1e-6)
    assert first[way]["metrics"] == whole[way]["metrics"]


@pytest.mark.parametrize("way", [*WAYS, "adam", "norm"])
def test_both_processes_end_in_the_same_bits(ended, way):
    first, second = ended.first, ended.second
    assert first[way]["weights"].keys() == second[way]["weights"].keys()
    for key, value in first[way]["weights"].items():
        assert torch.equal(second[way]["weights"][key], value), key
    assert first[way]["metrics"] == second[way]["metrics"]
    assert first[way]["epochs"] == second[way]["epochs"]


def test_adam_in_single_precision_ends_near_the_weights_of_one_process(ended):
    pairs = [(ended.first["adam"]["weights"][key], value) for key, value in ended.whole["adam"]["weights"].items()]
    apart = max(float((mine.double() - theirs.double()).abs().max()) for mine, theirs in pairs)
    print(f"Adam, fp32, 20 steps: weights of two processes are at most {apart:.1e} from those of one")
    assert apart < 1e-3


def test_one_process_of_two_writes_the_folder(ended):
    folder = ended.folder
    run = json.loads((folder / "run" / "run.json").read_text())
    assert run["processes"] == 2
    stage = {path.name for path in (folder / "run" / "1-student").iterdir()}
    assert {"weights.safetensors", "history.jsonl", "stage.json", "predictions-student-test.safetensors"} <= stage
    assert not [name for name in stage if name.startswith(".")]


def test_running_statistics_are_averaged_and_other_buffers_those_of_the_first(ended):
    for buffers in ended.buffers:
        assert buffers["running_mean"].tolist() == [0.5, 0.5]
        assert int(buffers["num_batches_tracked"]) == 7
        assert buffers["mask"].tolist() == [-torch.inf, 0.0]
        assert buffers["switch"].tolist() == [True, True]


# Runs of two processes whose teacher counts the samples that it is asked for, and one alone, for the weights.
TOLD = """
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
    asked = 0

    def forward(self, inputs):
        Teacher.asked += len(inputs) if len(inputs) >= 8 else 0  # parts of batches, and not rehearsals and audits
        return super().forward(inputs)


def samples(count):
    inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(count))
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def halving(student, target):
    return (student - target.div_(2)).square().mean()  # in place: what it was given is no answer any more


def ended(out, epochs):
    def recipe():
        module, small = Teacher(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), nn.Linear(6, 3)
        teacher, student = Net("teacher", module, trained=True), Net("student", small)
        hint = Match(teacher, kdkit.losses.Hint(), student=Tap(small), target=Tap(module[0]))
        objective = Match(teacher, SoftTargets()) + hint
        objective = objective + Match(teacher, halving)
        optimizer = kdkit.Optimizer(torch.optim.SGD, lr=0.1)
        stage = Stage({student: objective}, Training(epochs=epochs, batch_size=16, optimizer=optimizer))
        return kdkit.Recipe(data=TorchData(samples(64), samples(12)), schedule=[stage])

    Teacher.asked = 0
    result = kdkit.run(recipe, device="cpu", out=out)
    return Teacher.asked, result.student.module.state_dict()


alone = ended(None, 3)
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
told = [ended(folder / "one", 3), ended(folder / "two", 3), ended(None, 3)]
torch.save((alone, told), folder / f"{number}.pt")
distributed.destroy_process_group()
"""


def test_what_one_process_was_told_by_a_teacher_all_know_from_the_next_epoch_on(tmp_path):
    in_two_processes(TOLD, tmp_path)
    for number in range(2):
        (asked, weights), told = torch.load(tmp_path / f"{number}.pt")
        assert asked == 64 + 12  # and the selection split, which two processes ask about in parts too small to count
        first, again, without_folder = (each for each, _ in told)
        assert (first, again) == (32, 0)  # its part of the first epoch; in another run nothing
        assert without_folder == 32
        for _, found in told:
            torch.testing.assert_close(found["weight"], weights["weight"], rtol=0, atol=1e-9)


def launched(folder, *args, **more):
    """Run Python with these arguments in two processes as torchrun would: the exit codes, and what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    there = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, *args],
            cwd=folder,
            env=environment(**there, RANK=str(rank), LOCAL_RANK=str(rank), TORCHELASTIC_RUN_ID="test", **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120) for rank in ranks]
    return [rank.returncode for rank in ranks], "".join(out for out, _ in said), "".join(err for _, err in said)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--fail"], "a record cannot be read"),
        (["--apart"], "the processes of this run have different data"),
        pytest.param(["--out", "there"], "exists and is not a run folder", marks=pytest.mark.slow),
        pytest.param(["--misspelt"], "No such option", marks=pytest.mark.slow),
    ],
)
def test_an_error_ends_both_processes_with_one_message(tmp_path, args, message):
    (tmp_path / "recipe_file.py").write_text(RECIPE)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    codes, _, err = launched(tmp_path, "-m", "kdkit", "run", "recipe_file.py", *args)
    assert codes == [2, 2], err
    assert err.count(message) == 1
    assert "Traceback" not in err


def test_a_run_that_may_be_started_anew_says_where_it_is_kept(kdkit_here, tmp_path, monkeypatch):
    (tmp_path / "recipe_file.py").write_text(RECIPE)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    said = kdkit_here("run", "recipe_file.py")
    assert said.code == 2
    assert "--out FOLDER" in said.err
    assert not (tmp_path / "runs").exists()


def test_a_run_goes_on_after_one_of_its_processes_was_killed(tmp_path):
    (tmp_path / "recipe_file.py").write_text(RECIPE)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    run += ["-m", "kdkit", "run", "recipe_file.py", "--lose", str(tmp_path / "lost"), "--out", "run"]
    done = subprocess.run(
        run,
        cwd=tmp_path,
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "lost").exists()
    assert "resumed after epoch 2" in done.stdout
    assert done.stdout.count("Metrics on test") == 1
    assert set(json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]) == {"student", "teacher"}
    assert len((tmp_path / "run" / "1-student" / "history.jsonl").read_text().splitlines()) == 4


# What a thread of the group holds at the interpreter's end may end the process by a signal.
JOINED = """
from pathlib import Path

import kdkit
import recipe_file
from kdkit.engine.distributed import joined
from kdkit.utils.collectives import broadcast, is_distributed, rank

for turn in range(2):
    with joined(), joined():
        assert is_distributed()
        assert broadcast(rank() + turn) == turn
        kdkit.run(lambda: recipe_file.recipe(epochs=1), device="cpu")
    assert not is_distributed()
    left = [name.read_text() for name in Path("/proc/self/task").glob("*/comm")]  # none where there is no /proc
    assert not [name for name in left if "gloo" in name], left
"""


def test_a_program_may_join_the_others_twice_and_leaves_no_thread_of_a_group_behind(tmp_path):
    (tmp_path / "recipe_file.py").write_text(RECIPE)
    (tmp_path / "joins.py").write_text(JOINED)
    codes, _, err = launched(tmp_path, "joins.py")
    assert codes == [0, 0], err
