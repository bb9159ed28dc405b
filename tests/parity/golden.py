"""Read the golden cases of losses, and compare a loss to them: value, gradients and further results."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from kdkit import BuildContext
from kdkit.losses import BuildableLoss, extra_kwargs_of

PRECISIONS = {torch.float64: "fp64", torch.float32: "fp32"}
FOLDER = "golden/losses"


@dataclass(frozen=True)
class Runner:
    """How to run a loss whose case has more arrays than a student, a teacher and labels.

    run: takes the arrays of the case by name, in the precision under test; those of the student require gradients.
    Returns the value, or the value and a dict of further results by their names in the case ("out_..." included).
    """

    run: Callable


@cache
def index(shared):
    return json.loads((shared / FOLDER / "losses.json").read_text())


def case_names():
    """Return the names of all cases for parametrisation, or none if the shared folder is missing."""
    folder = os.environ.get("KDKIT_SHARED")
    file = Path(folder or "") / FOLDER / "losses.json"
    return [case["name"] for case in index(Path(folder))["cases"]] if folder and file.is_file() else []


def load_arrays(shared, case):
    with np.load(shared / FOLDER / case["file"], allow_pickle=False) as file:
        return {name: torch.from_numpy(file[entry["key"]]) for name, entry in case["arrays"].items()}


def compare(case, loss_or_runner, arrays, precision):
    """Compare a loss, or a Runner, to a case: value, gradients, and every further result that the case lists."""
    roles = {name: entry["role"] for name, entry in case["arrays"].items()}
    inputs = {
        name: input_tensor(precision, array, roles[name]) for name, array in arrays.items() if is_input(roles[name])
    }
    if isinstance(loss_or_runner, Runner):
        result = loss_or_runner.run(inputs)
    else:
        result = run_loss(loss_or_runner, inputs, roles, precision)
    value, outputs = result if isinstance(result, tuple) else (result, {})
    students = [name for name in inputs if roles[name] == "student"]
    gradients = torch.autograd.grad(value, [inputs[name] for name in students], allow_unused=True)
    tolerance, name = case["tolerance"], PRECISIONS[precision]
    rtol, gradient_tolerance = tolerance[f"{name}_value_rtol"], tolerance[f"{name}_grad_max_abs_over_max"]
    assert value.item() == pytest.approx(arrays["loss"].item(), rel=rtol, abs=0)
    for student, gradient in zip(students, gradients, strict=True):
        expected = arrays[f"grad_{student}"]
        gradient = torch.zeros_like(expected) if gradient is None else gradient.double()
        assert gradient.shape == expected.shape
        assert (gradient - expected).abs().max() <= (gradient_tolerance * expected.abs().max().item() or 1e-12), student
    for name, role in roles.items():
        if role == "expected_output":
            expected = arrays[name].double()
            assert (outputs[name].double() - expected).abs().max() <= rtol * expected.abs().max(), name


def run_loss(loss, inputs, roles, precision):
    """Return the value of a loss for its two sides, a tensor or a tuple each, with the labels if it accepts them."""
    student, target = (side(inputs, roles, role) for role in ("student", "teacher"))
    if isinstance(loss, BuildableLoss):
        context = BuildContext(classes=(), task="regression", samples=len(student), ids=True)
        loss.build(shapes(student), shapes(target), context, None)
        loss.to(precision)
    return loss(student, target, **{name: inputs[name] for name in extra_kwargs_of(loss) if name in inputs})


def side(inputs, roles, role):
    arrays = tuple(array for name, array in inputs.items() if roles[name] == role)
    return arrays[0] if len(arrays) == 1 else arrays


def shapes(side):
    return tuple(tap.shape for tap in side) if isinstance(side, tuple) else (side.shape,)


def is_input(role):
    return not role.startswith("expected")


def input_tensor(precision, array, role):
    array = array.to(precision) if array.is_floating_point() else array
    return array.clone().requires_grad_() if role == "student" else array
