"""A run that was killed or interrupted resumes, and ends in the bits of an uninterrupted one."""

import json
import linecache
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from textwrap import dedent

import pytest
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

import kdkit
from kdkit import CosineRamp, LinearRamp, LRSchedule, Match, Optimizer, Tap, TorchData, Truth
from kdkit.errors import RunFolderError
from kdkit.losses import SoftTargets
from kdkit.metrics import F1, Accuracy
from tests.helpers.callbacks import KillAtStep, kill_run
from tests.helpers.crash import require_same_results, results
from tests.helpers.processes import ForkedPython, wait_until
from tests.helpers.stages import last_checkpoint, three, training
from tests.helpers.tiny import one_stage, plain_goal, samples, tiny_net

RECIPE = '''
"""Two nets in a row, of which the second one can be made to wait."""

import time
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import MultiStepLR, OneCycleLR
from torch.utils.data import TensorDataset

import kdkit
from kdkit import AverageWeights, LRSchedule, LinearRamp, Match, Net, Optimizer, Recipe, Sequential
from kdkit.losses import Hint
from kdkit.losses import SoftTargets
from kdkit import Tap, TorchData, Training, Truth


class Small(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body, self.norm, self.drop = nn.Linear(6, width), nn.BatchNorm1d(width), nn.Dropout(0.3)
        self.head = nn.Linear(width, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.norm(self.body(inputs)).relu()))


def samples(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return TensorDataset(torch.eye(3, 6)[labels] + torch.randn(count, 6, generator=generator), labels)


@kdkit.hookimpl
def epoch_ended(event: Any) -> None:
    """Write the stage and the epoch to a log."""
    with Path("log.txt").open("a") as file:
        file.write(f"{event.stage} {event.epoch}\\n")


@kdkit.hookimpl
def step_ended(event: Any) -> None:
    """Wait in the middle of the third epoch of the student, as long as there is a file `wait`."""
    if Path("wait").exists() and (event.stage, event.epoch, event.batch) == ("student", 2, 1):
        Path("waiting").touch()
        while Path("wait").exists():
            time.sleep(0.02)


def recipe(kind: Literal["plain", "one_cycle", "timm", "average"] = "plain", epochs: int = 4) -> Recipe:
    teacher, student = Net("teacher", Small(8)), Net("student", Small(4))
    rates: dict[str, Any] = {
        "plain": LRSchedule(MultiStepLR, milestones=[1, 3], gamma=0.3),
        "one_cycle": LRSchedule(OneCycleLR, interval="update", max_lr=0.1),
        "timm": LRSchedule("cosine", warmup_epochs=1, warmup_lr=0.001),
        "average": None,
    }
    training = Training(
        epochs=epochs,
        batch_size=8,
        optimizer=Optimizer(SGD, lr=0.05, momentum=0.9) if kind == "plain" else Optimizer(Adam, lr=0.02),
        lr_schedule=rates[kind],
        ema=AverageWeights(decay=0.8) if kind == "average" else None,
        accumulate_steps=2 if kind == "one_cycle" else 1,
        keep="best" if kind == "plain" else "last",
    )

    def match(net: Any, teacher: Any) -> Any:
        hint = Match(teacher, Hint(), student=Tap(net.module.norm), target=Tap(teacher.module.norm))
        return LinearRamp() * Match(teacher, SoftTargets()) + hint

    return Recipe(
        data=TorchData(samples(40, 0), samples(24, 1), samples(24, 2), classes=("a", "b", "c")),
        schedule=Sequential(teacher, student, truth=Truth(nn.CrossEntropyLoss()), match=match, training=training),
    )
'''


@pytest.fixture
def finish(kdkit_here):
    """Run the recipe to its end, in this process."""
    return lambda *args: kdkit_here("run", "mine.py", "--device", "cpu", *args)


def stop(folder: Path, number: signal.Signals, *args: object) -> tuple[int, str]:
    """Start a run, stop it by a signal in the third epoch of the student, and return its exit code and stderr.

    A thread writes the checkpoints of the first two epochs, both of which are on the disk when the signal is sent.
    """
    (folder / "wait").touch()
    process = ForkedPython(["-m", "kdkit", "run", "mine.py", "--device", "cpu", *map(str, args)], folder)
    wait_until((folder / "waiting").exists, process)
    wait_until(lambda: len(list(folder.glob("*/2-student/checkpoint-*"))) == 2, process)
    process.send_signal(number)
    if number != signal.SIGKILL:  # which a step does not end
        time.sleep(0.2)
        (folder / "wait").unlink()
    code = process.wait(30)
    (folder / "wait").unlink(missing_ok=True)
    return code, process.output(2)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(dedent(RECIPE))
    return tmp_path


@pytest.mark.parametrize(
    "options",
    [
        ("--kind", "plain"),
        ("--kind", "one_cycle", "--precision", "fp16"),
        pytest.param(("--kind", "timm"), marks=pytest.mark.slow),
        ("--kind", "average"),
    ],
    ids=["steps and a projector", "one cycle in fp16", "cosine of timm", "an average of the weights"],
)
def test_a_killed_run_resumes_to_the_same_bits(options, folder, finish):
    stop(folder, signal.SIGKILL, "--out", "cut", *options)
    assert (folder / "cut" / "1-teacher" / "stage.json").exists()
    assert not (folder / "cut" / "metrics.json").exists()
    state = last_checkpoint(folder / "cut" / "2-student")
    assert any("projector" in key for key in state["train_state"]["module"])
    assert len(state["history"]) == 2
    log = (folder / "log.txt").read_text().splitlines()
    assert log[-1] == "student 1"  # epochs count from 0

    done = finish("--out", "cut", "--resume", *options)
    assert done.code == 0, done.err
    assert "resumed after epoch 2" in done.out
    assert (folder / "log.txt").read_text().splitlines()[len(log) :] == ["student 2", "student 3"]

    whole = finish("--out", "whole", *options)
    assert whole.code == 0, whole.err
    require_same_results(results(folder / "cut"), results(folder / "whole"))
    assert not list(folder.rglob("checkpoint-*"))  # a finished stage keeps no checkpoint
    assert not [path for path in (folder / "cut").rglob(".*.tmp")]  # no temporary file of an interrupted write


def test_a_finished_run_trains_nothing_and_reports_the_same_metrics(folder, finish):
    assert finish("--out", "run").code == 0
    before, log = results(folder / "run"), (folder / "log.txt").read_text()
    weights = (folder / "run" / "2-student" / "weights.safetensors").stat().st_mtime_ns
    again = finish("--out", "run", "--resume")
    assert again.code == 0, again.err
    assert "Metrics on test" in again.out
    assert (folder / "log.txt").read_text() == log
    require_same_results(before, results(folder / "run"))
    assert (folder / "run" / "2-student" / "weights.safetensors").stat().st_mtime_ns == weights


def test_a_run_stopped_by_ctrl_c_names_the_option_to_resume(folder, finish):
    code, err = stop(folder, signal.SIGINT, "--out", "run")
    assert code == 130  # 128 + SIGINT, as shells report it
    assert "Traceback" not in err
    assert "--resume" in err
    assert finish("--out", "run", "--resume").code == 0


def test_a_run_with_changed_options_is_not_resumed(folder, finish):
    assert finish("--out", "run").code == 0
    metrics = (folder / "run" / "metrics.json").read_bytes()
    for changed, word in (
        (("--seed", 1), "seed"),
        (("--epochs", 9), "options"),
        (("--precision", "bf16"), "precision"),
    ):
        done = finish("--out", "run", "--resume", *changed)
        assert done.code == 2
        assert f"differs in its {word}" in done.err
        assert "resume it as it was started" in done.err
    with (folder / "mine.py").open("a") as file:
        file.write("# a comment\n")
    done = finish("--out", "run", "--resume")
    assert done.code == 2
    assert "differs in its recipe" in done.err
    assert (folder / "run" / "metrics.json").read_bytes() == metrics


def test_a_run_from_python_with_changed_training_options_is_not_resumed(tmp_path):
    options = {"out": tmp_path / "run", "device": "cpu"}
    kdkit.run(three(training=training(epochs=1)), **options)
    with pytest.raises(RunFolderError, match="differs in its trainings"):
        kdkit.run(three(training=training(epochs=1, max_grad_norm=1.0)), **options, resume=True)
    kdkit.run(three(training=training(epochs=1)), **options, resume=True)


def test_a_run_of_a_notebook_is_not_resumed_with_other_code(tmp_path):
    cell = dedent("""
        import kdkit
        from torch import nn
        from tests.helpers.tiny import one_stage, tiny_net

        class Loss(nn.CrossEntropyLoss):
            def forward(self, student, labels):
                return 1 * super().forward(student, labels)

        def recipe(scale):
            return one_stage(tiny_net("net"), kdkit.Truth(Loss()))
    """)

    def run(source, call, **options):
        lines = (source + call).splitlines(keepends=True)
        name = f"<cell {len(linecache.cache)}>"
        linecache.cache[name] = (len(source), None, lines, name)
        scope = {
            "__name__": "__main__",
            "run": partial(kdkit.run, device="cpu", out=tmp_path, measure=False, **options),
        }
        exec(compile("".join(lines), name, "exec"), scope)

    run(cell, "run(lambda: recipe(1))")
    run("\n" + cell, "run(lambda:   recipe(1), callbacks=[])", resume=True)
    for changed, call in ((cell.replace("1 *", "2 *"), "run(lambda: recipe(1))"), (cell, "run(lambda: recipe(2))")):
        with pytest.raises(
            RunFolderError, match=r"differs in its recipe sha256: .* \(the code of the recipe has changed"
        ):
            run(changed, call, resume=True)


def test_a_run_from_python_with_a_changed_objective_or_monitored_metric_is_not_resumed(tmp_path):
    def recipe(ramp=LinearRamp, temperature=4.0, beta=1.0, layer="norm", metrics=(Accuracy, F1)):
        teacher, student = tiny_net("teacher", trained=True), tiny_net("student")
        sides = {"student": Tap(student.module.norm), "target": Tap(teacher.module.get_submodule(layer))}
        logits = ramp(start=0, end=1) * Match(teacher, SoftTargets(temperature=temperature))
        features = Match(teacher, nn.SmoothL1Loss(beta=beta), **sides)
        return replace(one_stage(student, logits + features), metrics=[metric() for metric in metrics])

    options = {"out": tmp_path / "run", "device": "cpu", "measure": False}
    kdkit.run(recipe(), **options)
    for changes, key in (
        ({"ramp": CosineRamp}, "terms"),
        ({"temperature": 2.0}, "terms"),
        ({"beta": 0.5}, "terms"),
        ({"layer": "hidden"}, "terms"),
        ({"metrics": (F1, Accuracy)}, "monitors"),
    ):
        with pytest.raises(RunFolderError, match=f"differs in its {key}"):
            kdkit.run(recipe(**changes), **options, resume=True)
    # Other metrics are computed again at the end of a resumed run.
    assert {*kdkit.run(recipe(metrics=[Accuracy]), **options, resume=True).metrics["student"]} == {"accuracy"}


@pytest.mark.filterwarnings("ignore:the changes do not apply to all of")
def test_a_finished_stage_of_another_network_is_explained(tmp_path):
    def recipe(hidden):
        return one_stage(tiny_net("student", hidden=hidden), plain_goal())

    kdkit.run(lambda: recipe(4), out=tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"size mismatch for hidden\.weight.*; delete the folder .*1-student"):
        kdkit.run(lambda: recipe(5), out=tmp_path / "run", resume=True, force=True)


@pytest.mark.filterwarnings("ignore:the changes do not apply to all of")
@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            {"optimizer": Optimizer(SGD, lr=0.1)},
            {},
            "its optimizer has no 'betas', so the optimizer or its schedule is",
        ),
        ({}, {"lr_schedule": LRSchedule(OneCycleLR, max_lr=0.1)}, "its optimizer has no 'base_momentum'"),
        ({"terms": 2}, {"terms": 1}, "its terms are first, second"),
    ],
)
def test_a_run_that_is_forced_to_resume_with_other_parts_is_explained(before, after, message, tmp_path):
    def recipe(terms=1, **training):
        labels = [Truth(nn.CrossEntropyLoss(), label=label) for label in ("first", "second")]
        return one_stage(tiny_net("student"), sum(labels[:terms]), **training)

    kill_run(lambda: recipe(**before), tmp_path / "run", KillAtStep(0, batch=1), checkpoint_every=1)
    with pytest.raises(RunFolderError, match=f"{message}.*; delete the folder .*1-student to train this stage again"):
        kdkit.run(lambda: recipe(**after), out=tmp_path / "run", resume=True, force=True)


def test_a_run_with_another_training_sample_in_the_middle_is_not_resumed(tmp_path):
    def recipe(change=0.0):
        train = samples()
        train.tensors[0][3] += change
        return one_stage(tiny_net("student"), plain_goal(), TorchData(train, samples(seed=1), classes=["a", "b", "c"]))

    options = {"out": tmp_path / "run", "device": "cpu"}
    kdkit.run(recipe(), **options)
    with pytest.raises(RunFolderError, match=r"differs in its training samples: expected '\w+', got '\w+'"):
        kdkit.run(recipe(change=1e-3), **options, resume=True)
    kdkit.run(recipe(), **options, resume=True)


def test_a_run_with_a_default_number_of_workers_resumes_with_the_same_explicit_number(tmp_path):
    options = {"out": tmp_path / "run", "device": "cpu"}
    kdkit.run(three(training=training(epochs=1)), **options)
    # None chooses a number, which the run folder records: a choice on another machine may differ.
    assert "workers=0" in json.loads((tmp_path / "run" / "run.json").read_text())["trainings"][0]
    kdkit.run(three(training=training(epochs=1, workers=0)), **options, resume=True)


@pytest.mark.parametrize("name", ["weights.safetensors", "history.jsonl"])
def test_a_stage_with_a_damaged_file_is_named_and_can_be_trained_again(name, folder, finish):
    assert finish("--out", "run", "--epochs", 1).code == 0
    before, stage = results(folder / "run"), folder / "run" / "2-student"
    whole = (stage / name).read_bytes()
    (stage / name).unlink()  # the tensors read above still map the file into memory, so a new file is written
    (stage / name).write_bytes(whole[:9])
    done = finish("--out", "run", "--resume", "--epochs", 1)
    assert done.code == 2
    assert "Traceback" not in done.err
    assert f"{Path('run') / '2-student' / name} cannot be read" in done.err
    assert f"delete the folder {Path('run') / '2-student'} to train this stage again" in done.err
    shutil.rmtree(stage)
    assert finish("--out", "run", "--resume", "--epochs", 1).code == 0
    require_same_results(before, results(folder / "run"))


def test_weights_can_be_read_without_torch_and_kdkit(folder, finish):
    assert finish("--out", "run").code == 0
    code = (
        "import sys; from safetensors.numpy import load_file; "
        "print(sorted(load_file('run/2-student/weights.safetensors'))); assert 'torch' not in sys.modules"
    )
    # Without this checkout: an installed safetensors is enough.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=True)
    assert "'body.weight'" in done.stdout
    assert "projector" not in done.stdout
