"""A compiled lesson says what the plain one says, is compiled once, and its taps fire all the same."""

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.utils import counters
from torch.utils.data import Dataset, TensorDataset

import kdkit
from kdkit import Batch, CosineRamp, Match, Net, Recipe, Stage, Tap, TorchData, Training, Truth
from kdkit.data.dataset import Data
from kdkit.engine.check.dry_run import Rehearsal
from kdkit.engine.open_stage import build_context
from kdkit.losses import Hint, PerLabelSoftTargets, SoftTargets
from kdkit.teachers import run_teachers
from kdkit_ecg import Leads, LRHNet, SEResNet, Synthetic

CLASSES = 3
ROWS = 22
SIZE = 8  # so that the last batch of an epoch has six rows

Backend = Callable[[fx.GraphModule, list[Tensor]], Callable[..., Any]]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.manual_seed(0)
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


class Graphs:
    """A backend that runs what it is given as it is, and counts how often it is asked to compile."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


class Net1d(nn.Module):
    """Convolution, norm, an in-place ReLU and a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, width, 3, padding=1)
        self.norm = nn.BatchNorm1d(width)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, signal: Tensor) -> Tensor:
        return self.head(self.relu(self.norm(self.conv(signal))).mean(-1))


class Aged(nn.Module):
    """The same with a second input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = Net1d(width)
        self.age = nn.Linear(1, CLASSES)

    def forward(self, signal: Tensor, age: Tensor) -> Tensor:
        return self.body(signal) + self.age(age)


class SignalAndAge(NamedTuple):
    signal: Tensor
    age: Tensor


class Rows(Dataset[Any]):
    """Samples of any form."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> Any:
        return self.samples[row]


def objective(teacher: Net[Any], student: Net[Any], sides: tuple[nn.Module, nn.Module]) -> Any:
    """Labels, soft targets, and a hint at what norms give, which a ReLU then changes in place."""
    hint = Match(teacher, Hint(), student=Tap(sides[0]), target=Tap(sides[1]))
    return Truth(nn.CrossEntropyLoss()) + 0.5 * Match(teacher, SoftTargets()) + CosineRamp() * hint


def plain() -> tuple[Stage, Data]:
    data = TensorDataset(torch.randn(ROWS, 2, 16), torch.arange(ROWS) % CLASSES)
    teacher, student = Net("teacher", Net1d(6), trained=True), Net("student", Net1d(4))
    sides = (student.module.norm, teacher.module.norm)
    return Stage({student: objective(teacher, student, sides)}, training()), TorchData(data, data)


def aged(wrapped: Callable[[Tensor, Tensor], Any]) -> tuple[Stage, Data]:
    rows = Rows([(wrapped(torch.randn(2, 16), torch.rand(1)), row % CLASSES) for row in range(ROWS)])
    teacher, student = Net("teacher", Aged(6), trained=True), Net("student", Aged(4))
    sides = (student.module.body.norm, teacher.module.body.norm)
    data = TorchData(rows, rows, classes=[str(each) for each in range(CLASSES)], draws=1)
    return Stage({student: objective(teacher, student, sides)}, training()), data


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
    "dict": lambda: aged(lambda signal, age: {"age": age, "signal": signal}),
    "leads": leads,
}


@pytest.fixture(params=CASES)
def open_teacher(request: pytest.FixtureRequest) -> Iterator[tuple[Rehearsal, Data]]:
    stage, data = CASES[request.param]()
    rehearsal = Rehearsal(stage, build_context(data), data.train.batch(torch.arange(2), 0))
    assert rehearsal.problems == []
    yield rehearsal, data
    rehearsal.close()


def chunks(data: Data, epoch: int) -> Iterator[Batch]:
    for rows in torch.arange(ROWS).split(SIZE):
        yield dataclasses.replace(data.train.batch(rows, 0), draw=epoch)


def values(rehearsal: Rehearsal, lesson: Any, data: Data) -> list[Tensor]:
    """Return the terms and the gradients of two epochs of steps, each validated after as the engine does."""
    found: list[Tensor] = []
    module = rehearsal.lesson
    for epoch in range(2):
        module.train()
        for batch in chunks(data, epoch):
            terms = lesson(batch, run_teachers(rehearsal.sessions, batch))
            sum(terms.values()).backward()
            found += [*terms.values(), *(each.grad for each in module.parameters() if each.grad is not None)]
            module.zero_grad()
        module.students[0].network.eval()
        with torch.no_grad():
            found.append(module.students[0](batch))
        module.open_taps.clear()
    return [each.detach().clone() for each in found]


def test_a_lesson_is_compiled_for_whole_batches_and_for_ragged_ones_without_a_break_and_says_the_same(open_teacher):
    rehearsal, data = open_teacher
    before = copy.deepcopy(rehearsal.lesson.state_dict())
    wanted = values(rehearsal, rehearsal.lesson, data)
    rehearsal.lesson.load_state_dict(before)
    graphs = Graphs()
    lesson = torch.compile(rehearsal.lesson, backend=graphs, fullgraph=True)
    agree(values(rehearsal, lesson, data), wanted)
    assert graphs.count <= 3
    assert not counters["graph_break"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        values(rehearsal, lesson, data)


@pytest.mark.parametrize("open_teacher", ["tensor", "dict"], indirect=True)
def test_a_lesson_whose_gradients_are_compiled_too_says_the_same(open_teacher):
    rehearsal, data = open_teacher
    before = copy.deepcopy(rehearsal.lesson.state_dict())
    wanted = values(rehearsal, rehearsal.lesson, data)
    rehearsal.lesson.load_state_dict(before)
    agree(values(rehearsal, torch.compile(rehearsal.lesson, backend="aot_eager", fullgraph=True), data), wanted)


def agree(got: list[Tensor], wanted: list[Tensor], rtol: float = 1e-4, atol: float = 1e-5) -> None:
    assert any(each.abs().sum() > 0 for each in wanted)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol)


@pytest.mark.parametrize("open_teacher", ["tensor", "named tuple"], indirect=True)
def test_a_compiled_lesson_hears_the_features_of_the_plain_one(open_teacher):
    rehearsal, data = open_teacher
    heard: list[tuple[Tensor, Tensor]] = []
    line = next(line for line in rehearsal.lesson.lines if isinstance(line.loss, Hint))

    def note(_loss: nn.Module, sides: tuple[Tensor, Tensor]) -> None:
        heard.append((sides[0].detach().clone(), sides[1].clone()))

    batch = next(chunks(data, 0))
    answers = run_teachers(rehearsal.sessions, batch)
    rehearsal.lesson.eval()  # so that running statistics stand still
    line.loss.register_forward_pre_hook(note)
    rehearsal.lesson(batch, answers)
    torch.compile(rehearsal.lesson, backend="eager")(batch, answers)
    (plain_student, plain_teacher), (student, teacher) = heard
    torch.testing.assert_close(student, plain_student)
    torch.testing.assert_close(teacher, plain_teacher, rtol=0, atol=0)
    if hasattr(rehearsal.lesson.students[0].module, "relu"):
        assert (student < 0).any()  # not what the in-place ReLU made of it


@pytest.mark.parametrize("open_teacher", ["tensor", "tuple"], indirect=True)
def test_no_feature_outlives_its_step(open_teacher):
    rehearsal, data = open_teacher
    for lesson in (rehearsal.lesson, torch.compile(rehearsal.lesson, backend="eager")):
        batch = next(chunks(data, 0))
        lesson(batch, run_teachers(rehearsal.sessions, batch))
        taps = rehearsal.lesson.open_taps
        assert taps.unfired() == list(taps.taps)


def asking(student: Tensor, target: Tensor, *, labels: Tensor, ids: Tensor, progress: Tensor) -> Tensor:
    """A loss that asks for all there is to ask for."""
    weights = (ids % 2 + labels + 1).unsqueeze(1)
    return (weights * (student - target).square()).mean() * (1 + progress)


def test_a_loss_that_asks_for_labels_ids_and_progress_is_compiled_once_while_progress_moves():
    stage, data = plain()
    (student,) = stage.objectives
    (teacher,) = stage.teachers
    rehearsal = Rehearsal(
        Stage({student: 1.0 * Match(teacher, asking)}, training()), build_context(data), next(chunks(data, 0))
    )
    graphs = Graphs()
    lesson = torch.compile(rehearsal.lesson, backend=graphs, fullgraph=True)
    batch = next(chunks(data, 0))
    answers = run_teachers(rehearsal.sessions, batch)
    found = []
    rehearsal.lesson.eval()
    for progress in (0.0, 0.25, 1.0):
        rehearsal.lesson.progress.fill_(progress)
        found.append(float(lesson(batch, answers)["teacher/asking"].detach()))
    rehearsal.close()
    assert graphs.count == 1
    assert found == pytest.approx([found[0], 1.25 * found[0], 2 * found[0]])


def test_a_run_that_compiles_gives_the_history_of_one_that_does_not(monkeypatch):
    compiled: list[Graphs] = []
    compile_ = torch.compile

    def with_graphs(module: nn.Module) -> Any:
        compiled.append(Graphs())
        return compile_(module, backend=compiled[-1], fullgraph=True)

    monkeypatch.setattr(torch, "compile", with_graphs)

    def recipe() -> Recipe:
        stage, data = plain()
        return Recipe(data=data, schedule=[stage])

    runs = [kdkit.run(recipe, device="cpu", seed=3, compile=each) for each in (False, True)]
    assert [graphs.count for graphs in compiled] == [2]
    for mine, theirs in zip(runs[1].history["student"], runs[0].history["student"], strict=True):
        assert mine["terms"] == pytest.approx(theirs["terms"], rel=1e-4)


@pytest.mark.slow
def test_the_default_backend_gives_the_terms_and_gradients_of_the_plain_lesson():
    stage, data = plain()
    rehearsal = Rehearsal(stage, build_context(data), next(chunks(data, 0)))
    before = copy.deepcopy(rehearsal.lesson.state_dict())
    wanted = values(rehearsal, rehearsal.lesson, data)
    rehearsal.lesson.load_state_dict(before)
    got = values(rehearsal, torch.compile(rehearsal.lesson), data)
    rehearsal.close()
    agree(got, wanted, rtol=1e-3, atol=1e-4)
