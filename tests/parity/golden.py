"""Read the golden cases of losses, and compare what a loss says of them: values, gradients and other results."""

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
from kdkit.losses import asked_by

PRECISIONS = {torch.float64: "fp64", torch.float32: "fp32"}
FOLDER = "golden/losses"


@dataclass(frozen=True)
class Runner:
    """How to run a loss whose case holds more than a student, a teacher and labels.

    run: the arrays of the case by name, in the precision under test, those of the student asking for gradients ->
    the value, or the value and a dict of the other results by their names in the case ("out_..." included).
    """

    run: Callable


@cache
def index(shared):
    return json.loads((shared / FOLDER / "losses.json").read_text())


def case_names():
    """Return the names of all cases, for parametrising; of none where the folder is not there."""
    named = os.environ.get("KDKIT_SHARED")
    file = Path(named or "") / FOLDER / "losses.json"
    return [case["name"] for case in index(Path(named))["cases"]] if named and file.is_file() else []


def arrays_of(shared, case):
    with np.load(shared / FOLDER / case["file"], allow_pickle=False) as file:
        return {name: torch.from_numpy(file[entry["key"]]) for name, entry in case["arrays"].items()}


def compare(case, made, arrays, precision):
    """Hold a loss, or a Runner, to a case: value, gradients, and every other result that the case lists."""
    roles = {name: entry["role"] for name, entry in case["arrays"].items()}
    given = {name: given_in(precision, array, roles[name]) for name, array in arrays.items() if is_input(roles[name])}
    result = made.run(given) if isinstance(made, Runner) else plainly(made, given, roles, precision)
    value, others = result if isinstance(result, tuple) else (result, {})
    students = [name for name in given if roles[name] == "student"]
    gradients = torch.autograd.grad(value, [given[name] for name in students], allow_unused=True)
    tolerance, name = case["tolerance"], PRECISIONS[precision]
    rtol, worst = tolerance[f"{name}_value_rtol"], tolerance[f"{name}_grad_max_abs_over_max"]
    assert value.item() == pytest.approx(arrays["loss"].item(), rel=rtol, abs=0)
    for student, gradient in zip(students, gradients, strict=True):
        expected = arrays[f"grad_{student}"]
        gradient = torch.zeros_like(expected) if gradient is None else gradient.double()
        assert gradient.shape == expected.shape
        assert (gradient - expected).abs().max() <= (worst * expected.abs().max().item() or 1e-12), student
    for name, role in roles.items():
        if role == "expected_output":
            expected = arrays[name].double()
            assert (others[name].double() - expected).abs().max() <= rtol * expected.abs().max(), name


def plainly(loss, given, roles, precision):
    """Run a loss on its two sides, each a tensor or a tuple of them, with the labels where it asks for them."""
    student, target = (side(given, roles, role) for role in ("student", "teacher"))
    if hasattr(loss, "build"):
        facts = BuildContext(classes=(), task="regression", samples=len(student), ids=True)
        loss.build(shapes(student), shapes(target), facts, None)
        loss.to(precision)
    return loss(student, target, **{name: given[name] for name in asked_by(loss) if name in given})


def side(given, roles, role):
    arrays = tuple(array for name, array in given.items() if roles[name] == role)
    return arrays[0] if len(arrays) == 1 else arrays


def shapes(side):
    return tuple(each.shape for each in side) if isinstance(side, tuple) else (side.shape,)


def is_input(role):
    return not role.startswith("expected")


def given_in(precision, array, role):
    array = array.to(precision) if array.is_floating_point() else array
    return array.clone().requires_grad_() if role == "student" else array
