"""Parallel multi-level distillation of LRH-Net (P-MLKD, Chauhan et al. 2022, arXiv:2204.08000).

The student sees few leads of an ECG. A teacher that sees all twelve leads and an assistant that sees the student's
leads are trained independently, and both teach the student. By default the records are simulated and the networks small
enough for a laptop.

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

    leads: number of leads the assistant and the student see: 12, 6, 4, 3, 2 or 1.
    data: a folder of Challenge records; by default the records are simulated.
    epochs: number of epochs of each stage; by default 12, with --data the paper's 90.
    width: width of the teacher and the assistant; by default 16, with --data the paper's 64.
    records: number of simulated training records.
    strict: refuse bad records instead of leaving them out.
    fold: the fold to test on.
    folds: a file of folds; by default the records are divided into five.
    """
    epochs = epochs if epochs is not None else 90 if data else 12
    width = width if width is not None else 64 if data else 16
    simulated = Synthetic(train=records, validation=records // 5, test=2 * records // 5)
    return Recipe(
        data=Challenge2020(data, strict=strict, fold=fold, folds=folds) if data else simulated,
        metrics=(ChallengeMetric(2020), MacroAUPRC(), MacroF1()),
        # All networks but the last are trained on the labels alone: `--jobs 2` trains them at the same time.
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
