"""Parallel multi-level distillation of LRH-Net (Chauhan et al. 2022, arXiv:2204.08000).

A teacher that sees all twelve leads and an assistant that sees as few as the student does learn apart from each other,
and both teach the student. Without --data the records are simulated, and the sizes small enough for a laptop.

    kdkit run examples/lrhnet_pmlkd.py
    kdkit run examples/lrhnet_pmlkd.py --leads 2 --data path/to/challenge-2020
"""

from pathlib import Path

from torch.nn import BCEWithLogitsLoss
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from kdkit import Level, LRSchedule, Net, Optimizer, Parallel, Recipe, Training, Truth
from kdkit.losses import SoftTargets
from kdkit.metrics import MacroAUPRC, MacroF1
from kdkit_ecg import Challenge2020, ChallengeMetric, Leads, LRHNet, SEResNet, Synthetic


def recipe(
    leads: int = 3,
    data: Path | None = None,
    epochs: int | None = None,
    width: int | None = None,
    records: int = 1280,
    strict: bool = False,
    fold: int = 0,
    folds: Path | None = None,
) -> Recipe:
    """Return the experiment.

    leads: how many the assistant and the student see: 12, 6, 4, 3, 2 or 1.
    data: a folder of Challenge records; simulated ones where not given.
    epochs: of each stage; 12 where not given, with --data the paper's 90.
    width: of the teachers; 16 where not given, with --data the paper's 64.
    records: how many simulated records there are to learn from.
    strict: refuse bad records instead of leaving them out.
    fold: of the records, the one to report on.
    folds: a file of folds; five are made of the records where not given.
    """
    epochs = epochs if epochs is not None else 90 if data else 12
    width = width if width is not None else 64 if data else 16
    simulated = Synthetic(train=records, validation=records // 5, test=2 * records // 5)
    return Recipe(
        data=Challenge2020(data, strict=strict, fold=fold, folds=folds) if data else simulated,
        metrics=(ChallengeMetric(2020), MacroAUPRC(), MacroF1()),
        schedule=Parallel(
            Net("teacher", SEResNet(leads=12, width=width), view=Leads(12)),
            Net("assistant", SEResNet(leads=leads, width=width), view=Leads(leads)),
            Level(Net("student", LRHNet(leads=leads), view=Leads(leads)), teacher_weights=(0.6, 0.4)),
            truth=Truth(BCEWithLogitsLoss()),
            kd_loss=SoftTargets(temperature=2.0),
            label_weight=0.3,
            training=Training(
                epochs=epochs,
                optimizer=Optimizer(Adam, weight_decay=1e-5),
                lr_schedule=LRSchedule(OneCycleLR, interval="update", max_lr=1e-2),
                monitor="macro_auprc",
            ),
        ),
    )
