"""The plan that `kdkit check` prints has the training as it will be."""

import io

import pytest
import torch
from rich.console import Console
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, IterableDataset

from kdkit import LRSchedule, Match, Optimizer, Recipe, Stage, Tap, TorchData, Training, check
from kdkit.cli.plan import show_plan
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
