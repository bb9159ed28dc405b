"""Kill a run at random moments, resume it each time, and compare its end with that of an undisturbed run.

The run has three stages, as S-MLKD: a teacher, an assistant and a student. It has everything that a checkpoint must
hold: dropout, augmentation by the random numbers of torch, numpy and Python, worker processes, a loss with memory,
averaged weights, past outputs as a teacher, cached teacher outputs, accumulated gradients, and learning rates that
change at each update.
"""

import json
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

import torch

from kdkit.utils.sealed import read_sealed_json, read_tensors
from tests.helpers.command_line import environment
from tests.helpers.processes import ForkedPython

STAGES = ("teacher", "assistant", "student")
EPOCHS, BATCHES, ACCUMULATED = 3, 9, {"assistant": 2}
CHECKPOINT_EVERY = 3  # updates

RECIPE = '''
"""Three stages whose steps, and whose writes to the disk, are slowed down, so that kills hit them."""

import os
import random
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import Dataset

import kdkit
from kdkit import (
    AverageWeights, LRSchedule, Match, Net, Optimizer, Past, Recipe, Stage, Tap, TorchData, Training, Truth,
)
from kdkit.losses import CRD, SoftTargets

SLOWER = float(os.environ.get("SLOWER", 0))  # seconds of a step and of an fsync
fsync = os.fsync


def slow_fsync(handle: int) -> None:
    time.sleep(SLOWER)
    fsync(handle)


if SLOWER:
    os.fsync = slow_fsync


@kdkit.hookimpl
def step_ended(event: Any) -> None:
    """Append the step to a log."""
    line = f"{event.stage} {event.epoch} {event.batch}\\n".encode()
    handle = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, line)
    os.close(handle)
    time.sleep(SLOWER)


class Samples(Dataset):
    """Samples that are the same each time, and augmented ones, by the global random numbers of three libraries."""

    def __init__(self, count: int, seed: int) -> None:
        self.targets = torch.arange(count) % 3
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.eye(3, 6)[self.targets] + torch.randn(count, 6, generator=generator)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        clean = self.inputs[index]
        noise = 0.1 * torch.randn(6) + np.float32(np.random.normal(0, 0.1)) + random.gauss(0, 0.1)
        return {"clean": clean, "augmented": clean + noise}, self.targets[index]


class Clean:
    """The input that does not change."""

    key = "clean"

    def __call__(self, batch: Any) -> Any:
        return (batch.inputs["clean"],), {}


class Augmented:
    """The input that does."""

    key = "augmented"

    def __call__(self, batch: Any) -> Any:
        return (batch.inputs["augmented"],), {}


class Small(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body, self.norm, self.drop = nn.Linear(6, width), nn.BatchNorm1d(width), nn.Dropout(0.3)
        self.head = nn.Linear(width, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.body(inputs)).relu()))


class Noisy(Small):
    """A network that draws random numbers when it is evaluated too, so that its outputs are not cached."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) + 0.01 * torch.randn(3)


def recipe(epochs: int = 3) -> Recipe:
    # Its inputs do not change, so its outputs and features are cached.
    teacher = Net("teacher", Small(8), view=Clean())
    assistant = Net("assistant", Noisy(6), view=Augmented())
    student = Net("student", Small(4), view=Augmented())
    truth = Truth(nn.CrossEntropyLoss())

    def crd(net: Net[Any]) -> Any:
        taps = {"student": Tap(net.module.norm), "target": Tap(teacher.module.norm)}
        return Match(teacher, CRD(width=4, negatives=8), **taps)

    steps = {"epochs": epochs, "batch_size": 8}
    return Recipe(
        data=TorchData(Samples(72, 0), Samples(24, 1), Samples(24, 2), classes=("a", "b", "c"), draws=1),
        schedule=[
            Stage(
                {teacher: truth},
                Training(**steps, optimizer=Optimizer(SGD, lr=0.1, momentum=0.9), ema=AverageWeights(decay=0.9)),
            ),
            Stage(
                {assistant: truth + Match(teacher, SoftTargets()) + 0.1 * crd(assistant)},
                Training(
                    **steps,
                    optimizer=Optimizer(Adam, lr=0.01),
                    lr_schedule=LRSchedule(OneCycleLR, interval="update", max_lr=0.02),
                    accumulate_steps=2,
                    workers=1,
                    keep="last",
                ),
            ),
            Stage(
                {
                    student: truth
                    + Match(teacher, SoftTargets())
                    + Match(assistant, SoftTargets())
                    + 0.1 * crd(student)
                    + Match(Past(student), SoftTargets())
                },
                Training(**steps, optimizer=Optimizer(Adam, lr=0.01), ema=AverageWeights(decay=0.8)),
            ),
        ],
    )
'''


@dataclass
class Kill:
    """A kill of a run: the last step before it, the first one after the resume, and the files that were being written.

    lost: the number of steps that were repeated. allowed: those between two checkpoints, and those that were trained
    while the last of the two was written.
    """

    number: signal.Signals
    step: tuple[str, int, int] | None
    writing: list[str] = field(default_factory=list)
    lost: int = 0
    allowed: int = 0


class CrashTest:
    """Runs of the recipe in subfolders of a folder.

    slower: seconds that each step and each fsync take longer. options: more options of `kdkit run`.
    """

    def __init__(self, folder: Path, *, slower: float = 0.01, options: Sequence[str] = ()) -> None:
        self.folder, self.options = folder, options
        self.variables = environment(SLOWER=str(slower), OMP_NUM_THREADS="1")

    def start(self, name: str) -> ForkedPython:
        """Start a run in the subfolder `name`, or resume it if it was killed after it created its folder."""
        folder = self.folder / name
        resume = (folder / "run" / ".lock").exists()
        folder.mkdir(exist_ok=True)
        (folder / "recipe_file.py").write_text(dedent(RECIPE))
        arguments = ["run", "recipe_file.py", "--out", "run", "--device", "cpu", "--checkpoint-every", CHECKPOINT_EVERY]
        return ForkedPython(
            ["-m", "kdkit", *map(str, arguments), *self.options, *["--resume"] * resume], folder, self.variables
        )

    def finish(self, name: str) -> None:
        """Run to the end. Raises AssertionError if the run fails."""
        process = self.start(name)
        _out, err = process.communicate(300)
        assert process.returncode == 0, err

    def steps(self, name: str) -> list[tuple[str, int, int]]:
        """Return the steps in the log of a run: (stage, epoch, batch)."""
        log = self.folder / name / "log.txt"
        lines = log.read_text().splitlines() if log.exists() else []
        return [(stage, int(epoch), int(batch)) for stage, epoch, batch in map(str.split, lines)]

    def disturb(self, name: str, draw: random.Random, numbers: list[signal.Signals]) -> list[Kill]:
        """Kill a run with each of these signals, at random moments, as long as it runs; resume it to its end."""
        kills: list[Kill] = []
        for number in numbers:
            before = len(self.steps(name))
            process = self.start(name)
            if not self._wait(name, process, before + draw.choice([0, *range(2 * BATCHES)]), draw):
                self._after_resume(name, kills, before)
                assert process.wait(60) == 0, process.output(2)
                return kills
            kill = self._kill(name, process, number, group=draw.random() < 0.5)
            self._after_resume(name, kills, before)
            kills.append(kill)
        before = len(self.steps(name))
        self.finish(name)
        self._after_resume(name, kills, before)
        return kills

    def require_same(self, name: str, undisturbed: str) -> None:
        """Raise AssertionError unless two runs ended in the same bits and left no file half-written."""
        require_same_results(*(results(self.folder / run / "run") for run in (name, undisturbed)))
        steps = {step for step in self.steps(name)}
        assert steps == set(self.steps(undisturbed))

    def _wait(self, name: str, process: ForkedPython, steps: int, draw: random.Random) -> bool:
        """Wait until the log has so many steps, and for a random time after; return False if the run ends before."""
        deadline = time.monotonic() + 120
        while len(self.steps(name)) < steps or not process.began("reading recipe_file.py"):
            if process.poll() is not None:
                return False
            assert time.monotonic() < deadline, process.output(2)
            time.sleep(0.002)
        # Sometimes long, so that kills also hit the end of a stage, the start of the next one and the evaluation.
        end = time.monotonic() + draw.uniform(0, draw.choice([0.02, 0.1, 0.5]))
        while time.monotonic() < end:
            if process.poll() is not None:
                return False
            time.sleep(0.001)
        return process.poll() is None

    def _kill(self, name: str, process: ForkedPython, number: signal.Signals, *, group: bool) -> Kill:
        if number == signal.SIGKILL and group and os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, number)  # with its worker processes
        else:
            process.send_signal(number)
        code = process.wait(60)
        if number == signal.SIGKILL:
            assert code == -number, process.output(2)
        elif "saved to" not in process.output(1):  # the program was not about to end
            assert code in (128 + number, -number), (code, process.output(2))  # -number: before the run began
            assert "Traceback" not in process.output(2), process.output(2)
        run = self.folder / name / "run"
        writing = [
            match[1] for file in run.rglob(".*.tmp") if (match := re.fullmatch(r"\.(.+)\.\w{8}\.tmp", file.name))
        ]
        steps = self.steps(name)
        return Kill(number, steps[-1] if steps else None, writing)

    def _after_resume(self, name: str, kills: list[Kill], before: int) -> None:
        """Add to the last kill how many steps were repeated after it, if the resumed run came to a step."""
        steps = self.steps(name)
        if not kills or len(steps) == before or not before:
            return
        kill, first = kills[-1], steps[before]
        furthest = max(_ordinal(step) for step in steps[:before])
        kill.lost = furthest + 1 - _ordinal(first)
        kill.allowed = 2 * CHECKPOINT_EVERY * ACCUMULATED.get(first[0], 1)
        assert 0 <= kill.lost <= kill.allowed, (kill, first)


def results(run: Path) -> dict[str, Any]:
    """Return the results in a run folder, by file. Raises AssertionError if it has files that should not be there."""
    assert not list(run.rglob("*.tmp"))
    assert not list(run.rglob("checkpoint-*"))
    assert not (run / "teacher_cache").exists()
    values: dict[str, Any] = {}
    for file in sorted(run.rglob("*")):
        name = file.relative_to(run).as_posix()
        if file.suffix == ".safetensors":
            values[name] = read_tensors(file)
        elif file.name == "history.jsonl":
            values[name] = [json.loads(line) for line in file.read_text().splitlines()]
            for epoch in values[name]:
                del epoch["seconds"]
        elif file.name == "metrics.json":
            values[name] = read_sealed_json(file)
        elif file.is_file() and file.name != ".lock":
            values[name] = None
    return values


def require_same_results(first: dict[str, Any], second: dict[str, Any], run: object = "") -> None:
    """Raise AssertionError unless two runs have the same files with the same bits. run: which one, for the message."""
    assert first.keys() == second.keys(), run
    for name, value in first.items():
        assert is_same(value, second[name]), (name, run)


def report(kills: list[Kill]) -> str:
    """Return a text that describes where kills hit."""
    counts: dict[str, Counter[str]] = {"stage": Counter(), "epoch": Counter(), "batch": Counter(), "writing": Counter()}
    for kill in kills:
        stage, epoch, batch = kill.step or ("none", -1, -1)
        counts["stage"][stage] += 1
        counts["epoch"][str(epoch + 1)] += 1
        counts["batch"][str(batch + 1)] += 1
        counts["writing"].update(re.sub(r"\d+", "N", name) for name in kill.writing or ["no file"])
    lines = [
        f"{name}: {', '.join(f'{key} {count}' for key, count in sorted(counter.items()))}"
        for name, counter in counts.items()
    ]
    lost = [kill.lost for kill in kills]
    return "\n".join(
        [*lines, f"steps repeated after a kill: at most {max(lost)}, {sum(lost) / len(lost):.1f} on average"]
    )


def _ordinal(step: tuple[str, int, int]) -> int:
    stage, epoch, batch = step
    return (STAGES.index(stage) * EPOCHS + epoch) * BATCHES + batch


def is_same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and first.numpy().tobytes() == second.numpy().tobytes()
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(is_same(value, second[key]) for key, value in first.items())
    if isinstance(first, tuple):
        return len(first) == len(second) and all(map(is_same, first, second))
    return bool(first == second)
