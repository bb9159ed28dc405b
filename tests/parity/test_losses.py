"""kdkit's losses against golden numbers: values and gradients, in both precisions, at the tolerances stated there."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from kdkit import Batch, Cosine, Facts, Hint, Match, Net, PerLabelSoftTargets, SoftTargets, Stage, Training, Truth
from kdkit.balance import WeightedSum
from kdkit.lesson import Lesson
from kdkit.projectors import Projector
from kdkit.sources import Answer

PRECISIONS = {torch.float64: "fp64", torch.float32: "fp32"}


class UncoveredError(Exception):
    """A case with an option that kdkit's loss does not have."""


def soft_targets(hyper):
    return SoftTargets(temperature=hyper["temperature"], t_squared=hyper["multiply_T2"])


def per_label(hyper):
    return PerLabelSoftTargets(temperature=hyper["temperature"], t_squared=hyper["multiply_T2"], entropy=True)


def hint(hyper):
    if "kernel" in hyper:
        raise UncoveredError("the authors' regressor is a convolution with batch norm; here a map over channels")
    return Hint()


def cosine(hyper):
    if hyper["axis"] != "last":
        raise UncoveredError("rows along another axis")
    return Rows(Cosine())


class Rows(nn.Module):
    """Take every vector along the last axis as a sample, as the authors do with tokens."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, student, target):
        return self.loss(student.flatten(0, -2), target.flatten(0, -2))


LOSSES = {"kd": soft_targets, "kl_no_t2": soft_targets, "bce_kd": per_label, "fitnet": hint, "cosine": cosine}


def cases(shared, kind):
    return [
        case for case in json.loads((shared / "golden/losses/losses.json").read_text())["cases"] if case["loss"] == kind
    ]


@pytest.mark.parametrize("precision", PRECISIONS, ids=PRECISIONS.values())
@pytest.mark.parametrize("kind", LOSSES)
def test_value_and_gradient_are_the_golden_ones(shared, kind, precision):
    covered = 0
    for case in cases(shared, kind):
        try:
            loss = LOSSES[kind](case["hyper"])
        except UncoveredError:
            continue
        compare(case, loss, arrays_of(shared, case), precision)
        covered += 1
    assert covered > 1


def compare(case, loss, arrays, precision):
    student = arrays["student"].to(precision).requires_grad_()
    target = arrays["teacher"].to(precision)
    if hasattr(loss, "build"):
        loss.build((student.shape,), (target.shape,), Facts(classes=(), task="regression", samples=1, ids=True), None)
        loss.to(precision)
    if "weight" in arrays:
        channels = loss.projector.channels
        assert isinstance(loss.projector, Projector)
        with torch.no_grad():
            channels.weight.copy_(arrays["weight"])
            channels.bias.zero_()
    value = loss(student, target)
    value.backward()
    tolerance, name = case["tolerance"], PRECISIONS[precision]
    expected, gradient = arrays["loss"].item(), arrays["grad_student"]
    assert value.item() == pytest.approx(expected, rel=tolerance[f"{name}_value_rtol"], abs=0), case["name"]
    worst = (student.grad.double() - gradient).abs().max().item()
    largest = gradient.abs().max().item()
    assert worst <= (tolerance[f"{name}_grad_max_abs_over_max"] * largest or 1e-12), case["name"]


def arrays_of(shared, case):
    with np.load(shared / "golden/losses" / case["file"], allow_pickle=False) as file:
        return {name: torch.from_numpy(file[entry["key"]]) for name, entry in case["arrays"].items()}


# The goals of LRH-Net, from the students' logits on: 0.3 BCE + 0.7 KL at temperature 7 without T squared.
TEACHER = Net("teacher", nn.Identity(), trained=True)
ASSISTANT = Net("assistant", nn.Identity(), trained=True)


def goals(alpha, weights, temperature):
    soft = SoftTargets(temperature=temperature, t_squared=False)
    truth, first, second = Truth(nn.BCEWithLogitsLoss()), Match(TEACHER, soft), Match(ASSISTANT, soft)
    multilevel = alpha * truth + (1 - alpha) * (weights[0] * first + weights[1] * second)
    return {
        "vanilla": alpha * truth + (1 - alpha) * first,
        "p_mlkd": multilevel,
        "s_mlkd": multilevel,
        "two_teacher_70_30": alpha * truth + (1 - alpha) * (0.7 * first + 0.3 * second),
    }


@cache
def ecg_arrays(shared):
    with np.load(shared / "golden/ecg/losses.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if key.startswith("mlkd/")}


class Logits(nn.Module):
    """A net whose outputs are its weights, so that their gradient is that of the goal."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, _inputs):
        return self.logits


def learned(goal, arrays, precision):
    """Return a goal's value and its gradient to the student's logits, as a run computes them."""
    arrays = {key: array.to(precision) for key, array in arrays.items()}
    net = Net("student", Logits(arrays["student_logits"]))
    labels = arrays["labels"]
    classes = tuple(str(index) for index in range(labels.shape[1]))
    facts = Facts(classes=classes, task="multilabel", samples=len(labels), ids=True)
    lesson = Lesson(Stage({net: goal}, Training(epochs=1)), facts)
    answers = {"teacher": Answer(arrays["teacher1_logits"], ()), "assistant": Answer(arrays["teacher2_logits"], ())}
    terms = lesson(Batch(torch.empty(len(labels), 0), labels), answers)
    totals = []
    WeightedSum()(terms, lesson.weights(0.0), lambda total: totals.append(total.item()) or total)
    return totals[0], net.module.logits.grad


@pytest.mark.parametrize("goal", ["vanilla", "p_mlkd", "s_mlkd", "two_teacher_70_30"])
@pytest.mark.parametrize(("precision", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_the_goals_of_lrh_net_are_the_golden_ones(shared, goal, precision, rtol):
    index = json.loads((shared / "golden/ecg/losses.json").read_text())
    for case in index["mlkd"]:
        prefix = f"mlkd/{case['case']}/"
        arrays = {key.removeprefix(prefix): each for key, each in ecg_arrays(shared).items() if key.startswith(prefix)}
        made = goals(case["alpha"], case["weights"], case["temperature"])[goal]
        value, gradient = learned(made, arrays, precision)
        assert value == pytest.approx(arrays[f"{goal}_loss"].item(), rel=rtol), case["case"]
        expected = arrays[f"{goal}_grad"]
        worst = (gradient.double() - expected).abs().max()
        assert worst <= rtol * expected.abs().max(), case["case"]
    assert len(index["mlkd"]) > 1
