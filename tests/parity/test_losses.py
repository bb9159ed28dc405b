"""Compare kdkit's losses to golden values and gradients, in both precisions, at the tolerances of the golden index."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from kdkit import Batch, BuildContext, Match, Net, Stage, Training, Truth
from kdkit.engine.stage.module import DistillationModule
from kdkit.losses import SoftTargets
from kdkit.recipe.balancing import WeightedSum
from kdkit.teachers import TeacherOutput
from tests.parity import feature_cases, logit_cases

from .golden import PRECISIONS, case_names, compare, index, load_arrays

LOSSES = {**logit_cases.LOSSES, **feature_cases.LOSSES}


@pytest.mark.parametrize("precision", PRECISIONS, ids=PRECISIONS.values())
@pytest.mark.parametrize("name", case_names())
def test_value_and_gradient_equal_the_golden_ones(shared, name, precision):
    (case,) = (entry for entry in index(shared)["cases"] if entry["name"] == name)
    kind = case["loss"]
    if kind not in LOSSES:
        pytest.fail(f"golden case {name!r} is of {kind!r}, which has no implementation in this folder's *_cases.py")
    torch.manual_seed(0)
    compare(case, LOSSES[kind](case["hyper"]), load_arrays(shared, case), precision)


def test_all_golden_cases_are_compared(shared):
    assert len(set(case_names())) == index(shared)["case_count"] == 132


# The objectives of LRH-Net, from the students' logits on: 0.3 BCE + 0.7 KL at temperature 7 without T squared.
TEACHER = Net("teacher", nn.Identity(), trained=True)
ASSISTANT = Net("assistant", nn.Identity(), trained=True)


def objectives(alpha, weights, temperature):
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
    """A net whose outputs are its weights, so that their gradient is that of the objective."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, _inputs):
        return self.logits


def value_and_gradient(objective, arrays, precision):
    """Return an objective's value and its gradient to the student's logits, as a run computes them."""
    arrays = {key: array.to(precision) for key, array in arrays.items()}
    net = Net("student", Logits(arrays["student_logits"]))
    labels = arrays["labels"]
    classes = tuple(str(index) for index in range(labels.shape[1]))
    context = BuildContext(classes=classes, task="multilabel", samples=len(labels), ids=True)
    module = DistillationModule(Stage({net: objective}, Training(epochs=1)), context)
    teacher_outputs = {
        "teacher": TeacherOutput(arrays["teacher1_logits"], ()),
        "assistant": TeacherOutput(arrays["teacher2_logits"], ()),
    }
    terms = module(Batch(torch.empty(len(labels), 0), labels), teacher_outputs)
    totals = []
    WeightedSum()(terms, module.weights(0.0), lambda total: totals.append(total.item()) or total)
    return totals[0], net.module.logits.grad


@pytest.mark.parametrize("objective", ["vanilla", "p_mlkd", "s_mlkd", "two_teacher_70_30"])
@pytest.mark.parametrize(("precision", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_the_objectives_of_lrh_net_equal_the_golden_ones(shared, objective, precision, rtol):
    index = json.loads((shared / "golden/ecg/losses.json").read_text())
    for case in index["mlkd"]:
        prefix = f"mlkd/{case['case']}/"
        arrays = {
            key.removeprefix(prefix): array for key, array in ecg_arrays(shared).items() if key.startswith(prefix)
        }
        objective_terms = objectives(case["alpha"], case["weights"], case["temperature"])[objective]
        value, gradient = value_and_gradient(objective_terms, arrays, precision)
        assert value == pytest.approx(arrays[f"{objective}_loss"].item(), rel=rtol), case["case"]
        expected = arrays[f"{objective}_grad"]
        error = (gradient.double() - expected).abs().max()
        assert error <= rtol * expected.abs().max(), case["case"]
    assert len(index["mlkd"]) > 1
