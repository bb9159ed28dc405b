"""Code as users write it, which mypy and pyright check in strict mode; it is not run. See test_types.py."""

# pyright: strict

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import kdkit
import kdkit_ecg
from kdkit import (
    Batch,
    Data,
    Match,
    Metric,
    MetricResult,
    Net,
    Objective,
    Predictions,
    Recipe,
    Result,
    RunOptions,
    Split,
    Stage,
    Tap,
    Task,
    TeacherOutput,
    TeacherSession,
    TorchData,
    Training,
    Truth,
    View,
    hookimpl,
)
from kdkit.errors import CheckError
from kdkit.export import Exported, Exporter, ExportSource, Model
from kdkit.loggers import CsvLogger, Logger
from kdkit.losses import BuildableLoss, Hint, PerTeacher, ProjectedLoss, SoftTargets, loss_name
from kdkit.metrics import F1, Accuracy, BootstrapInterval, FixedThresholds, SplitPredictions, paired_bootstrap
from kdkit.plugins.events import EpochEnded, RunEnded, RunStarted, StepEnded
from kdkit.recipe.balancing import PCGrad
from kdkit.report import Report, Section, write_card, write_report
from kdkit.testing import check_loss, check_metric, check_schedule, check_tap

SAMPLES = TensorDataset(torch.zeros(4, 3), torch.zeros(4))
TRUTH = Truth(nn.CrossEntropyLoss())
TEACHER = Net("teacher", nn.Linear(3, 2), trained=True)
STUDENT = Net("student", nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))


# Losses


def softened(student: Tensor, target: Tensor) -> Tensor:
    return (student.softmax(1) - target.softmax(1)).square().mean()


def growing(student: Tensor, target: Tensor, *, progress: Tensor) -> Tensor:
    return (1 + progress) * (student - target).square().mean()


@dataclass(frozen=True, slots=True)
class Scaled:
    loss: kdkit.Loss
    factor: float = 1.0

    def __call__(self, student: Tensor, target: Tensor, *, sample_weights: Tensor | None = None) -> Tensor:
        value: Tensor = self.loss(student, target)
        return self.factor * value


class ProjectedL1(ProjectedLoss):
    def compare(self, student: Tensor, target: Tensor) -> Tensor:
        return (student - target).abs().mean()


class Built(nn.Module):
    def build(
        self,
        student: tuple[torch.Size, ...],
        target: tuple[torch.Size, ...],
        context: kdkit.BuildContext,
        teacher: nn.Module | None,
    ) -> None:
        assert_type(context.classes, tuple[str, ...])
        self.projector = nn.Linear(student[0][1], target[0][1])

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        projected: Tensor = self.projector(student)
        return (projected - target).abs().mean()


def losses() -> None:
    _all: list[kdkit.Loss] = [softened, growing, Scaled(softened), ProjectedL1(projector="always"), Built()]
    _buildable: BuildableLoss = Built()
    check_loss(lambda: Scaled(SoftTargets()), shapes=[(5, 6), (5, 4, 3)])
    check_loss(ProjectedL1, on="features", least_when_equal=False)
    objective = 0.3 * TRUTH + Match(TEACHER, softened) * np.float64(0.5) + Match(TEACHER, growing) / 2
    assert_type(objective, Objective)
    objective += 2 * TRUTH
    for weighted in objective:
        print(weighted.term.label, weighted.weight(0.5), loss_name(weighted.term.loss))
        if isinstance(weighted.term, Match):
            print(weighted.term.teacher.name)


# Schedules, stages and objectives


class BornAgain:
    def __init__(self, *nets: Net[nn.Module], training: Training) -> None:
        self.nets, self.training = nets, training

    def stages(self) -> list[Stage]:
        return [Stage({net: TRUTH}, self.training) for net in self.nets]


def second_half(progress: float) -> float:
    return float(progress >= 0.5)


def schedules(modules: Sequence[nn.Module]) -> Recipe:
    training = Training(
        epochs=2,
        optimizer=kdkit.Optimizer(torch.optim.SGD, lr=0.1, momentum=0.9),
        lr_schedule=kdkit.LRSchedule(torch.optim.lr_scheduler.StepLR, step_size=3),
        balancing=PCGrad(),
        ema=kdkit.AverageWeights(decay=0.99),
    )
    hint = Match(TEACHER, Hint(), student=Tap(STUDENT.module[1]), target=Tap(TEACHER.module))
    by_layer = [Match(TEACHER, Hint(), student=[Tap(STUDENT.module[0]), Tap(STUDENT.module[1])]) for _ in range(2)]
    stages = [
        Stage({STUDENT: sum(by_layer)}, training, name="layers"),
        Stage({STUDENT: TRUTH + sum(0.5 * term for term in by_layer)}, training, name="sum"),
        Stage({STUDENT: kdkit.LinearRamp() * hint + second_half * TRUTH}, training, name="ramps"),
        Stage({Net("other", nn.Linear(3, 2)): TRUTH, STUDENT: 0.5 * TRUTH}, training, name="both"),
    ]
    for stage in stages:
        for net, objective in stage.objectives.items():
            print(net.name, objective.weights(0.5)["truth"], [match.label for match in stage.matches])
    check_schedule(
        lambda: BornAgain(*(Net(str(index), module) for index, module in enumerate(modules)), training=training)
    )
    kdkit.Parallel(
        TEACHER,
        kdkit.Level(STUDENT, label_weight=0.3),
        truth=TRUTH,
        match=lambda net, teacher: sum([Match(teacher, SoftTargets())]),
        training=training,
    )
    data = TorchData(SAMPLES, SAMPLES, classes=["a", "b"], lengths=[3, 1, 4, 1])
    Recipe(data=data, schedule=stages, metrics=[Accuracy(), F1(thresholds_by=FixedThresholds([0.1, 0.2]))])
    return Recipe(data=data, schedule=BornAgain(training=training), metrics=(OneMinus(Accuracy()), Errors()))


# Taps, views and teachers


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


def tap_on_layer(module: Body) -> Tap:
    return Tap(module.layer, at="input")


@dataclass(frozen=True)
class Channels:
    channels: tuple[int, ...] = (0,)

    @property
    def key(self) -> str:
        return f"channels {self.channels}"

    def __call__(self, batch: Batch) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        return (batch.inputs[:, list(self.channels)],), {}


class WithKey:
    key = "mine"

    def __call__(self, batch: Batch) -> tuple[tuple[Tensor], dict[str, Tensor]]:
        return (batch.inputs,), {}


class Table:
    name = "table"

    def __init__(self, outputs: Tensor) -> None:
        self.outputs = outputs

    def open(self, taps: Sequence[object], context: kdkit.BuildContext) -> "TableSession":
        return TableSession(self.outputs)


class TableSession(TeacherSession):
    def __init__(self, outputs: Tensor) -> None:
        self.outputs = outputs

    def __call__(self, batch: Batch) -> TeacherOutput:
        assert batch.ids is not None
        return TeacherOutput(self.outputs[batch.ids])

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        self.outputs = change(self.outputs)

    def state_dict(self) -> Mapping[str, Tensor]:
        return {"outputs": self.outputs}


def service(inputs: Tensor) -> Tensor:
    return inputs


def nets() -> None:
    check_tap(tap_on_layer, Body(), torch.zeros(2, 2))
    with kdkit.tap(Body().layer) as feature:
        assert_type(feature.value, Tensor)
    views: list[View] = [Channels(), WithKey(), kdkit.Inputs(only=("words",)), kdkit.Images(mean=[0.5], std=[0.5])]
    net = Net("net", Body(), view=views[0], element=lambda outputs: outputs[0], classes=["a", "b"], recompute=["layer"])
    assert_type(net.module, Body)
    for teacher in (net, Net("service", service, version="1"), Table(torch.zeros(3, 2))):
        Match(teacher, SoftTargets())
    for follower in (kdkit.Ema(net), kdkit.Past(net), kdkit.Peer(net)):
        Match(follower, SoftTargets())
    Match(kdkit.Teachers(TEACHER, net), PerTeacher(SoftTargets()))


# Metrics


@dataclass(frozen=True)
class Errors:
    lower_is_better = True
    name = "errors"

    def fit(self, validation: Predictions) -> "Errors":
        return self

    def compute(self, test: Predictions) -> MetricResult:
        return MetricResult(value=float((test.outputs.argmax(1) != test.labels).mean()), by_class={"a": 0.5})


@dataclass
class OneMinus:
    metric: Metric
    seen: list[str] = field(default_factory=list[str])

    @property
    def name(self) -> str:
        return f"one_minus_{self.metric.name}"

    def fit(self, validation: Predictions) -> Metric:
        return OneMinus(self.metric.fit(validation))

    def compute(self, test: Predictions) -> MetricResult:
        return MetricResult(value=1 - self.metric.compute(test).value)


def metrics(scores: dict[int, float], predictions: SplitPredictions) -> None:
    _all: tuple[Metric, ...] = (Errors(), OneMinus(Errors()), Accuracy(), BootstrapInterval(Accuracy()))
    for difference in (
        paired_bootstrap(OneMinus(Accuracy()), predictions, predictions),
        kdkit.metrics.paired_t_interval(scores, scores),
    ):
        assert_type(difference.interval, tuple[float, float])
    check_metric(Errors(), predictions=predictions.test)
    check_metric(OneMinus(Accuracy()), task="multiclass", position_dims=1)


# Data: members as attributes, properties, cached properties and fields


class Assigned(Split):
    def __init__(self, inputs: Tensor) -> None:
        self.inputs = self.labels = inputs
        self.ids = torch.arange(len(inputs))

    def batch(self, rows: Tensor, draw: int) -> Batch:
        return Batch(self.inputs[rows], self.inputs[rows], self.ids[rows], draw)


class WithProperties(Split):
    @property
    def ids(self) -> Tensor:
        return torch.arange(3)

    @property
    def lengths(self) -> Tensor:
        return torch.ones(3)

    @property
    def parallel(self) -> bool:
        return True

    @cached_property
    def groups(self) -> Tensor:
        return torch.arange(3)

    def batch(self, rows: Tensor, draw: int) -> Batch:
        return Batch(rows, rows)

    def report_names(self, rows: Tensor) -> list[str]:
        return ["a"]


class DataOfAttributes(Data):
    classes = ("a", "b")
    task: Task = "multiclass"
    draws = 1
    fingerprint = "1"

    def __init__(self) -> None:
        self.train = WithProperties()
        self.validation = Assigned(torch.zeros(2))
        self.test = None


class DataOfProperties(Data):
    task = "multilabel"

    @property
    def classes(self) -> tuple[str, ...]:
        return ("a",)

    @property
    def draws(self) -> int | None:
        return 1

    @property
    def fingerprint(self) -> str:
        return "1"

    @cached_property
    def train(self) -> Assigned:
        return Assigned(torch.zeros(2))

    @property
    def validation(self) -> Split:
        return self.train

    @cached_property
    def test(self) -> None:
        return None

    @property
    def notices(self) -> list[str]:
        return ["simulated"]

    @property
    def batch_transform(self) -> Callable[[Any, Tensor], tuple[Any, Tensor]]:
        return lambda inputs, labels: (inputs, labels)


@dataclass(frozen=True)
class DataOfFields(Data):
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split | None = None
    task: Task = "multiclass"
    draws: int | None = 1
    fingerprint: str = "1"


def data() -> None:
    split = Assigned(torch.zeros(2))
    for data in (DataOfAttributes(), DataOfProperties(), DataOfFields(("a",), split, split)):
        assert_type(data.draws, int | None)
        kdkit.check(Recipe(data=data, schedule=[]))


def base_class(data: Data) -> None:
    assert_type(data.classes, tuple[str, ...])
    assert_type(data.train, Split | kdkit.LoaderSplit)


class Pairs(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(3), index


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.zeros(3), torch.zeros(())


def distill(teachers: list[nn.Module]) -> None:
    student = nn.Linear(3, 2)
    kdkit.distill(teachers, student, SAMPLES, Subset(SAMPLES, [0]), epochs=1, out="runs/a", metrics=[Accuracy()])
    kdkit.distill(TEACHER, STUDENT, Pairs(), ConcatDataset([Pairs(), Pairs()]), classes=["a", "b"], callbacks=[Stop()])
    kdkit.distill([TEACHER, student], student, DataLoader(Stream()), DataLoader(Pairs()), kd_loss=SoftTargets())
    kdkit.distill(TEACHER, student, kdkit.Unlabelled(Pairs()), SAMPLES, options=RunOptions(device="cpu"))


# Runs and their results


def runs(recipe: Recipe, folder: Path, name: str) -> Result:
    kdkit.run(recipe, out=folder / name, seed=3, teacher_cache="off", checkpoint_every="10min", only=("a",))
    kdkit.run(lambda: recipe, out="runs/a", teacher_cache=name, callbacks=[Stop(), Printer(), CsvLogger(folder)])
    result = kdkit.run(recipe, replace(RunOptions(out="runs/a", teacher_cache="cache", precision="bf16"), seed=1))
    assert_type(result.metrics["student"]["accuracy"].value, float)
    assert_type(result.nets["student"].parameters, int)
    print(result.history["student"][0]["terms"], result.student.module, [row.verdict for row in result.differences])
    print(kdkit.evaluate(recipe, "runs/a", net="student")["accuracy"].by_class["a"])
    try:
        print([stage.name for stage in kdkit.check(recipe, "cpu").stages])
    except CheckError as error:
        print([problem.upper() for problem in error.problems])
    return result


def own_loop(loader: Iterable[tuple[Tensor, Tensor]]) -> None:
    with kdkit.Distiller(STUDENT, sum([TRUTH]), example=next(iter(loader))) as distiller:
        for inputs, labels in loader:
            loss, terms, outputs = distiller(inputs, labels, progress=0.5)
            assert_type(loss, Tensor)
            assert_type(outputs, Tensor)
            print(terms["truth"].item(), distiller(inputs).terms)
        torch.save(distiller.student_state_dict(), "student.pt")
        distiller.to("cpu").train().load_teacher_state_dict(distiller.teacher_state_dict())


def studies(make: Callable[[float, int], Recipe], grid: dict[str, list[float]]) -> None:
    sweep = kdkit.Sweep(make, grid, folder="runs/sweep", seeds=[1, 2], average_over="fold")
    for result in sweep.run(RunOptions(device="cpu"), jobs=2):
        print(result.trial.name, result.state, result.error)
    print(sweep.results().verdicts(), [cell.label for cell in sweep.results().cells])
    study = kdkit.Study(Path("runs"), [kdkit.Trial(name="a", recipe=make, options=grid, needs={"teacher": "b"})])
    print(study.metrics("a")["student"]["accuracy"].value, list(study.run(jobs=1)))


# Callbacks, loggers, reports, exports and plugins


class Stop:
    @hookimpl
    def epoch_ended(self, event: EpochEnded) -> None:
        if event.monitor_value > 0.9:
            raise kdkit.StopTraining(f"{event.monitor} of {event.stage}")

    @hookimpl(tryfirst=True)
    def step_ended(self, event: StepEnded) -> None:
        print(float(event.learning_rate), event.terms["truth"])

    @hookimpl
    def run_ended(self, event: RunEnded) -> None:
        print([metric.value for results in event.metrics.values() for metric in results.values()])


class Printer(Logger):
    def start(self, run: RunStarted, step: int) -> None:
        print(run.recipe, run.settings["precision"])

    def log(self, step: int, values: Mapping[str, float], *, stage: str | None, epoch: int | None) -> None:
        print(step, values)

    def close(self, *, failed: bool) -> None: ...


class Bytes(Exporter):
    suffix = ".bytes"

    def export(self, source: ExportSource) -> Exported:
        return Exported(content=source.net.name.encode(), details={"classes": source.classes})

    def open(self, content: bytes) -> Model:
        return lambda inputs: np.zeros(len(inputs), dtype=np.float32)


@hookimpl
def report_sections(report: Report) -> list[Section]:
    return [Section(run.label, str(run.record["seed"])) for run in report.runs]


@hookimpl
def register_losses(register: kdkit.Register) -> None:
    register("softened", softened)
    register("projected_l1", ProjectedL1)


def files(recipe: Recipe) -> None:
    print(write_report("runs/a", "report.html").verdicts, write_report([Path("a"), "b"], "c.html", average_over="fold"))
    write_card("runs/a", "card.md")
    for exported in kdkit.export_net(recipe, "runs/a", to=["onnx", "pt2"], options=kdkit.ExportOptions(points=1.0)):
        print(exported.path, exported.passed, kdkit.registry("losses")["soft_targets"](temperature=4))


# ECG


def ecg(files: list[str]) -> None:
    data = kdkit_ecg.Challenge2020.paper("folder", augment=(kdkit_ecg.GaussianNoise(), kdkit_ecg.Mixup()), fold=1)
    student = Net("student", kdkit_ecg.LRHNet.for_data(data), view=kdkit_ecg.Leads(("I", "II")))
    print(student.module.head(), len(kdkit_ecg.PTBXL("folder", labels="superdiagnostic").train), data.summary)
    Recipe(data=data, schedule=[Stage({student: TRUTH}, Training(epochs=1))], metrics=[kdkit_ecg.ChallengeMetric(2020)])
    kdkit_ecg.make_folds(["a", "b"], k=5).write("folds.csv")
    predictor = kdkit_ecg.Predictor("model.onnx")
    for prediction in predictor.predict_all(files, arrays=kdkit_ecg.ArrayFormat(rate=400, unit="mV")):
        print(prediction.predicted, prediction.by_class(), prediction.reason)
    print(predictor.predict_array(np.zeros((12, 5000)), rate=500, leads=("I",), age=50.0, sex="female").as_dict())
