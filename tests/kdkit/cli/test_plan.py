"""The plan that `kdkit check` prints has the training as it will be."""

import io
import time

import pytest
import torch
from rich.console import Console
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Dataset, IterableDataset

from kdkit import (
    AverageWeights,
    LRSchedule,
    Match,
    Optimizer,
    Recipe,
    Stage,
    Tap,
    TorchData,
    Training,
    Truth,
    check,
    model_loss,
)
from kdkit.cli.plan import estimate_lines, show_plan
from kdkit.engine.check.estimate import CacheForecast, StageEstimate
from kdkit.engine.options import RunOptions
from kdkit.losses import DKD, Hint, SoftTargets
from tests.helpers.tiny import one_stage, plain_goal, samples, tiny_net


def shown(recipe):
    """Return the plan as it is printed."""
    out = io.StringIO()
    show_plan(check(recipe), Console(file=out, width=300))
    return out.getvalue()


def test_all_options_of_a_training_are_shown():
    plain = shown(one_stage(tiny_net("student"), plain_goal()))
    assert "1. student  1 epoch of batches of 4, Optimizer(Adam, lr=0.001), keeps the best epoch" in plain
    options = {"accumulate_steps": 2, "max_grad_norm": 1.5, "optimizer": Optimizer(torch.optim.SGD, lr=0.1)}
    schedule = LRSchedule(CosineAnnealingLR)
    assert (
        "2 epochs of batches of 4, 2 batches per update, Optimizer(SGD, lr=0.1), LRSchedule(CosineAnnealingLR, "
        "interval='epoch'), clips the norm of gradients at 1.5, keeps the last epoch"
    ) in shown(one_stage(tiny_net("student"), plain_goal(), epochs=2, keep="last", lr_schedule=schedule, **options))
    options = {"ema": AverageWeights(decay=0.5), "patience": 3, "monitor": "macro_f1", "steps_per_epoch": 5}
    assert (
        "4 epochs of 5 batches of 4, Optimizer(Adam, lr=0.001), averages weights with a decay of 0.5, stops after 3 "
        "epochs without improvement, keeps the best epoch by macro_f1"
    ) in shown(one_stage(tiny_net("student"), plain_goal(), epochs=4, **options))


def test_a_loss_that_a_net_computes_itself_is_named_as_what_it_learns_from():
    student = tiny_net("student")
    own = Truth(model_loss, student=Tap(student.module, element=lambda outputs: outputs.square().mean()))
    text = shown(one_stage(student, 1.0 * own))
    assert "its own loss" in next(line for line in text.splitlines() if "student" in line)
    assert "() by model_loss" in text
    assert "labels" not in text


class Stream(IterableDataset):
    def __iter__(self):
        yield from samples()

    def __len__(self):
        return 8


@pytest.mark.parametrize(
    ("train", "size"),
    [(DataLoader(samples(), 3, shuffle=True), "3, as its DataLoader yields them"), (Stream(), "4")],
)
def test_the_batches_of_a_data_loader_are_shown(train, size):
    data = TorchData(train, samples(seed=1), classes=["a", "b", "c"])
    assert f"1 epoch of batches of {size}, Optimizer" in shown(one_stage(tiny_net("student"), plain_goal(), data))


def test_the_number_of_trained_parameters_is_shown_if_some_are_frozen():
    teacher, student = tiny_net("teacher", trained=True), tiny_net("student")
    teacher.network.requires_grad_(False)
    recipe = one_stage(student, plain_goal() + Match(teacher, SoftTargets()))
    assert "trained │" not in shown(recipe).replace("already trained", "")
    student.network.hidden.requires_grad_(False)
    trained = sum(parameter.numel() for parameter in student.network.parameters() if parameter.requires_grad)
    assert f"│ {trained} of {student.parameters} trained │" in shown(recipe)


def test_a_net_that_reads_no_labels_learns_from_its_teacher_only():
    teacher, student = tiny_net("teacher", trained=True), tiny_net("student", seed=1)

    def source_of_student(*objectives):
        training = Training(epochs=1, batch_size=4)
        stages = [Stage({student: term}, training, name=str(index)) for index, term in enumerate(objectives)]
        recipe = Recipe(data=TorchData(samples(), samples(seed=1)), schedule=stages)
        line = next(line for line in shown(recipe).splitlines() if line.startswith("│ student"))
        return line.split("│")[-2].strip()

    hint = Match(teacher, Hint(), student=Tap(student.module.hidden), target=Tap(teacher.module.hidden))
    assert source_of_student(Match(teacher, SoftTargets())) == "teacher"
    assert source_of_student(Match(teacher, DKD())) == "labels, teacher"
    assert source_of_student(hint, plain_goal()) == "labels, teacher"
    assert source_of_student(plain_goal()) == "labels"


def test_teachers_that_run_for_the_same_reason_share_a_line():
    reasons = {"large": "no digest", "ema": "", "medium": "no digest", "small": "no digest", "on": None}
    caching = {name: CacheForecast(reason is None, reason or "") for name, reason in reasons.items()}
    estimate = StageEstimate(multiply_adds={}, times=None, caching=caching)
    assert [*estimate_lines(estimate, torch.device("cpu"))] == [
        "the outputs of on are cached for this run only",
        "large, medium and small run at each step: their outputs are not cached, because no digest",
        "ema runs at each step: no output is needed twice",
    ]


class SlowSamples(Dataset):
    """As many samples as a large set of images has, each of which takes 5 ms to read."""

    classes = ("a", "b", "c")

    def __len__(self):
        return 100_000

    def __getitem__(self, row):
        time.sleep(0.005)
        return torch.rand(4), row % 3


@pytest.mark.parametrize(
    ("data", "steps", "least"),
    [
        (SlowSamples(), None, 500),
        (SlowSamples(), 10, 0),
        (samples(), None, None),
        (DataLoader(samples(), 4), None, None),
    ],
)
def test_reading_that_takes_long_has_its_time_in_the_plan(data, steps, least):
    data = TorchData(data, samples(seed=1), classes=["a", "b", "c"])
    recipe = one_stage(tiny_net("student"), plain_goal(), data, steps_per_epoch=steps)
    (estimate,) = check(recipe, estimate=RunOptions(device="cpu")).estimates
    lines = " ".join(estimate_lines(estimate, torch.device("cpu")))
    assert ("per epoch to read the data; Training(workers=N)" in lines) == bool(least)
    if least is not None:
        assert estimate.reading_seconds > least
