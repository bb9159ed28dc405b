"""Balancers and figures of gradients in real runs: trained, saved, gone on with, refused, and without a trace."""

import inspect
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import SGD, Adam

import kdkit
from kdkit import (
    LinearRamp,
    Match,
    Net,
    Optimizer,
    Recipe,
    RecipeError,
    Stage,
    Tap,
    TorchData,
    Training,
    hookimpl,
)
from kdkit.errors import CheckError
from kdkit.losses import Hint, SoftTargets
from kdkit.recipe.balancing import (
    Balancer,
    Balancing,
    CAGrad,
    GradNorm,
    PCGrad,
    TrainedParameters,
    UncertaintyWeighting,
    WeightedSum,
)
from tests.helpers.stages import Small, data, same, samples, training, truth

BALANCES: dict[str, Callable[[], Any]] = {
    "uncertainty": UncertaintyWeighting,
    "grad_norm": GradNorm,
    "cagrad": CAGrad,
    "pcgrad": PCGrad,
}


def recipe(balance: Any = None, *, objective: Any = None, **changes: Any) -> Recipe:
    """A student of labels, soft targets, and a hint that a projector carries and that comes in gradually."""
    torch.manual_seed(0)
    teacher, student = Net("teacher", Small(8), trained=True), Net("student", Small(4))
    if callable(objective):
        objective = objective(teacher, student)
    hint = Match(teacher, Hint(), student=Tap(student.module.norm), target=Tap(teacher.module.norm))
    objective = objective or truth() + 0.7 * Match(teacher, SoftTargets()) + LinearRamp(start=0, end=1) * hint
    made = balance(student) if inspect.isfunction(balance) else balance
    changes = {"epochs": 3, "optimizer": Optimizer(Adam, lr=0.01), **changes}
    how = training(**changes, **({} if made is None else {"balancing": made}))
    return Recipe(data=data(), schedule=[Stage({student: objective}, how)])


def weights(made: Callable[[], Recipe], **options: Any) -> dict[str, Tensor]:
    return dict(kdkit.run(made, device="cpu", **options).student.module.state_dict())


class Stop:
    """Interrupt a run in an epoch's first step."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    @hookimpl
    def step_ended(self, event: Any) -> None:
        if event.epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", BALANCES)
def test_a_run_gone_on_with_ends_in_the_same_bits(name, tmp_path):
    def made() -> Recipe:
        return recipe(BALANCES[name](), accumulate_steps=2, batch_size=6, max_grad_norm=1.0)

    kdkit.run(made, device="cpu", out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        kdkit.run(made, device="cpu", out=tmp_path / "cut", callbacks=[Stop(2)])
    state = torch.load(tmp_path / "cut" / "1-student" / "state.pt", weights_only=True)
    assert bool(state["work"]["balancer"]) == (name != "cagrad")
    kdkit.run(made, device="cpu", out=tmp_path / "cut", resume=True)
    saved = [load_file(tmp_path / each / "1-student" / "weights.safetensors") for each in ("whole", "cut")]
    assert same(*saved)
    assert saved[0].keys() == Small(4).state_dict().keys()


@pytest.mark.parametrize("name", BALANCES)
def test_each_balance_learns_something_else_and_the_same_each_time(name):
    plain, first, again = (weights(lambda each=each: recipe(each)) for each in (None, *[BALANCES[name]()] * 2))
    assert same(first, again)
    assert not same(first, plain)


def test_the_weighted_sum_is_the_default():
    assert same(weights(recipe), weights(lambda: recipe(WeightedSum())))
    assert Training(epochs=1).balancing == WeightedSum()
    assert "balancing=PCGrad()" in repr(Training(epochs=1, balancing=PCGrad()))  # what a run folder compares


@pytest.mark.parametrize("name", BALANCES)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_balances_work_in_half_precision(name, precision):
    history = kdkit.run(lambda: recipe(BALANCES[name]()), device="cpu", precision=precision).history["student"]
    assert all(math.isfinite(value) for epoch in history for value in epoch["terms"].values())
    assert history[-1]["terms"]["truth"] < history[0]["terms"]["truth"]


@pytest.mark.parametrize("name", BALANCES)
def test_a_stage_of_one_term_is_trained_as_ever(name):
    assert same(
        weights(lambda: recipe(objective=truth())), weights(lambda: recipe(BALANCES[name](), objective=truth()))
    )


@pytest.mark.parametrize("name", BALANCES)
def test_a_stage_of_several_nets_is_balanced(name):
    def made() -> Recipe:
        torch.manual_seed(0)
        teacher, one, two = Net("teacher", Small(8), trained=True), Net("one", Small(4)), Net("two", Small(6))
        objectives = {net: truth() + Match(teacher, SoftTargets()) for net in (one, two)}
        return Recipe(data=data(), schedule=[Stage(objectives, training(balancing=BALANCES[name]()))])

    before = [each.module.state_dict() for each in made().stages[0].objectives]
    result = kdkit.run(made, device="cpu")
    assert len(result.history["one+two"][0]["terms"]) == 4
    assert not any(
        same(net.module.state_dict(), old) for net, old in zip(list(result.nets.values())[1:], before, strict=True)
    )


def test_log_variances_are_trained_by_the_stages_optimizer_under_a_name_of_their_own():
    seen = []

    def groups(named: Any) -> Any:
        named = list(named)
        seen.append([name for name, _ in named])
        own = [each for name, each in named if name.startswith("balance.")]
        rest = [each for name, each in named if not name.startswith("balance.")]
        return [{"params": rest}, *([{"params": own, "lr": 0.5}] if own else [])]

    learned = weights(lambda: recipe(UncertaintyWeighting(), optimizer=Optimizer(Adam, lr=0.01, groups=groups)))
    assert seen[-1][-1] == "balance.log_variances"
    assert not same(learned, weights(lambda: recipe(UncertaintyWeighting())))


def test_groups_that_leave_out_log_variances_are_refused_before_the_first_step():
    def groups(named: Any) -> Any:
        return [{"params": [each for name, each in named if name.startswith(("student.", "losses."))]}]

    with pytest.raises(CheckError, match=r"its groups leave out 1 of \d+ parameters, 'balance.log_variances' first"):
        kdkit.run(lambda: recipe(UncertaintyWeighting(), optimizer=Optimizer(Adam, groups=groups)), device="cpu")


# Somebody else's


class Halved(Balancer):
    """Learn from half of the sum, and count how often."""

    def __init__(self, trained: TrainedParameters) -> None:
        self.labels, self.count = trained.labels, 0

    def __call__(self, terms: Mapping[str, Tensor], weights: Mapping[str, float], scale: Any) -> None:
        self.count += 1
        scale(sum(terms[label] * weights[label] / 2 for label in self.labels)).backward()

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self.count = state["count"]


class Halving(Balancing):
    """A way of balancing that is none of kdkit's."""

    def __init__(self) -> None:
        self.made: list[Halved] = []

    def build(self, trained: TrainedParameters) -> Halved:
        self.made.append(Halved(trained))
        return self.made[-1]


def test_a_balancer_of_ones_own_sets_the_gradients_and_is_gone_on_with(tmp_path):
    halving = Halving()
    assert isinstance(halving, Balancing)
    halved = weights(lambda: recipe(halving, epochs=1, optimizer=Optimizer(SGD, lr=0.2)))
    assert isinstance(halving.made[-1], Balancer)
    assert [each.count for each in halving.made] == [1, 4]  # the check's, then the stage's
    torch.testing.assert_close(halved, weights(lambda: recipe(epochs=1, optimizer=Optimizer(SGD, lr=0.1))))
    with pytest.raises(KeyboardInterrupt):
        kdkit.run(lambda: recipe(Halving()), device="cpu", out=tmp_path / "run", callbacks=[Stop(2)])
    again = Halving()
    kdkit.run(lambda: recipe(again), device="cpu", out=tmp_path / "run", resume=True)
    assert again.made[-1].count == 12


# What is refused


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (PCGrad, "got the class PCGrad; did you forget its ()?"),
        (
            "pcgrad",
            "balancing is WeightedSum.., PCGrad.. or another subclass of Balancing with build.trained.; got 'pcgrad'",
        ),
        (0.5, "got 0.5"),
        (None, "got None"),
        (lambda terms, weights, scale: None, "got <function"),
        (Hint(), "got Hint"),
    ],
)
def test_what_cannot_balance_is_refused(wrong, said):
    with pytest.raises(RecipeError, match=said):
        Training(epochs=1, balancing=wrong)


def hinted(teacher: Net[Any], student: Net[Any]) -> Any:
    return truth() + Match(teacher, Hint(), student=Tap(student.module.body), target=Tap(teacher.module.body))


class Nothing(Balancing):
    """What has build and gives no balancer."""

    def build(self, trained: TrainedParameters) -> Any:
        return lambda terms, weights, scale: None


class Breaking(Nothing):
    """What gives a balancer that fails."""

    def build(self, trained: TrainedParameters) -> Any:
        class Broken(WeightedSum):
            def __call__(self, terms: Any, weights: Any, scale: Any) -> None:
                raise ValueError("on purpose")

        return Broken()


REFUSED: dict[str, tuple[Any, str]] = {
    "another layer": (GradNorm(layer=nn.Linear(2, 2)), "norms on a Linear of which this stage trains nothing"),
    "a layer past one term": (lambda net: GradNorm(layer=net.module.head), "term .* does not reach the layer"),
    "an optimizer": (GradNorm(optimizer=Optimizer(SGD, lr=-1.0)), "cannot be made"),
    "no balancer": (Nothing(), "returns a Balancer, which is called with terms"),
    "a broken one": (Breaking(), "cannot balance this stage: ValueError: on purpose"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_balance_that_does_not_fit_its_stage_is_refused_before_the_first_step(case, tmp_path):
    balance, said = REFUSED[case]
    with pytest.raises(CheckError, match=said):
        kdkit.run(lambda: recipe(balance, objective=hinted), device="cpu", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_layer_that_all_terms_reach_is_taken():
    balance = GradNorm
    assert kdkit.run(lambda: recipe(lambda net: balance(layer=net.module.body), objective=hinted), device="cpu").history


@pytest.mark.parametrize("name", BALANCES)
def test_a_check_leaves_no_trace(name):
    made = recipe(BALANCES[name]())
    net = next(iter(made.stages[0].objectives))
    before = {key: value.clone() for key, value in net.module.state_dict().items()}
    random = torch.get_rng_state()
    plan = kdkit.check(made)
    assert plan.problems == ()
    assert same(before, net.module.state_dict())
    assert torch.equal(random, torch.get_rng_state())
    assert all(each.grad is None for each in net.module.parameters())
    assert not any(each._forward_hooks for each in net.module.modules())


@pytest.mark.parametrize("name", BALANCES)
def test_a_run_that_compiles_refuses_what_takes_each_gradient_apart(name, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module: module)
    made = recipe(BALANCES[name](), epochs=1)
    if name == "uncertainty":
        assert kdkit.run(made, device="cpu", compile=True).history
        return
    with pytest.raises(
        RecipeError, match=r"stage 'student': \w+ differentiates each term separately.* without compile"
    ):
        kdkit.run(made, device="cpu", compile=True)


# Figures of gradients


class Listener:
    """A watcher that keeps what it is told of epochs."""

    def __init__(self) -> None:
        self.epochs: list[Any] = []

    @hookimpl
    def epoch_ended(self, event: Any) -> None:
        self.epochs.append(event)


@pytest.mark.parametrize("balance", [None, PCGrad()], ids=["sum", "pcgrad"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_looking_at_gradients_changes_no_bit(balance, precision):
    def made() -> Recipe:
        return recipe(balance, accumulate_steps=2, batch_size=5, max_grad_norm=1.0)

    plain, looked = (
        kdkit.run(made, device="cpu", precision=precision, gradients=every, callbacks=[Listener()]) for every in (0, 1)
    )
    assert same(plain.student.module.state_dict(), looked.student.module.state_dict())
    for mine, theirs in zip(plain.history["student"], looked.history["student"], strict=True):
        assert mine["terms"] == theirs["terms"]
        assert "gradients" not in mine
        assert set(theirs["gradients"]) == {"norms", "cosines"}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_figures_are_those_of_autograd_by_hand(accumulate):
    torch.manual_seed(0)
    teacher, student = nn.Linear(6, 3), nn.Linear(6, 3)
    inputs, labels = samples(16).tensors
    truth_, kd_loss = nn.CrossEntropyLoss(), SoftTargets()
    output = student(inputs)
    by_hand = [
        torch.cat(
            [each.reshape(-1) for each in torch.autograd.grad(term, list(student.parameters()), retain_graph=True)]
        )
        for term in (0.3 * truth_(output, labels), 0.7 * kd_loss(output, teacher(inputs).detach()))
    ]
    nets = Net("teacher", teacher, trained=True), Net("student", student)
    objective = 0.3 * truth() + 0.7 * Match(nets[0], kd_loss)
    how = training(epochs=1, batch_size=16 // accumulate, accumulate_steps=accumulate)
    made = Recipe(data=TorchData(samples(16), samples(6, 1)), schedule=[Stage({nets[1]: objective}, how)])
    listener = Listener()
    result = kdkit.run(made, device="cpu", gradients=1, callbacks=[listener])
    found = result.history["student"][0]["gradients"]
    norms = {"truth": by_hand[0].norm().item(), "teacher/soft_targets": by_hand[1].norm().item()}
    assert found["norms"] == pytest.approx(norms, rel=1e-5)
    cosine = torch.cosine_similarity(*by_hand, dim=0).item()
    assert found["cosines"] == pytest.approx({"truth | teacher/soft_targets": cosine}, rel=1e-5)
    assert listener.epochs[0].gradients == found
    listener.epochs[0].gradients["norms"].clear()
    assert found["norms"]


def test_an_epoch_in_which_no_update_is_looked_at_says_nothing(tmp_path):
    listener = Listener()
    options = {"device": "cpu", "out": tmp_path / "run", "gradients": 8, "callbacks": [listener]}
    history = kdkit.run(recipe, **options).history["student"]  # four updates an epoch
    assert ["gradients" in epoch for epoch in history] == [True, False, True]
    assert [event.gradients is None for event in listener.epochs] == [False, True, False]
    lines = [json.loads(line) for line in (tmp_path / "run" / "1-student" / "history.jsonl").read_text().splitlines()]
    assert lines[2]["gradients"] == history[2]["gradients"]
    hint = "teacher/hint"
    assert lines[0]["gradients"]["norms"][hint] == 0  # its ramp begins at 0
    assert lines[0]["gradients"]["cosines"][f"truth | {hint}"] is None


def test_a_run_gone_on_with_looks_at_the_same_updates(tmp_path):
    options = {"device": "cpu", "gradients": 3}
    whole = kdkit.run(recipe, **options).history["student"]
    with pytest.raises(KeyboardInterrupt):
        kdkit.run(recipe, out=tmp_path / "cut", callbacks=[Stop(1)], **options)
    cut = kdkit.run(recipe, out=tmp_path / "cut", resume=True, **options).history["student"]
    assert [epoch["gradients"]["norms"] for epoch in cut] == [epoch["gradients"]["norms"] for epoch in whole]


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "all"])
def test_a_count_of_updates_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(RecipeError, match="gradients is a whole number of updates, 0 for never"):
        kdkit.RunOptions(gradients=wrong)


RECIPE = '''
"""One net that learns from labels."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

from kdkit import Net, Recipe, Stage, TorchData, Training, Truth


def recipe() -> Recipe:
    samples = TensorDataset(torch.randn(8, 4), torch.arange(8) % 2)
    stage = Stage({Net("net", nn.Linear(4, 2)): Truth(nn.CrossEntropyLoss())}, Training(epochs=1, batch_size=4))
    return Recipe(data=TorchData(samples, samples), schedule=[stage])
'''


def test_the_command_line_asks_for_figures(kdkit_here, tmp_path):
    (tmp_path / "one.py").write_text(RECIPE)
    said = kdkit_here("run", "one.py", "--gradients", 2, "--out", "run", "--quiet")
    assert (said.code, said.err) == (0, "")
    line = json.loads((tmp_path / "run" / "1-net" / "history.jsonl").read_text())
    assert list(line["gradients"]["norms"]) == ["truth"]
    assert line["gradients"]["cosines"] == {}
    assert kdkit_here("run", "one.py", "--gradients", -1).code == 2


def test_gradients_of_a_compiled_lesson_are_refused():
    with pytest.raises(RecipeError, match="leave out compile or gradients"):
        kdkit.RunOptions(gradients=1, compile=True)
