"""Compare losses and nets to a few golden cases that are copied to tests/golden, for checkouts without the rest."""

import json
from pathlib import Path

import pytest
import torch

from .golden import PRECISIONS, compare, index, load_arrays
from .test_ecg_models import TOLERANCE, assert_close, run_net
from .test_losses import LOSSES

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "losses.json").read_text())
NETS = json.loads((GOLDEN / "nets.json").read_text())["logits"]


def copied_arrays(case):
    return {
        name: torch.tensor(entry["values"], dtype=getattr(torch, entry["dtype"]))
        for name, entry in case["arrays"].items()
    }


@pytest.mark.parametrize("precision", PRECISIONS, ids=PRECISIONS.values())
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_value_and_gradient_equal_a_copied_case(case, precision):
    torch.manual_seed(0)
    compare(case, LOSSES[case["loss"]](case["hyper"]), copied_arrays(case), precision)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
@pytest.mark.parametrize("name", ["lrhnet", "seresnet18", "cnn1d"])
def test_logits_equal_a_copied_case(name, dtype):
    logits, _, _ = run_net((name, 2, 4096), dtype)
    assert_close(logits, torch.tensor(NETS[f"{name}_2lead_4096"], dtype=torch.float64), TOLERANCE[dtype])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_copied_case_equals_the_shared_one(shared, case):
    (original,) = (entry for entry in index(shared)["cases"] if entry["name"] == case["name"])
    expected = load_arrays(shared, original)
    assert {name: array.tolist() for name, array in copied_arrays(case).items()} == {
        name: array.tolist() for name, array in expected.items()
    }
    assert (case["hyper"], case["tolerance"]) == (original["hyper"], original["tolerance"])
