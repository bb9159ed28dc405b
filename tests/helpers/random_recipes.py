"""Plans of random recipes, which hypothesis draws and reduces. A plan builds the same recipe each time it is called."""

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn, optim
from torch.utils.data import Dataset, WeightedRandomSampler

from kdkit import (
    AverageWeights,
    CosineRamp,
    Ema,
    LinearRamp,
    LRSchedule,
    Match,
    Net,
    Optimizer,
    Peer,
    Recipe,
    Stage,
    Tap,
    TorchData,
    Training,
    Truth,
    losses,
)
from kdkit.recipe import balancing
from kdkit.recipe.objective import Term

CLASSES = 4
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(2, channels),
    "none": lambda _channels: nn.Identity(),
}
# Losses by task, on outputs except CRD, and on feature maps.
OF_TASK: dict[str, tuple[str, ...]] = {
    "multiclass": (
        "SoftTargets",
        "DKD",
        "DIST",
        "NKD",
        "LogitMSE",
        "CTKD",
        "TAID",
        "WSLD",
        "MLLD",
        "ReverseKL",
        "TTM",
        "CRD",
    ),
    "multilabel": ("PerLabelSoftTargets", "PerLabelDIST", "PerLabelMLLD", "LogitMSE"),
}
ON_FEATURES = ("Hint", "AttentionTransfer", "RKD", "SP", "CKA", "PKT", "VID", "CC", "NST", "FT", "CWD", "ICKD", "MGD")
ALL_LOSSES = {*ON_FEATURES, *(name for names in OF_TASK.values() for name in names)}
WEIGHTS: dict[str, Callable[[Term], Any]] = {
    "half": lambda term: 0.5 * term,
    "double": lambda term: 2.0 * term,
    "rising": lambda term: LinearRamp(start=0, end=1) * term,
    "falling": lambda term: CosineRamp(start=1, end=0.1) * term,
}
OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {
    "Adam": lambda: Optimizer(optim.Adam, lr=3e-3),
    "SGD": lambda: Optimizer(optim.SGD, lr=0.05, momentum=0.9),
    "RMSprop": lambda: Optimizer(optim.RMSprop, lr=1e-3),
}
SCHEDULES: dict[str, Callable[[], LRSchedule]] = {
    "cosine": lambda: LRSchedule(optim.lr_scheduler.CosineAnnealingLR, T_max=4),
    "steps": lambda: LRSchedule(optim.lr_scheduler.StepLR, step_size=1, gamma=0.5),
}


@dataclass(frozen=True)
class DataPlan:
    """The data of a recipe. noise: the generator of an augmentation. order: of the training samples."""

    task: str
    samples: int
    noise: str
    draws: int | None
    order: str

    def build(self) -> TorchData:
        """Return the data, with a part of the labels unknown if there are several per sample."""
        options: dict[str, Any] = {"classes": CLASSES, "task": self.task}
        if self.draws is not None:
            options["draws"] = self.draws
        if self.task == "multilabel":
            options["unknown"] = float("nan")
        if self.order == "weighted":
            options["sampler"] = WeightedRandomSampler([1.0 + index % 3 for index in range(self.samples)], self.samples)
        if self.order == "by length":
            options["lengths"] = [1.0 + index * 7 % 11 for index in range(self.samples)]
        train = Images(self.samples, self.task, seed=1, noise=self.noise)
        return TorchData(train, Images(12, self.task, seed=2), Images(12, self.task, seed=3), **options)


class Images(Dataset[tuple[Tensor, Tensor]]):
    """Images of 6 x 6 pixels, whose labels depend on them."""

    def __init__(self, count: int, task: str, *, seed: int, noise: str = "none") -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(count, 3, 6, 6, generator=generator)
        scores = self.images.flatten(1) @ torch.randn(108, CLASSES, generator=torch.Generator().manual_seed(0))
        self.labels = scores.argmax(1) if task == "multiclass" else (scores > 0).float()
        if task == "multilabel":
            self.labels[torch.rand(self.labels.shape, generator=generator) < 0.1] = float("nan")
        self.noise = noise

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        if self.noise == "torch":
            image = image + 0.1 * torch.randn(image.shape)
        elif self.noise == "numpy":
            image = image + 0.1 * torch.from_numpy(np.random.standard_normal(image.shape).astype(np.float32))
        elif self.noise == "python":
            image = image * random.uniform(0.9, 1.1)
        return image, self.labels[index]


@dataclass(frozen=True)
class NetPlan:
    """A network of two convolutions."""

    norm: str
    dropout: float

    def build(self, name: str, width: int) -> Net[Any]:
        """Return the network with its initial weights."""
        return Net(name, Convolutional(width, self.norm, self.dropout))


class Convolutional(nn.Module):
    """Two convolutions, and a head on the means of their channels."""

    def __init__(self, width: int, norm: str, dropout: float) -> None:
        super().__init__()
        # The gradient of a bias before a norm is nothing but rounding errors, which Adam makes as large as others.
        bias = norm == "none"
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=bias), NORMS[norm](width), nn.ReLU())
        self.second = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=bias), NORMS[norm](2 * width), nn.ReLU()
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(self.second(self.first(images)).mean((2, 3))))


@dataclass(frozen=True)
class TrainingPlan:
    """The options of a stage."""

    epochs: int
    batch_size: int
    optimizer: str
    schedule: str | None = None
    accumulate_steps: int = 1
    balancing: str | None = None
    average: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Training:
        """Return the training of a stage."""
        return Training(
            epochs=self.epochs,
            batch_size=self.batch_size,
            accumulate_steps=self.accumulate_steps,
            optimizer=OPTIMIZERS[self.optimizer](),
            lr_schedule=None if self.schedule is None else SCHEDULES[self.schedule](),
            ema=AverageWeights(decay=0.9) if self.average else None,
            **({} if self.balancing is None else {"balancing": getattr(balancing, self.balancing)()}),
            **self.options,
        )


@dataclass(frozen=True)
class TermPlan:
    """A loss between a network and its teacher, on outputs or on features."""

    loss: str
    weight: str

    def build(self, teacher: Net[Any], student: Net[Any]) -> Any:
        """Return the weighted term."""
        loss = getattr(losses, self.loss)()
        if self.loss in ON_FEATURES:
            sides = {"student": Tap(student.module.second), "target": Tap(teacher.module.second)}
        elif self.loss == "CRD":
            sides = {"student": Tap(student.module.dropout), "target": Tap(teacher.module.dropout)}
        else:
            sides = {}
        return WEIGHTS[self.weight](Match(teacher, loss, **sides))


@dataclass(frozen=True)
class RecipePlan:
    """A recipe of up to three stages: a teacher, an assistant, and a student alone or with a peer.

    assistant: the term from which it learns; None without one. terms: of the student. average: whether the student also
    learns from its own average.
    """

    data: DataPlan
    teacher: NetPlan
    student: NetPlan
    terms: tuple[TermPlan, ...]
    assistant: TermPlan | None
    average: bool
    peer: bool
    trainings: tuple[TrainingPlan, TrainingPlan, TrainingPlan]

    def __call__(self) -> Recipe:
        """Return the recipe, with new networks."""
        task = self.data.task
        truth = Truth(nn.CrossEntropyLoss() if task == "multiclass" else losses.IgnoreUnknown(nn.BCEWithLogitsLoss()))
        soft = losses.SoftTargets() if task == "multiclass" else losses.PerLabelSoftTargets()
        teacher, student = self.teacher.build("teacher", 6), self.student.build("student", 4)
        stages = [Stage({teacher: truth}, self.trainings[0].build())]
        last = teacher
        if self.assistant is not None:
            last = self.teacher.build("assistant", 4)
            stages.append(Stage({last: truth + self.assistant.build(teacher, last)}, self.trainings[1].build()))
        objective: Any = truth
        for index, term in enumerate(self.terms):
            objective = objective + term.build(last if index % 2 else teacher, student)
        if self.average:
            objective = objective + Match(Ema(student, decay=0.9), soft)
        objectives = {student: objective}
        if self.peer:
            peer = self.student.build("peer", 4)
            objectives = {student: objective + Match(Peer(peer), soft), peer: truth + Match(Peer(student), soft)}
        stages.append(Stage(objectives, self.trainings[2].build()))
        return Recipe(data=self.data.build(), schedule=stages)


def one_of(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


def trainings(**options: st.SearchStrategy[Any]) -> st.SearchStrategy[TrainingPlan]:
    """Return plans of stages, with other strategies for some of the options."""
    strategies = {
        "epochs": st.integers(1, 3),
        "batch_size": one_of(8, 5, 11),
        "optimizer": one_of(*OPTIMIZERS),
        "schedule": one_of(None, *SCHEDULES),
        "accumulate_steps": one_of(1, 1, 2, 3),
        "balancing": one_of(None, None, None, "PCGrad", "CAGrad", "GradNorm", "UncertaintyWeighting"),
        "average": st.booleans(),
        "options": st.fixed_dictionaries(
            {},
            optional={
                "max_grad_norm": one_of(0.5, 5.0),
                "keep": one_of("best", "last"),
                "steps_per_epoch": one_of(2, 4),
            },
        ),
    }
    return st.builds(TrainingPlan, **{**strategies, **options})


NETS = st.builds(NetPlan, norm=one_of(*NORMS), dropout=one_of(0.0, 0.2))


@st.composite
def recipes(
    draw: st.DrawFn, *, losses: Collection[str] = ALL_LOSSES, nets: st.SearchStrategy[NetPlan] = NETS, **options: Any
) -> RecipePlan:
    """Draw the plan of a recipe. losses: that may be drawn. options: strategies, see `trainings`."""
    task = draw(one_of("multiclass", "multilabel"))
    noise = draw(one_of("none", "torch", "numpy", "python"))
    draws = draw(one_of(1, 2, None) if noise == "none" else one_of(2, 3, None))
    data = DataPlan(task, draw(st.integers(17, 40)), noise, draws, draw(one_of("any", "weighted", "by length")))
    names = [name for name in (*OF_TASK[task], *ON_FEATURES) if name in losses]
    terms = st.builds(TermPlan, loss=one_of(*names), weight=one_of(*WEIGHTS))
    training = trainings(**options)
    return RecipePlan(
        data=data,
        teacher=draw(nets),
        student=draw(nets),
        terms=tuple(draw(st.lists(terms, min_size=1, max_size=2, unique_by=lambda term: term.loss))),
        assistant=draw(st.none() | terms),
        average=draw(st.booleans()),
        peer=draw(st.booleans()),
        trainings=(draw(training), draw(training), draw(training)),
    )
