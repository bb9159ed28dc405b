"""One trial of the LRH-Net studies: one network that learns from the labels and from trained teachers.

Teachers are the run folders of finished trials; --teacher-leads are the leads that each of them sees, in that order.

    python -m kdkit run reproductions/lrhnet/recipe.py --row alone --leads 2
    python -m kdkit run reproductions/lrhnet/recipe.py --row kd --teacher-leads 12 --teachers TEACHER_RUN
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from torch.nn import BCEWithLogitsLoss
from torch.optim import Adam
from torch.optim.lr_scheduler import MultiStepLR, OneCycleLR

from kdkit import (
    Data,
    Level,
    Loss,
    LRSchedule,
    Match,
    MultiLevel,
    Net,
    Optimizer,
    Past,
    Recipe,
    RecipeError,
    Stage,
    Tap,
    Training,
    Truth,
)
from kdkit.losses import Hint, PerLabelPSKD, PerLabelSoftTargets, SemCKD, SoftTargets
from kdkit.metrics import MacroAUPRC, MacroF1, MicroF1
from kdkit_ecg import (
    BaselineWander,
    Challenge2020,
    ChallengeMetric,
    CNN1d,
    GaussianNoise,
    Leads,
    LRHNet,
    Scaling,
    SEResNet,
    Synthetic,
)
from reproductions.lrhnet.no_test_split import WithoutTestSplit

Row = Literal["teacher", "assistant", "cnn1d", "alone", "kd", "fitnet", "pskd", "cross_layer", "smlkd", "pmlkd"]
Preset = Literal["corrected", "paper"]
KDLoss = Literal["softmax-2", "softmax-4", "softmax-7-plain", "per-label-1", "per-label-2"]
Augment = Literal["none", "light"]

TAUGHT_ROWS = ("assistant", "kd", "fitnet", "cross_layer", "smlkd", "pmlkd")  # those that learn from trained teachers
KD_LOSSES: dict[str, Loss] = {  # by temperature; "plain" is without the factor of its square, as in the paper
    "softmax-2": SoftTargets(temperature=2.0),
    "softmax-4": SoftTargets(temperature=4.0),
    "softmax-7-plain": SoftTargets(temperature=7.0, t_squared=False),
    "per-label-1": PerLabelSoftTargets(temperature=1.0),
    "per-label-2": PerLabelSoftTargets(temperature=2.0),
}
AUGMENTATIONS: dict[str, dict[str, Any]] = {  # options of the data
    "none": {},
    "light": {"augment": (Scaling(), GaussianNoise(), BaselineWander()), "draws": 8},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The scale of an experiment.

    rate: Hz. length: samples. teacher, cnn1d, student: widths. records: of the training split, if simulated.
    """

    rate: float = 257
    length: int = 4096
    teacher: int = 64
    cnn1d: int = 128
    student: int = 16
    epochs: int = 90
    batch: int = 64
    records: int = 1280


SIZES = {
    "full": Size(),  # the paper's
    "quick": Size(rate=100, length=1000, teacher=16, epochs=20, batch=32),
    "tiny": Size(rate=100, length=250, teacher=4, cnn1d=4, student=4, epochs=1, batch=8, records=24),
}


def recipe(
    row: Row,
    leads: int = 3,
    teacher_leads: tuple[int, ...] = (),
    teachers: tuple[Path, ...] = (),
    data: Path | None = None,
    size: Literal["full", "quick", "tiny"] = "quick",
    preset: Preset = "corrected",
    fold: int = 0,
    folds: Path | None = None,
    epochs: int | None = None,
    kd_loss: KDLoss | None = None,
    label_weight: float = 0.3,
    augment: Augment = "none",
    train: int | None = None,
    without_test: bool = False,
) -> Recipe:
    """Return the experiment.

    row: row of the paper's tables, which determines the network and how it learns.
    leads: number of leads the network sees.
    teacher_leads: number of leads each teacher sees.
    teachers: run folder of each teacher, with its weights.
    data: a folder of Challenge records; by default the records are simulated.
    size: scale of the networks and of the samples.
    preset: the corrected protocol, or the paper's own.
    fold: the fold to test on; simulated records differ by fold.
    folds: a file of folds; by default the records are divided into five.
    epochs: number of epochs; by default that of the size.
    kd_loss: the loss against the teachers; by default that of the preset.
    label_weight: weight of the labels if there are teachers.
    augment: the augmentation of training samples.
    train: number of simulated training records; by default that of the size.
    without_test: compute metrics on the validation split, and use no test record.
    """
    sizes = SIZES[size]
    if len(teachers) != len(teacher_leads):
        raise RecipeError(
            f"expected one of --teacher-leads for each of --teachers; got {len(teacher_leads)} and {len(teachers)}"
        )
    if bool(teachers) != (row in TAUGHT_ROWS):
        expected = "at least one teacher" if row in TAUGHT_ROWS else "no teacher"
        raise RecipeError(f"{row!r} learns from {expected}; got {len(teachers)}; see --teachers and --teacher-leads")
    teacher_nets = [
        Net(f"teacher{count}-{number}", SEResNet(leads=count, width=sizes.teacher), view=Leads(count), weights=weights)
        for number, (count, weights) in enumerate(zip(teacher_leads, map(weights_of, teachers), strict=True), 1)
    ]
    net = network(row, leads, sizes, preset)
    training = training_for(epochs or sizes.epochs, sizes.batch, preset)
    loss = KD_LOSSES[kd_loss or ("softmax-7-plain" if preset == "paper" else "softmax-2")]
    splits = read_data(DataOptions(data, size, preset, fold, folds, augment, train))
    return Recipe(
        data=WithoutTestSplit(splits) if without_test else splits,
        metrics=(ChallengeMetric(2020, add_highest=preset == "paper"), MacroF1(), MicroF1(), MacroAUPRC()),
        schedule=schedule(row, net, teacher_nets, training, loss, label_weight),
    )


def schedule(
    row: Row, net: Net[Any], teachers: list[Net[Any]], training: Training, kd_loss: Loss, label_weight: float
) -> Any:
    """Return how this row's network learns.

    The weights of FitNet, PS-KD and cross-layer distillation are those of the authors' notebooks.
    """
    truth = Truth(BCEWithLogitsLoss())
    if row == "pskd":
        return [Stage({net: 1.0 * Match(Past(net), PerLabelPSKD(alpha=0.8, epochs=training.epochs))}, training)]
    if not teachers:
        return [Stage({net: truth}, training)]
    teacher, student = teachers[0].module, net.module
    if row == "fitnet":
        hint = Match(teachers[0], Hint(), student=Tap(student.pool), target=Tap(teacher.pool))
        return [Stage({net: 0.3 * truth + 0.35 * Match(teachers[0], kd_loss) + 0.35 * hint}, training)]
    if row == "cross_layer":
        student_taps = tuple(map(Tap, (student.block1, student.block2, student.block3)))
        teacher_taps = tuple(map(Tap, (teacher.group2, teacher.group3, teacher.group4)))
        layers = Match(teachers[0], SemCKD(), student=student_taps, target=teacher_taps)
        soft_targets = Match(teachers[0], SoftTargets(temperature=4.0))
        return [Stage({net: truth + soft_targets + 40.0 * layers}, training)]
    weights = (0.6, 0.4) if len(teachers) == 2 else None  # the paper's, which has at most two teachers
    return MultiLevel(
        *teachers,
        Level(net, teacher_weights=weights),
        truth=truth,
        kd_loss=kd_loss,
        label_weight=label_weight,
        training=training,
    )


def network(row: Row, leads: int, size: Size, preset: Preset) -> Net[Any]:
    """Return the untrained network of a row."""
    if row in ("teacher", "assistant"):
        return Net(row, SEResNet(leads=leads, width=size.teacher), view=Leads(leads))
    if row == "cnn1d":
        return Net(row, CNN1d(leads=leads, width=size.cnn1d, preset=preset), view=Leads(leads))
    return Net(row, LRHNet(leads=leads, width=size.student, preset=preset), view=Leads(leads))


def training_for(epochs: int, batch: int, preset: Preset) -> Training:
    """Return the training of every network, so that rows differ only in the targets they learn from."""
    # The paper divides the learning rate by ten after 20, 40 and 70 of its 90 epochs.
    steps = LRSchedule(MultiStepLR, milestones=[max(1, epoch * epochs // 90) for epoch in (20, 40, 70)])
    return Training(
        epochs=epochs,
        batch_size=batch,
        optimizer=Optimizer(Adam, lr=3e-3, weight_decay=1e-5),  # OneCycleLR replaces this lr
        lr_schedule=steps if preset == "paper" else LRSchedule(OneCycleLR, interval="update", max_lr=1e-2),
        monitor="macro_auprc",
    )


@dataclass(frozen=True, slots=True)
class DataOptions:
    """The options of `recipe` that determine its data."""

    folder: Path | None
    size: str
    preset: Preset
    fold: int
    folds: Path | None
    augment: Augment = "none"
    train: int | None = None


@lru_cache(maxsize=1)  # successive trials of a fold read the same records
def read_data(options: DataOptions) -> Data:
    """Return the data of a fold."""
    size, augmentation = SIZES[options.size], AUGMENTATIONS[options.augment]
    if options.folder is None:
        count = size.records
        shape: dict[str, Any] = {"rate": 100, "length": min(size.length, 1000), "seed": options.fold, **augmentation}
        train = options.train or count
        return Synthetic(train=train, validation=max(1, count // 5), test=max(1, 2 * count // 5), **shape)
    challenge = Challenge2020.paper if options.preset == "paper" else Challenge2020
    folds: dict[str, Any] = {"fold": options.fold, "folds": options.folds}
    return challenge(options.folder, rate=size.rate, length=size.length, **folds, **augmentation)


def weights_of(folder: Path) -> Path:
    """Return the file of the final weights of a trial."""
    # Of a missing folder the usual name, so that the error names a file.
    return next(iter(sorted(folder.glob("1-*/weights.safetensors"))), folder / "1-teacher" / "weights.safetensors")
