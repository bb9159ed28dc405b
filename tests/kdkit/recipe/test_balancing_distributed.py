"""Tests that balancers average gradients over ranks before they combine them, with two ranks that use gloo."""

import json
from pathlib import Path

import pytest
import torch

from kdkit.recipe.balancing import GradNorm, PCGrad, UncertaintyWeighting
from kdkit.utils.collectives import all_reduce_mean
from tests.helpers.balancing import numbers, ones, plain, trained
from tests.helpers.processes import run_python

PROCESS = """
import json, os, sys
import torch
from torch import distributed, nn
from kdkit.recipe.balancing import GradNorm, PCGrad, TrainedParameters, UncertaintyWeighting
from kdkit.recipe.optim import Optimizer

class PlainSGD:  # the optimizers of torch import its compiler, which takes seconds
    def __init__(self, params, lr):
        self.params, self.lr = params, lr

    def step(self):
        for parameter in self.params:
            parameter.data -= self.lr * parameter.grad


torch.set_num_threads(1)
rendezvous, rank = sys.argv[1], int(os.fork() > 0)
distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
torch.manual_seed(0)
results = {}
for balancing in (PCGrad(), GradNorm(optimizer=Optimizer(PlainSGD, lr=0.1)), UncertaintyWeighting()):
    shared, head = (nn.Parameter(torch.tensor(values, dtype=torch.float64)) for values in ([1.0, 1.0], [2.0]))
    gradients = torch.tensor([[1.0, 0.5 * rank], [-1.0 - rank, 1.0]], dtype=torch.float64)
    first = (shared * gradients[0]).sum() + (3 + rank) * head.sum()
    terms = {"first": first, "second": (shared * gradients[1]).sum() + 5}
    balancer = balancing.build(TrainedParameters(labels=("first", "second"), nets=((shared, head),)))
    balancer(terms, {"first": 1.0, "second": 1.0}, lambda total: total)
    learned = [getattr(balancer, name) for name in ("factors", "log_variances") if hasattr(balancer, name)]
    results[type(balancing).__name__] = {
        "gradient": [*shared.grad.tolist(), *head.grad.tolist()],
        "learned": [value for item in learned for value in (item if item.grad is None else item.grad).tolist()],
    }
distributed.destroy_process_group()
with open(f"{rendezvous}-{rank}", "w") as file:
    json.dump(results, file)
if rank:
    os.wait()
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The gradients and the learned state of each balancer, on each rank."""
    folder = tmp_path_factory.mktemp("gloo")
    (folder / "process.py").write_text(PROCESS)
    rendezvous = folder / "rendezvous"
    done = run_python(["process.py", str(rendezvous)], folder, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(Path(f"{rendezvous}-{rank}").read_text()) for rank in range(2)]


def single_process(balancing):
    """Return the balancer and the gradients of one process, with the mean of the terms of both ranks."""
    torch.manual_seed(0)
    shared, head = numbers(1.0, 1.0), numbers(2.0)
    first, second = torch.tensor([1.0, 0.25]).double(), torch.tensor([-1.5, 1.0]).double()
    terms = {"first": (shared * first).sum() + 3.5 * head.sum(), "second": (shared * second).sum() + 5}
    balancer = balancing.build(trained(terms, [shared, head]))
    balancer(terms, ones(terms), plain)
    return balancer, [*shared.grad.tolist(), *head.grad.tolist()]


def test_surgery_combines_the_mean_gradients_and_is_the_same_on_each_rank(results):
    first, second = (rank["PCGrad"]["gradient"] for rank in results)
    assert first == second
    assert first == pytest.approx(single_process(PCGrad())[1])


def test_the_learned_state_is_the_same_on_each_rank(results):
    for name in ("GradNorm", "UncertaintyWeighting"):
        assert results[0][name]["learned"] == results[1][name]["learned"]
        assert results[0][name]["gradient"] != results[1][name]["gradient"]  # DistributedDataParallel averages these
    torch.testing.assert_close(
        torch.tensor(results[0]["UncertaintyWeighting"]["learned"], dtype=torch.float64),
        single_process(UncertaintyWeighting())[0].log_variances.grad,
    )
    torch.testing.assert_close(
        torch.tensor(results[0]["GradNorm"]["learned"], dtype=torch.float64), single_process(GradNorm())[0].factors.grad
    )


def test_a_single_process_does_not_copy_its_gradients():
    gradient = torch.ones(2)
    assert all_reduce_mean(gradient) is gradient
