"""A compiled DistillationModule computes the terms of the plain one, is compiled once, and its taps fire."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.utils import counters
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Batch, CosineRamp, Match, Net, Recipe, Stage, Tap, TorchData, Training, Truth
from kdkit.data.dataset import Data
from kdkit.engine.stage.open_stage import OpenStage
from kdkit.losses import Hint, PerLabelSoftTargets, SoftTargets
from kdkit_ecg import Leads, LRHNet, SEResNet, Synthetic
from tests.helpers.datasets import Rows
from tests.helpers.open_stages import open_and_build

CLASSES = 3
ROWS = 22
SIZE = 8  # so that the last batch of an epoch has 6 samples

Backend = Callable[[fx.GraphModule, list[Tensor]], Callable[..., Any]]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.manual_seed(0)
    torch.compiler.reset()  # dynamo caches compiled code by code object, which all tests share
    counters.clear()
    yield
    torch.compiler.reset()


class Graphs:
    """A backend that runs graphs as they are, and counts the graphs."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


class Net1d(nn.Module):
    """A convolution, a norm, an in-place ReLU and a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, width, 3, padding=1)
        self.norm = nn.BatchNorm1d(width)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, signal: Tensor) -> Tensor:
        return self.head(self.relu(self.norm(self.conv(signal))).mean(-1))


class Aged(nn.Module):
    """A Net1d with a second input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = Net1d(width)
        self.age = nn.Linear(1, CLASSES)

    def forward(self, signal: Tensor, age: Tensor) -> Tensor:
        return self.body(signal) + self.age(age)


class SignalAndAge(NamedTuple):
    signal: Tensor
    age: Tensor


def objective(teacher: Net[Any], student: Net[Any], layers: tuple[nn.Module, nn.Module]) -> Any:
    """Return an objective of labels, soft targets, and a hint on the output of norms that a ReLU changes in place."""
    hint = Match(teacher, Hint(), student=Tap(layers[0]), target=Tap(layers[1]))
    return Truth(nn.CrossEntropyLoss()) + 0.5 * Match(teacher, SoftTargets()) + CosineRamp() * hint


def plain() -> tuple[Stage, Data]:
    data = TensorDataset(torch.randn(ROWS, 2, 16), torch.arange(ROWS) % CLASSES)
    teacher, student = Net("teacher", Net1d(6), trained=True), Net("student", Net1d(4))
    layers = (student.module.norm, teacher.module.norm)
    return Stage({student: objective(teacher, student, layers)}, training()), TorchData(data, data)


def aged(structure: Callable[[Tensor, Tensor], Any]) -> tuple[Stage, Data]:
    rows = Rows([(structure(torch.randn(2, 16), torch.rand(1)), row % CLASSES) for row in range(ROWS)])
    teacher, student = Net("teacher", Aged(6), trained=True), Net("student", Aged(4))
    layers = (student.module.body.norm, teacher.module.body.norm)
    data = TorchData(rows, rows, classes=[str(label) for label in range(CLASSES)], draws=1)
    return Stage({student: objective(teacher, student, layers)}, training()), data


def leads() -> tuple[Stage, Data]:
    teacher = Net("teacher", SEResNet(leads=12, width=16), view=Leads(12), trained=True)
    student = Net("student", LRHNet(leads=3, width=8), view=Leads(3))
    hint = Match(teacher, Hint(), student=Tap(student.module.block3), target=Tap(teacher.module.group1))
    truth = Truth(nn.BCEWithLogitsLoss())
    return (
        Stage({student: truth + Match(teacher, PerLabelSoftTargets()) + 0.5 * hint}, training()),
        Synthetic(train=ROWS, validation=8, test=8, length=128),
    )


def training() -> Training:
    return Training(epochs=2, batch_size=SIZE)


CASES: dict[str, Callable[[], tuple[Stage, Data]]] = {
    "tensor": plain,
    "tuple": lambda: aged(lambda signal, age: (signal, age)),
    "named tuple": lambda: aged(SignalAndAge),
    # In another order than the parameters of forward: a dict is passed by its keys.
    "dict": lambda: aged(lambda signal, age: {"age": age, "signal": signal}),
    "leads": leads,
}


@pytest.fixture(params=CASES)
def open_stage(request: pytest.FixtureRequest) -> Iterator[tuple[OpenStage, Data]]:
    stage, data = CASES[request.param]()
    opened = open_and_build(stage, data, data.train.batch(torch.arange(2), 0))
    yield opened, data  # with open taps, which stay open for all steps of a stage
    opened.close()


def chunks(data: Data, epoch: int) -> Iterator[Batch]:
    for rows in torch.arange(ROWS).split(SIZE):
        # The number of the draw changes in each epoch: it must not be a constant of the graph.
        yield dataclasses.replace(data.train.batch(rows, 0), draw=epoch)


def values(opened: OpenStage, compiled: Any, data: Data) -> list[Tensor]:
    """Return the terms and gradients of two epochs of steps, with a validation after each, as the engine does."""
    results: list[Tensor] = []
    module = opened.module
    for epoch in range(2):
        module.train()
        for batch in chunks(data, epoch):
            terms = compiled(batch, opened.teacher_outputs(batch))
            sum(terms.values()).backward()
            gradients = [parameter.grad for parameter in module.parameters()]
            results += [*terms.values(), *(gradient for gradient in gradients if gradient is not None)]
            module.zero_grad()
        module.students[0].network.eval()
        with torch.no_grad():
            results.append(module.students[0](batch))
        module.open_taps.begin_pass()  # of the features of the validation
    return [result.detach().clone() for result in results]


# Each structure is compiled twice: the suite has time for the simplest one. The networks for ECGs alone are compiled in
# tests/kdkit_ecg/models.
@pytest.mark.parametrize(
    "open_stage",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "tensor")) for name in CASES],
    indirect=True,
)
def test_whole_and_smaller_batches_are_compiled_without_a_graph_break(open_stage):
    opened, data = open_stage
    before = copy.deepcopy(opened.module.state_dict())
    expected = values(opened, opened.module, data)
    opened.module.load_state_dict(before)
    graphs = Graphs()
    compiled = torch.compile(opened.module, backend=graphs, fullgraph=True)
    agree(values(opened, compiled, data), expected)
    assert graphs.count <= 3  # a whole batch, a smaller one, and at most one of any size
    assert not counters["graph_break"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        values(opened, compiled, data)


@pytest.mark.parametrize("open_stage", [pytest.param("tensor", marks=pytest.mark.slow), "dict"], indirect=True)
def test_compiled_gradients_equal_the_plain_ones(open_stage):
    opened, data = open_stage
    before = copy.deepcopy(opened.module.state_dict())
    expected = values(opened, opened.module, data)
    opened.module.load_state_dict(before)
    agree(values(opened, torch.compile(opened.module, backend="aot_eager", fullgraph=True), data), expected)


def agree(actual: list[Tensor], expected: list[Tensor], rtol: float = 1e-4, atol: float = 1e-5) -> None:
    assert any(value.abs().sum() > 0 for value in expected)  # zeros would agree without a test
    for value, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=rtol, atol=atol)


@pytest.mark.parametrize("open_stage", ["tensor", "named tuple"], indirect=True)
def test_compiled_taps_capture_the_features_of_the_plain_module(open_stage):
    opened, data = open_stage
    features: list[tuple[Tensor, Tensor]] = []
    term = next(term for term in opened.module.terms if isinstance(term.loss, Hint))

    def record(_loss: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
        features.append((inputs[0].detach().clone(), inputs[1].clone()))

    batch = next(chunks(data, 0))
    teacher_outputs = opened.teacher_outputs(batch)
    opened.module.eval()  # so that running statistics do not change between the two calls
    term.loss.register_forward_pre_hook(record)
    opened.module(batch, teacher_outputs)
    torch.compile(opened.module, backend="eager")(batch, teacher_outputs)
    (plain_student, plain_teacher), (student, teacher) = features
    torch.testing.assert_close(student, plain_student)
    torch.testing.assert_close(teacher, plain_teacher, rtol=0, atol=0)
    if hasattr(opened.module.students[0].module, "relu"):
        assert (student < 0).any()  # the output of the norm, not of the in-place ReLU


@pytest.mark.parametrize("open_stage", ["tensor", "tuple"], indirect=True)
def test_features_are_released_after_each_step(open_stage):
    opened, data = open_stage
    for module in (opened.module, torch.compile(opened.module, backend="eager")):
        batch = next(chunks(data, 0))
        module(batch, opened.teacher_outputs(batch))
        taps = opened.module.open_taps
        assert taps.unfired() == list(taps.taps)


def all_arguments(student: Tensor, target: Tensor, *, labels: Tensor, ids: Tensor, progress: Tensor) -> Tensor:
    """A loss with all arguments that a loss can have."""
    weights = (ids % 2 + labels + 1).unsqueeze(1)
    return (weights * (student - target).square()).mean() * (1 + progress)


def test_a_loss_with_labels_ids_and_progress_is_compiled_once_while_progress_changes():
    stage, data = plain()
    (student,) = stage.objectives
    (teacher,) = stage.teachers
    opened = open_and_build(
        Stage({student: 1.0 * Match(teacher, all_arguments)}, training()), data, next(chunks(data, 0))
    )
    graphs = Graphs()
    compiled = torch.compile(opened.module, backend=graphs, fullgraph=True)
    batch = next(chunks(data, 0))
    teacher_outputs = opened.teacher_outputs(batch)
    terms = []
    opened.module.eval()
    for progress in (0.0, 0.25, 1.0):
        opened.module.progress.fill_(progress)
        terms.append(float(compiled(batch, teacher_outputs)["teacher/all_arguments"].detach()))
    opened.close()
    assert graphs.count == 1  # progress is a tensor; a number would be a constant of the graph
    assert terms == pytest.approx([terms[0], 1.25 * terms[0], 2 * terms[0]])


@pytest.mark.parametrize("fullgraph", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_compiled_distiller_is_not_compiled_again_while_its_progress_changes(fullgraph):
    stage, data = plain()
    ((student, terms),) = stage.objectives.items()
    batch = next(chunks(data, 0))
    graphs, counts, losses = Graphs(), [], []
    with kdkit.Distiller(student, terms, (batch.inputs, batch.labels)) as distiller:
        distiller.eval()  # the statistics of batch norm change in training
        compiled = torch.compile(distiller, backend=graphs, fullgraph=fullgraph)
        for progress in (0.0, 0.2, 0.5, 0.7, 0.9):
            if fullgraph:
                distiller.set_progress(progress)
            loss = compiled(batch.inputs, batch.labels, **({} if fullgraph else {"progress": progress})).loss
            counts.append(graphs.count)
            losses.append((loss.detach(), distiller(batch.inputs, batch.labels, progress=progress).loss.detach()))
    assert counts[2:] == [counts[1]] * 3  # a number is a constant of a graph at first, then an input
    torch.testing.assert_close(*map(torch.stack, zip(*losses, strict=True)))
    assert len({float(loss) for loss, _ in losses}) == 5


def test_a_compiled_run_has_the_history_of_a_plain_run(monkeypatch):
    compiled: list[Graphs] = []
    compile_ = torch.compile

    def with_graphs(module: nn.Module) -> Any:
        compiled.append(Graphs())
        return compile_(module, backend=compiled[-1], fullgraph=True)

    monkeypatch.setattr(torch, "compile", with_graphs)

    def recipe() -> Recipe:
        stage, data = plain()
        return Recipe(data=data, schedule=[stage])

    runs = [kdkit.run(recipe, device="cpu", seed=3, compile=on) for on in (False, True)]
    assert [graphs.count for graphs in compiled] == [2]  # a whole batch and the smaller last one
    for epoch, expected in zip(runs[1].history["student"], runs[0].history["student"], strict=True):
        assert epoch["terms"] == pytest.approx(expected["terms"], rel=1e-4)


def test_a_second_derivative_that_the_compiler_does_not_take_has_the_advice_to_run_without_it(monkeypatch):
    class Slope(nn.Linear):
        @torch.enable_grad()
        def forward(self, inputs: Tensor) -> Tensor:
            inputs = inputs.detach().requires_grad_()
            outputs = super().forward(inputs).square()
            return torch.autograd.grad(outputs.sum(), inputs, create_graph=True)[0]

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compile_(module, backend="aot_eager"))
    samples = TensorDataset(torch.randn(8, 2), torch.randn(8, 2))
    stage = Stage({Net("student", Slope(2, 2)): Truth(nn.MSELoss())}, Training(epochs=1))
    with pytest.raises(RuntimeError) as caught:
        kdkit.run(Recipe(data=TorchData(samples, samples), schedule=[stage]), device="cpu", compile=True)
    assert "torch.compile does not take all networks: run without it" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    "recompute",
    [["body"], pytest.param(["age", "body.head"], marks=pytest.mark.slow)],
    ids=["with the tap", "without the tap"],
)
@pytest.mark.skipif(torch.__version__ < (2, 11), reason="the compiler breaks the graph at a tap in recomputed layers")
def test_a_compiled_run_recomputes_activations_without_a_graph_break(monkeypatch, recompute):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: compile_(module, backend="aot_eager", fullgraph=True))

    def run(names: list[str], *, compiled: bool) -> kdkit.Result:
        def recipe() -> Recipe:
            data = aged(lambda signal, age: (signal, age))[1]
            teacher, student = Net("teacher", Aged(6), trained=True), Net("student", Aged(4), recompute=names)
            layers = (student.module.body.norm, teacher.module.body.norm)
            return Recipe(data=data, schedule=[Stage({student: objective(teacher, student, layers)}, training())])

        return kdkit.run(recipe, device="cpu", seed=3, compile=compiled)

    actual, expected = run(recompute, compiled=True), run([], compiled=False)
    for epoch, expected_epoch in zip(actual.history["student"], expected.history["student"], strict=True):
        assert epoch["terms"] == pytest.approx(expected_epoch["terms"], rel=1e-4)
    buffers, expected_buffers = ([*result.student.module.buffers()] for result in (actual, expected))
    agree(buffers, expected_buffers)  # the running statistics, which are updated once


@pytest.mark.slow
def test_the_default_backend_gives_the_terms_and_gradients_of_the_plain_module():
    stage, data = plain()
    opened = open_and_build(stage, data, next(chunks(data, 0)))
    before = copy.deepcopy(opened.module.state_dict())
    expected = values(opened, opened.module, data)
    opened.module.load_state_dict(before)
    actual = values(opened, torch.compile(opened.module), data)
    opened.close()
    agree(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "ways", [("wrapped", "in place"), pytest.param(("in place", "wrapped"), marks=pytest.mark.slow)]
)
def test_a_compiled_network_is_tapped_before_an_operation_in_place(ways: tuple[str, str]) -> None:
    networks = [Net1d(4), Net1d(6)]
    expected = copy.deepcopy(networks)
    inputs, labels = torch.randn(6, 2, 16), torch.arange(6) % CLASSES
    compiled = []
    for way, network in zip(ways, networks, strict=True):
        if way == "in place":
            network.compile(fullgraph=True, backend="aot_eager")
        compiled.append(network if way == "in place" else torch.compile(network, fullgraph=True, backend="aot_eager"))
    compiled[1].eval()(inputs)  # compiled code has no guard on hooks
    student, teacher = Net("student", compiled[0]), Net("teacher", compiled[1], trained=True)
    features = []

    def mean_difference(student: Tensor, target: Tensor) -> Tensor:
        features.append((student.detach().clone(), target.clone()))
        return (student.mean(1) - target.mean(1)).square().mean()

    match = Match(teacher, mean_difference, student=Tap(networks[0].norm), target=Tap(networks[1].norm))
    with kdkit.Distiller(student, Truth(nn.CrossEntropyLoss()) + match, (inputs, labels)) as distiller:
        for _ in range(2):
            distiller(inputs, labels).loss.backward()
    expected[1].eval()
    for feature, network in zip(features[-1], expected, strict=True):
        torch.testing.assert_close(feature, network.norm(network.conv(inputs)))
        assert feature.min() < 0  # after the ReLU it would not be


def test_a_compiled_network_is_tapped_in_a_loop_of_the_user() -> None:
    network = Net1d(4)
    compiled = torch.compile(network, backend="aot_eager")
    inputs = torch.randn(6, 2, 16)
    with kdkit.tap(network.norm) as feature:
        for _ in range(2):
            compiled(inputs)
            assert feature.value.min() < 0
