"""Tests of the step of the optimizer that `check` tries: errors of the first step are found, and nothing changes."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Match, Net, Optimizer, Recipe, Stage, TorchData, Training, Truth
from kdkit.losses import SoftTargets
from kdkit.recipe.balancing import UncertaintyWeighting
from tests.helpers.tiny import one_stage, plain_goal, same_state, state_of, tiny_net


def lbfgs(params):
    return torch.optim.LBFGS(params)


class Failing(torch.optim.SGD):
    """Raises in its first step, as an optimizer that lacks a kernel for the device does."""

    def step(self, closure=None):
        super().step(closure)
        raise RuntimeError("no kernel for this device\nwith a second line")


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (Optimizer(torch.optim.SparseAdam), "SparseAdam cannot step: SparseAdam does not support dense gradients"),
        (Optimizer(lbfgs), r"LBFGS cannot step: .*closure"),
        (Optimizer(Failing, lr=0.1), "Failing cannot step: no kernel for this device$"),
    ],
)
def test_an_optimizer_that_cannot_step_is_a_problem_of_the_check(optimizer, message):
    net = tiny_net("student")
    before = state_of(net.module)
    plan = kdkit.check(one_stage(net, plain_goal(), optimizer=optimizer))
    (problem,) = plan.problems
    assert re.search(f"^stage 'student': {message}", problem), problem
    assert same_state(before, state_of(net.module))


def test_complex_weights_whose_gradients_would_be_scaled_are_a_problem():
    class Phased(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))

        def forward(self, inputs):
            return super().forward(inputs) * self.phase.real

    recipe = one_stage(Net("student", Phased()), plain_goal())
    (problem,) = kdkit.check(recipe, precision="fp16").problems
    assert "1 trained weights are complex64, such as 'student.phase'; pass precision='bf16'" in problem
    assert not kdkit.check(recipe, precision="bf16").problems


def test_float16_weights_whose_gradients_would_be_scaled_are_a_problem():
    def recipe(dtype):
        module = nn.Linear(4, 3, dtype=dtype)
        return one_stage(kdkit.Net("student", module, view=kdkit.Inputs(dtype=dtype)), plain_goal())

    (problem,) = kdkit.check(recipe(torch.float16), precision="fp16").problems
    assert "2 trained weights are float16, such as 'student.weight'; convert the network with module.float()" in problem
    assert not kdkit.check(recipe(torch.float16)).problems
    assert not kdkit.check(recipe(torch.bfloat16), precision="fp16").problems


@pytest.mark.parametrize(
    "optimizer",
    [
        Optimizer(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
        Optimizer(torch.optim.AdamW, lr=0.1),
        Optimizer(torch.optim.Adafactor, lr=0.1),
        Optimizer(torch.optim.Rprop, lr=0.1),
        Optimizer("lamb", lr=0.1),
        Optimizer("adopt", lr=0.1),
    ],
    ids=repr,
)
def test_a_step_that_is_tried_changes_no_weight_and_no_gradient(optimizer):
    net = tiny_net("student")
    before, random = state_of(net.module), torch.get_rng_state()
    recipe = one_stage(net, plain_goal(), optimizer=optimizer, balancing=UncertaintyWeighting())
    assert kdkit.check(recipe).problems == ()
    assert same_state(before, state_of(net.module))
    assert torch.equal(random, torch.get_rng_state())


def test_a_network_that_changes_what_its_backward_pass_needs_is_refused():
    class Changing(nn.Linear):
        def forward(self, inputs):
            outputs = super().forward(inputs).exp()
            return outputs.add_(1)

    (problem,) = kdkit.check(one_stage(Net("student", Changing(4, 3)), plain_goal())).problems
    assert problem.startswith("stage 'student': the backward pass with WeightedSum() fails: RuntimeError: one of the")


class Plain(torch.optim.Optimizer):
    """Changes all parameters, and needs the gradients of all."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(0.1 * parameter + parameter.grad, alpha=-group["lr"])


def test_an_optimizer_that_needs_the_gradients_of_all_parameters_is_tried_with_them():
    net = tiny_net("student")
    before = state_of(net.module)
    recipe = one_stage(net, plain_goal(), optimizer=Optimizer(Plain, lr=0.1))
    assert kdkit.check(recipe).problems == ()
    assert same_state(before, state_of(net.module))
    kdkit.run(recipe, device="cpu")
    net.module.unused = nn.Parameter(torch.zeros(2))
    (problem,) = kdkit.check(recipe).problems
    assert "Plain cannot step: " in problem


class Words(nn.Module):
    """A bag of words with sparse gradients, which `hidden` computes by a function instead of a module."""

    def __init__(self, *, hidden, dense):
        super().__init__()
        self.hidden = hidden
        self.table = nn.Parameter(torch.randn(10, 3)) if hidden else nn.Embedding(10, 3, sparse=True)
        self.head = nn.Linear(3, 3) if dense else None

    def forward(self, words):
        vectors = F.embedding(words, self.table, sparse=True) if self.hidden else self.table(words)
        return vectors.mean(1) if self.head is None else self.head(vectors.mean(1))


def words_recipe(optimizer, *, hidden=False, dense=False, **options):
    samples = TensorDataset(torch.randint(0, 10, (12, 5)), torch.arange(12) % 3)
    net, teacher = (
        Net("student", Words(hidden=hidden, dense=dense)),
        Net("t", Words(hidden=False, dense=True), trained=True),
    )
    objective = Truth(nn.CrossEntropyLoss()) + Match(teacher, SoftTargets())
    stage = Stage({net: objective}, Training(epochs=1, batch_size=4, optimizer=optimizer, **options))
    return Recipe(data=TorchData(samples, samples), schedule=[stage])


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # of torch 2.11 and earlier
@pytest.mark.parametrize("hidden", [False, True])
def test_an_optimizer_of_sparse_gradients_is_accepted_for_them(hidden):
    recipe = words_recipe(Optimizer(torch.optim.SparseAdam, lr=0.1), hidden=hidden)
    assert kdkit.check(recipe).problems == ()
    kdkit.run(recipe, device="cpu")


def test_an_optimizer_that_does_not_take_the_sparse_gradients_of_a_part_is_refused():
    (problem,) = kdkit.check(words_recipe(Optimizer(torch.optim.Adam, lr=0.1), dense=True)).problems
    assert "Adam cannot step" in problem
    assert "sparse" in problem
    (problem,) = kdkit.check(words_recipe(Optimizer(torch.optim.SparseAdam, lr=0.1), dense=True)).problems
    assert "SparseAdam cannot step" in problem
    assert "; torch.optim.SGD and Adagrad take both" in problem


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # of torch 2.11 and earlier
@pytest.mark.parametrize("balancing", [kdkit.recipe.balancing.PCGrad(), kdkit.recipe.balancing.GradNorm()])
def test_sparse_gradients_are_balanced_and_recorded(balancing):
    recipe = words_recipe(Optimizer(torch.optim.SGD, lr=0.1), dense=True, balancing=balancing)
    result = kdkit.run(recipe, device="cpu", gradients=1)
    assert all(norm > 0 for norm in result.history["student"][0]["gradients"]["norms"].values())


def test_groups_that_leave_out_the_parameters_of_a_loss_are_found_by_the_check():
    student, teacher = tiny_net("student"), tiny_net("teacher", trained=True, hidden=7)
    taps = {"student": kdkit.Tap(student.module.hidden), "target": kdkit.Tap(teacher.module.hidden)}
    objective = Match(teacher, kdkit.losses.Hint(), **taps)

    def groups(named):
        return [{"params": [parameter for name, parameter in named if name.startswith("student.")]}]

    recipe = one_stage(student, objective, optimizer=Optimizer(torch.optim.SGD, lr=0.1, groups=groups))
    (problem,) = kdkit.check(recipe).problems
    assert "its groups leave out 2 of" in problem
