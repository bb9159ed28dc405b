"""Balancers and gradient statistics in whole runs: trained, checkpointed, resumed, and refused."""

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
from tests.helpers.callbacks import KillAtStep, Recorder, kill_run, killed_and_resumed
from tests.helpers.stages import Small, assert_same_results, data, last_checkpoint, same, samples, training, truth

BALANCINGS: dict[str, Callable[[], Any]] = {
    "uncertainty": UncertaintyWeighting,
    "grad_norm": GradNorm,
    "cagrad": CAGrad,
    "pcgrad": PCGrad,
}


def recipe(balancing: Any = None, *, objective: Any = None, **changes: Any) -> Recipe:
    """Return a recipe of a student that learns from labels, soft targets, and a projected hint that is ramped up."""
    torch.manual_seed(0)
    teacher, student = Net("teacher", Small(8), trained=True), Net("student", Small(4))
    if callable(objective):
        objective = objective(teacher, student)
    hint = Match(teacher, Hint(), student=Tap(student.module.norm), target=Tap(teacher.module.norm))
    objective = objective or truth() + 0.7 * Match(teacher, SoftTargets()) + LinearRamp(start=0, end=1) * hint
    if inspect.isfunction(balancing):  # GradNorm needs a layer of the student
        balancing = balancing(student)
    changes = {"epochs": 3, "optimizer": Optimizer(Adam, lr=0.01), **changes}
    if balancing is not None:
        changes["balancing"] = balancing
    return Recipe(data=data(), schedule=[Stage({student: objective}, training(**changes))])


def weights(make: Callable[[], Recipe], **options: Any) -> dict[str, Tensor]:
    return dict(kdkit.run(make, device="cpu", **options).student.module.state_dict())


@pytest.mark.parametrize("name", BALANCINGS)
def test_a_resumed_run_ends_in_the_same_bits(name, tmp_path):
    def make() -> Recipe:
        return recipe(BALANCINGS[name](), accumulate_steps=2, batch_size=6, max_grad_norm=1.0)

    kill_run(make, tmp_path / "run", KillAtStep(2), device="cpu")
    state = last_checkpoint(tmp_path / "run" / "1-student")
    assert bool(state["train_state"]["balancer"]) == (name != "cagrad")  # the only one without a state
    resumed = kdkit.run(make, device="cpu", out=tmp_path / "run", resume=True)
    assert_same_results(resumed, kdkit.run(make, device="cpu"))
    saved = load_file(tmp_path / "run" / "1-student" / "weights.safetensors")
    assert saved.keys() == Small(4).state_dict().keys()  # without the projector and the balancer


@pytest.mark.parametrize("name", BALANCINGS)
def test_a_balancer_changes_the_weights_and_always_to_the_same_ones(name):
    balancing = BALANCINGS[name]()
    plain, first, again = (weights(lambda used=used: recipe(used)) for used in (None, balancing, balancing))
    assert same(first, again)
    assert not same(first, plain)


def test_the_weighted_sum_is_the_default():
    assert same(weights(recipe), weights(lambda: recipe(WeightedSum())))
    assert Training(epochs=1).balancing == WeightedSum()
    assert "balancing=PCGrad()" in repr(Training(epochs=1, balancing=PCGrad()))  # a run folder compares this text


@pytest.mark.parametrize("name", BALANCINGS)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_balancers_work_in_half_precision(name, precision):
    history = kdkit.run(lambda: recipe(BALANCINGS[name]()), device="cpu", precision=precision).history["student"]
    assert all(math.isfinite(value) for epoch in history for value in epoch["terms"].values())
    assert history[-1]["terms"]["truth"] < history[0]["terms"]["truth"]


@pytest.mark.parametrize("name", BALANCINGS)
def test_a_balancer_changes_nothing_in_a_stage_of_one_term(name):
    assert same(
        weights(lambda: recipe(objective=truth())), weights(lambda: recipe(BALANCINGS[name](), objective=truth()))
    )


@pytest.mark.parametrize("name", BALANCINGS)
def test_a_stage_of_several_nets_can_be_balanced(name):
    def make() -> Recipe:
        torch.manual_seed(0)
        teacher, students = Net("teacher", Small(8), trained=True), (Net("one", Small(4)), Net("two", Small(6)))
        objectives = {net: truth() + Match(teacher, SoftTargets()) for net in students}
        return Recipe(data=data(), schedule=[Stage(objectives, training(balancing=BALANCINGS[name]()))])

    before = [net.module.state_dict() for net in make().stages[0].objectives]
    result = kdkit.run(make, device="cpu")
    assert len(result.history["one+two"][0]["terms"]) == 4
    trained = list(result.nets.values())[1:]  # the first is the teacher
    assert not any(same(net.module.state_dict(), initial) for net, initial in zip(trained, before, strict=True))


def test_the_optimizer_of_the_stage_trains_the_log_variances_under_their_name():
    seen = []

    def groups(named: Any) -> Any:
        named = list(named)
        seen.append([name for name, _ in named])
        log_variances = [parameter for name, parameter in named if name.startswith("balance.")]
        rest = [parameter for name, parameter in named if not name.startswith("balance.")]
        return [{"params": rest}, *([{"params": log_variances, "lr": 0.5}] if log_variances else [])]

    learned = weights(lambda: recipe(UncertaintyWeighting(), optimizer=Optimizer(Adam, lr=0.01, groups=groups)))
    assert seen[-1][-1] == "balance.log_variances"
    assert not same(learned, weights(lambda: recipe(UncertaintyWeighting())))


def test_groups_that_leave_out_log_variances_are_refused_before_the_first_step():
    def groups(named: Any) -> Any:
        names = ("student.", "losses.")  # and not "balance."
        return [{"params": [parameter for name, parameter in named if name.startswith(names)]}]

    with pytest.raises(CheckError, match=r"its groups leave out 1 of \d+ parameters, 'balance.log_variances' first"):
        kdkit.run(lambda: recipe(UncertaintyWeighting(), optimizer=Optimizer(Adam, groups=groups)), device="cpu")


# User-defined balancers


class Halved(Balancer):
    """A balancer that halves the sum of the terms and counts its calls."""

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
    """Balancing of a class that kdkit does not know."""

    def __init__(self) -> None:
        self.built: list[Halved] = []

    def build(self, trained: TrainedParameters) -> Halved:
        self.built.append(Halved(trained))
        return self.built[-1]


def test_a_user_defined_balancer_sets_the_gradients_and_resumes(tmp_path):
    halving = Halving()
    assert isinstance(halving, Balancing)
    halved = weights(lambda: recipe(halving, epochs=1, optimizer=Optimizer(SGD, lr=0.2)))
    assert isinstance(halving.built[-1], Balancer)
    assert [balancer.count for balancer in halving.built] == [1, 4]  # of the check, then of the stage
    # Half of the gradient with twice the learning rate is the same update of SGD.
    torch.testing.assert_close(halved, weights(lambda: recipe(epochs=1, optimizer=Optimizer(SGD, lr=0.1))))
    kill_run(lambda: recipe(Halving()), tmp_path / "run", KillAtStep(2), device="cpu")
    again = Halving()
    kdkit.run(lambda: recipe(again), device="cpu", out=tmp_path / "run", resume=True)
    assert again.built[-1].count == 12  # the 8 calls of the finished epochs come from the checkpoint


# Errors


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (PCGrad, "got the class PCGrad; did you forget its ()?"),
        (
            "pcgrad",
            "balancing must be WeightedSum.., PCGrad.. or another subclass of Balancing with build.trained.; "
            "got 'pcgrad'",
        ),
        (0.5, "got 0.5"),
        (None, "got None"),
        (lambda terms, weights, scale: None, "got <function"),
        (Hint(), "got Hint"),
    ],
)
def test_an_object_that_cannot_balance_is_refused(wrong, message):
    with pytest.raises(RecipeError, match=message):
        Training(epochs=1, balancing=wrong)


def hinted(teacher: Net[Any], student: Net[Any]) -> Any:
    return truth() + Match(teacher, Hint(), student=Tap(student.module.body), target=Tap(teacher.module.body))


class Nothing(Balancing):
    """Balancing whose `build` returns no balancer."""

    def build(self, trained: TrainedParameters) -> Any:
        return lambda terms, weights, scale: None


class Breaking(Nothing):
    """Balancing whose balancer fails."""

    def build(self, trained: TrainedParameters) -> Any:
        class Broken(WeightedSum):
            def __call__(self, terms: Any, weights: Any, scale: Any) -> None:
                raise ValueError("on purpose")

        return Broken()


REFUSED: dict[str, tuple[Any, str]] = {
    "another layer": (GradNorm(layer=nn.Linear(2, 2)), "norms for a Linear, but this stage trains no parameter of it"),
    "a layer past one term": (lambda net: GradNorm(layer=net.module.head), "term .* does not reach the layer"),
    "an optimizer": (GradNorm(optimizer=Optimizer(SGD, lr=-1.0)), "cannot be created"),
    "no balancer": (Nothing(), "must return a Balancer, which is called with losses"),
    "a broken one": (Breaking(), "Breaking object at .* fails: ValueError: on purpose"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_balancing_that_does_not_fit_its_stage_is_refused_before_the_first_step(case, tmp_path):
    balancing, message = REFUSED[case]
    with pytest.raises(CheckError, match=message):
        kdkit.run(lambda: recipe(balancing, objective=hinted), device="cpu", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_gradnorm_accepts_a_layer_that_all_terms_reach():
    make = lambda: recipe(lambda net: GradNorm(layer=net.module.body), objective=hinted)  # noqa: E731  # read once
    assert kdkit.run(make, device="cpu").history


@pytest.mark.parametrize("name", BALANCINGS)
def test_a_check_changes_nothing(name):
    checked = recipe(BALANCINGS[name]())
    net = next(iter(checked.stages[0].objectives))
    before = {key: value.clone() for key, value in net.module.state_dict().items()}
    random = torch.get_rng_state()
    plan = kdkit.check(checked)
    assert plan.problems == ()
    assert same(before, net.module.state_dict())
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in net.module.parameters())
    assert not any(module._forward_hooks for module in net.module.modules())


@pytest.mark.parametrize("name", BALANCINGS)
def test_a_compiled_run_refuses_balancers_that_need_the_gradient_of_each_term(name, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module: module)  # it would take seconds, and is not the subject
    compiled = recipe(BALANCINGS[name](), epochs=1)
    if name == "uncertainty":
        assert kdkit.run(compiled, device="cpu", compile=True).history
        return
    with pytest.raises(RecipeError, match=r"stage 'student': \w+ needs the gradient of each term.* without compile"):
        kdkit.run(compiled, device="cpu", compile=True)


# Gradient statistics


@pytest.mark.parametrize("balancing", [None, PCGrad()], ids=["sum", "pcgrad"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradient_statistics_change_no_bit_of_a_run(balancing, precision):
    def make() -> Recipe:
        return recipe(balancing, accumulate_steps=2, batch_size=5, max_grad_norm=1.0)

    plain, measured = (
        kdkit.run(make, device="cpu", precision=precision, gradients=every, callbacks=[Recorder()]) for every in (0, 1)
    )
    assert same(plain.student.module.state_dict(), measured.student.module.state_dict())
    for without, epoch in zip(plain.history["student"], measured.history["student"], strict=True):
        assert without["terms"] == epoch["terms"]
        assert "gradients" not in without
        assert set(epoch["gradients"]) == {"norms", "cosines"}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_norms_and_cosines_equal_those_of_autograd(accumulate):
    torch.manual_seed(0)
    teacher, student = nn.Linear(6, 3), nn.Linear(6, 3)
    inputs, labels = samples(16).tensors
    kd_loss, output = SoftTargets(), student(inputs)
    terms = 0.3 * nn.functional.cross_entropy(output, labels), 0.7 * kd_loss(output, teacher(inputs).detach())
    gradients = [torch.autograd.grad(term, list(student.parameters()), retain_graph=True) for term in terms]
    expected = [torch.cat([part.reshape(-1) for part in parts]) for parts in gradients]  # one vector per term
    nets = Net("teacher", teacher, trained=True), Net("student", student)
    objective = 0.3 * truth() + 0.7 * Match(nets[0], kd_loss)
    options = training(epochs=1, batch_size=16 // accumulate, accumulate_steps=accumulate)
    measured = Recipe(data=TorchData(samples(16), samples(6, 1)), schedule=[Stage({nets[1]: objective}, options)])
    recorder = Recorder()
    result = kdkit.run(measured, device="cpu", gradients=1, callbacks=[recorder])
    figures = result.history["student"][0]["gradients"]
    norms = {"truth": expected[0].norm().item(), "teacher/soft_targets": expected[1].norm().item()}
    assert figures["norms"] == pytest.approx(norms, rel=1e-5)
    cosine = torch.cosine_similarity(*expected, dim=0).item()
    assert figures["cosines"] == pytest.approx({"truth | teacher/soft_targets": cosine}, rel=1e-5)
    assert recorder.epochs[0].gradients == figures
    recorder.epochs[0].gradients["norms"].clear()  # a callback has a copy
    assert figures["norms"]


def test_an_epoch_without_a_measured_update_has_no_gradient_statistics(tmp_path):
    recorder = Recorder()
    options = {"device": "cpu", "out": tmp_path / "run", "gradients": 8, "callbacks": [recorder]}
    history = kdkit.run(recipe, **options).history["student"]  # four updates an epoch
    assert ["gradients" in epoch for epoch in history] == [True, False, True]
    assert [event.gradients is None for event in recorder.epochs] == [False, True, False]
    lines = [json.loads(line) for line in (tmp_path / "run" / "1-student" / "history.jsonl").read_text().splitlines()]
    assert lines[2]["gradients"] == history[2]["gradients"]
    hint = "teacher/hint"
    assert lines[0]["gradients"]["norms"][hint] == 0  # its ramp begins at 0, and a cosine with 0 is undefined
    assert lines[0]["gradients"]["cosines"][f"truth | {hint}"] is None


def test_a_resumed_run_measures_the_same_updates(tmp_path):
    options = {"device": "cpu", "gradients": 3}
    whole = kdkit.run(recipe, **options).history["student"]
    cut = killed_and_resumed(recipe, tmp_path / "cut", KillAtStep(1), **options).history["student"]
    assert [epoch["gradients"]["norms"] for epoch in cut] == [epoch["gradients"]["norms"] for epoch in whole]


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "all"])
def test_an_invalid_number_of_updates_is_refused(wrong):
    with pytest.raises(RecipeError, match="gradients must be an integer of at least 0"):
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


def test_an_option_of_the_command_line_turns_gradient_statistics_on(kdkit_here, tmp_path):
    (tmp_path / "one.py").write_text(RECIPE)
    done = kdkit_here("run", "one.py", "--gradients", 2, "--out", "run", "--quiet")
    assert (done.code, done.err) == (0, "")
    line = json.loads((tmp_path / "run" / "1-net" / "history.jsonl").read_text())
    assert list(line["gradients"]["norms"]) == ["truth"]
    assert line["gradients"]["cosines"] == {}
    assert kdkit_here("run", "one.py", "--gradients", -1).code == 2


def test_gradient_statistics_of_a_compiled_run_are_refused():
    with pytest.raises(RecipeError, match="leave out compile or gradients"):
        kdkit.RunOptions(gradients=1, compile=True)
