"""One cell of a study of LRH-Net (Chauhan et al. 2022, arXiv:2204.08000): one net, learning from labels and teachers.

Teachers are folders of finished cells; the nets in them see the leads that `rungs` says, in the same order.

    kdkit run examples/lrhnet/cell.py --row alone --leads 2
    kdkit run examples/lrhnet/cell.py --row kd --leads 2 --rungs 12 --teachers results/teacher-12-fold0-seed0
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
from reproductions.lrhnet.no_test_split import Untested

Row = Literal["teacher", "assistant", "cnn1d", "alone", "kd", "fitnet", "pskd", "cross_layer", "smlkd", "pmlkd"]
Preset = Literal["corrected", "paper"]

Guide = Literal["softmax-2", "softmax-4", "softmax-7-plain", "per-label-1", "per-label-2"]
Augment = Literal["none", "light"]

GUIDES: dict[str, Loss] = {  # the number is the temperature; plain: without its square, as the paper has it
    "softmax-2": SoftTargets(temperature=2.0),
    "softmax-4": SoftTargets(temperature=4.0),
    "softmax-7-plain": SoftTargets(temperature=7.0, t_squared=False),
    "per-label-1": PerLabelSoftTargets(temperature=1.0),
    "per-label-2": PerLabelSoftTargets(temperature=2.0),
}
AUGMENTS: dict[str, dict[str, Any]] = {
    "none": {},
    "light": {"augment": (Scaling(), GaussianNoise(), BaselineWander()), "draws": 8},
}
GUIDED = ("assistant", "kd", "fitnet", "cross_layer", "smlkd", "pmlkd")  # rows that learn from teachers


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large everything is. rate: Hz. length: samples. teacher, cnn1d, student: widths. records: simulated ones."""

    rate: float = 257
    length: int = 4096
    teacher: int = 64
    cnn1d: int = 128
    student: int = 16
    epochs: int = 90
    batch: int = 64
    records: int = 1280


SIZES = {
    "full": Size(),
    "quick": Size(rate=100, length=1000, teacher=16, epochs=20, batch=32),
    "tiny": Size(rate=100, length=250, teacher=4, cnn1d=4, student=4, epochs=1, batch=8, records=24),
}


def recipe(
    row: Row,
    leads: int = 3,
    rungs: tuple[int, ...] = (),
    teachers: tuple[Path, ...] = (),
    data: Path | None = None,
    size: Literal["full", "quick", "tiny"] = "quick",
    preset: Preset = "corrected",
    fold: int = 0,
    folds: Path | None = None,
    epochs: int | None = None,
    kd_loss: Guide | None = None,
    label_weight: float = 0.3,
    augment: Augment = "none",
    train: int | None = None,
    untested: bool = False,
) -> Recipe:
    """Return the experiment.

    row: of the paper's tables, which says what the net is and how it learns.
    leads: how many the net sees.
    rungs: how many each teacher sees.
    teachers: the run folder of each, which holds its weights.
    data: a folder of Challenge records; simulated ones where not given.
    size: of the nets and of the samples.
    preset: the corrected protocol, or the paper's own.
    fold: the one to report on; simulated records are other ones in each fold.
    folds: a file of folds; five are made of the records where not given.
    epochs: those of the size where not given.
    kd_loss: the loss against teachers; the preset's where not given.
    balance: the share of the labels where there are teachers.
    augment: whether training samples change with the draw.
    train: how many simulated records there are to learn from; those of the size where not given.
    untested: report on the records that epochs are chosen on; no net is asked about the test fold.
    """
    sizes = SIZES[size]
    if len(teachers) != len(rungs):
        raise RecipeError(f"each teacher has its rung; got {len(teachers)} teachers and {len(rungs)} rungs")
    if bool(teachers) != (row in GUIDED):
        wanted = "one teacher or more" if row in GUIDED else "no teacher"
        raise RecipeError(f"{row!r} learns from {wanted}; got {len(teachers)}; see --teachers and --rungs")
    masters = [
        Net(f"teacher{count}-{place}", SEResNet(leads=count, width=sizes.teacher), view=Leads(count), weights=weights)
        for place, (count, weights) in enumerate(zip(rungs, map(weights_of, teachers), strict=True), 1)
    ]
    net = network(row, leads, sizes, preset)
    training = trained(epochs or sizes.epochs, sizes.batch, preset)
    soft = GUIDES[kd_loss or ("softmax-7-plain" if preset == "paper" else "softmax-2")]
    read = records(data, size, preset, fold, folds, augment, train)
    return Recipe(
        data=Untested(read) if untested else read,
        metrics=(ChallengeMetric(2020, add_highest=preset == "paper"), MacroF1(), MicroF1(), MacroAUPRC()),
        schedule=schedule(row, net, masters, training, soft, label_weight),
    )


def schedule(
    row: Row, net: Net[Any], masters: list[Net[Any]], training: Training, kd_loss: Loss, label_weight: float
) -> Any:
    """Return how this row's net learns. The weights of FitNet, PS-KD and cross-layer are those of the notebooks."""
    truth = Truth(BCEWithLogitsLoss())
    if row == "pskd":
        return [Stage({net: 1.0 * Match(Past(net), PerLabelPSKD(alpha=0.8, epochs=training.epochs))}, training)]
    if not masters:
        return [Stage({net: truth}, training)]
    teacher, own = masters[0].module, net.module
    if row == "fitnet":
        hint = Match(masters[0], Hint(), student=Tap(own.pool), target=Tap(teacher.pool))
        return [Stage({net: 0.3 * truth + 0.35 * Match(masters[0], kd_loss) + 0.35 * hint}, training)]
    if row == "cross_layer":
        ours = tuple(map(Tap, (own.block1, own.block2, own.block3)))
        theirs = tuple(map(Tap, (teacher.group2, teacher.group3, teacher.group4)))
        layers = Match(masters[0], SemCKD(), student=ours, target=theirs)
        soft = Match(masters[0], SoftTargets(temperature=4.0))
        return [Stage({net: truth + soft + 40.0 * layers}, training)]
    shares = (0.6, 0.4) if len(masters) == 2 else None  # the paper's, which has no more than two teachers
    return MultiLevel(
        *masters,
        Level(net, teacher_weights=shares),
        truth=truth,
        kd_loss=kd_loss,
        label_weight=label_weight,
        training=training,
    )


def network(row: Row, leads: int, size: Size, preset: Preset) -> Net[Any]:
    """Return the net of a row, untrained."""
    if row in ("teacher", "assistant"):
        return Net(row, SEResNet(leads=leads, width=size.teacher), view=Leads(leads))
    if row == "cnn1d":
        return Net(row, CNN1d(leads=leads, width=size.cnn1d, preset=preset), view=Leads(leads))
    return Net(row, LRHNet(leads=leads, width=size.student, preset=preset), view=Leads(leads))


def trained(epochs: int, batch: int, preset: Preset) -> Training:
    """Return how every net is trained, so that rows differ in what they learn from alone."""
    steps = LRSchedule(MultiStepLR, milestones=[max(1, epoch * epochs // 90) for epoch in (20, 40, 70)])
    return Training(
        epochs=epochs,
        batch_size=batch,
        optimizer=Optimizer(Adam, lr=3e-3, weight_decay=1e-5),  # one cycle sets a rate of its own
        lr_schedule=steps if preset == "paper" else LRSchedule(OneCycleLR, interval="update", max_lr=1e-2),
        monitor="macro_auprc",
    )


@lru_cache(maxsize=1)  # the cells of one fold come one after another, and read the same records
def records(
    folder: Path | None,
    size: str,
    preset: Preset,
    fold: int,
    folds: Path | None,
    augment: Augment = "none",
    train: int | None = None,
) -> Data:
    """Return the data of a fold."""
    sizes, changes = SIZES[size], AUGMENTS[augment]
    if folder is None:
        count = sizes.records
        shape: dict[str, Any] = {"rate": 100, "length": min(sizes.length, 1000), "seed": fold, **changes}
        return Synthetic(train=train or count, validation=max(1, count // 5), test=max(1, 2 * count // 5), **shape)
    challenge = Challenge2020.paper if preset == "paper" else Challenge2020
    return challenge(folder, rate=sizes.rate, length=sizes.length, fold=fold, folds=folds, **changes)


def weights_of(folder: Path) -> Path:
    """Return the weights that a cell ended with."""
    return next(iter(sorted(folder.glob("1-*/weights.safetensors"))), folder / "1-teacher" / "weights.safetensors")
