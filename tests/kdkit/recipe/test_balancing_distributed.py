"""Gradients of several processes are averaged before they are combined, with two processes that talk through gloo."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdkit.recipe.balancing import GradNorm, PCGrad, UncertaintyWeighting
from kdkit.utils.collectives import all_reduce_mean
from tests.helpers.balancing import numbers, ones, plain, trained

ROOT = Path(__file__).parents[3]

PROCESS = """
import json, os, sys
import torch
from torch import distributed, nn
from kdkit.recipe.balancing import GradNorm, PCGrad, TrainedParameters, UncertaintyWeighting
from kdkit.recipe.optim import Optimizer

class Plain:  # one of torch's would import its compiler, which takes seconds
    def __init__(self, params, lr):
        self.params, self.lr = params, lr

    def step(self):
        for each in self.params:
            each.data -= self.lr * each.grad


torch.set_num_threads(1)
meeting, rank = sys.argv[1], int(os.fork() > 0)  # so that torch is imported once
distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
torch.manual_seed(0)
said = {}
for balance in (PCGrad(), GradNorm(optimizer=Optimizer(Plain, lr=0.1)), UncertaintyWeighting()):
    shared, head = (nn.Parameter(torch.tensor(each, dtype=torch.float64)) for each in ([1.0, 1.0], [2.0]))
    mine = torch.tensor([[1.0, 0.5 * rank], [-1.0 - rank, 1.0]], dtype=torch.float64)
    terms = {"one": (shared * mine[0]).sum() + (3 + rank) * head.sum(), "other": (shared * mine[1]).sum() + 5}
    balancer = balance.build(TrainedParameters(labels=("one", "other"), nets=((shared, head),)))
    balancer(terms, {"one": 1.0, "other": 1.0}, lambda total: total)
    found = [getattr(balancer, name, None) for name in ("factors", "log_variances")]
    learned = [each for each in found if each is not None]
    said[type(balance).__name__] = {
        "gradient": [*shared.grad.tolist(), *head.grad.tolist()],
        "learned": [value for each in learned for value in (each if each.grad is None else each.grad).tolist()],
    }
distributed.destroy_process_group()
with open(f"{meeting}-{rank}", "w") as file:
    json.dump(said, file)
if rank:
    os.wait()
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    meeting = tmp_path_factory.mktemp("gloo") / "meeting"
    subprocess.run([sys.executable, "-W", "ignore", "-c", PROCESS, str(meeting)], cwd=ROOT, check=True, timeout=60)
    return [json.loads(Path(f"{meeting}-{rank}").read_text()) for rank in range(2)]


def alone(balance):
    """Return what one process makes of the mean of both."""
    torch.manual_seed(0)
    shared, head = numbers(1.0, 1.0), numbers(2.0)
    first, second = torch.tensor([1.0, 0.25]).double(), torch.tensor([-1.5, 1.0]).double()
    terms = {"one": (shared * first).sum() + 3.5 * head.sum(), "other": (shared * second).sum() + 5}
    balancer = balance.build(trained(terms, [shared, head]))
    balancer(terms, ones(terms), plain)
    return balancer, [*shared.grad.tolist(), *head.grad.tolist()]


def test_surgery_is_done_on_the_mean_of_all_processes_and_is_the_same_on_each(said):
    one, other = (each["PCGrad"]["gradient"] for each in said)
    assert one == other
    assert one == pytest.approx(alone(PCGrad())[1])


def test_what_is_learned_is_the_same_on_each_process(said):
    for name in ("GradNorm", "UncertaintyWeighting"):
        assert said[0][name]["learned"] == said[1][name]["learned"]
        assert said[0][name]["gradient"] != said[1][name]["gradient"]  # left to whoever averages them after backward
    torch.testing.assert_close(
        torch.tensor(said[0]["UncertaintyWeighting"]["learned"], dtype=torch.float64),
        alone(UncertaintyWeighting())[0].log_variances.grad,
    )
    torch.testing.assert_close(
        torch.tensor(said[0]["GradNorm"]["learned"], dtype=torch.float64), alone(GradNorm())[0].factors.grad
    )


def test_one_process_has_its_own_gradients():
    mine = torch.ones(2)
    assert all_reduce_mean(mine) is mine
