"""Sequential multi-level distillation of LRH-Net (S-MLKD, Chauhan et al. 2022, arXiv:2204.08000).

The student sees few leads of an ECG. A teacher that sees all twelve leads teaches an assistant that sees the student's
leads, and both teach the student. By default the records are simulated and the networks small enough for a laptop.

    kdkit run examples/lrhnet_smlkd.py
    kdkit run examples/lrhnet_smlkd.py --leads 2 --data path/to/challenge-2020
"""

from pathlib import Path
from typing import Literal

from torch.nn import BCEWithLogitsLoss
from torch.optim import Adam
from torch.optim.lr_scheduler import MultiStepLR, OneCycleLR

from kdkit import Level, LRSchedule, MultiLevel, Net, Optimizer, Recipe, Training, Truth
from kdkit.losses import SoftTargets
from kdkit.metrics import MacroAUPRC, MacroF1
from kdkit_ecg import Challenge2020, ChallengeMetric, Leads, LRHNet, LRHNetS, SEResNet, Synthetic


def recipe(
    leads: int = 3,
    data: Path | None = None,
    preset: Literal["corrected", "paper"] = "corrected",
    epochs: int | None = None,
    width: int | None = None,
    records: int = 1280,
    strict: bool = False,
    fold: int = 0,
    folds: Path | None = None,
    small: bool = False,
) -> Recipe:
    """Return the experiment. Its parameters are options of the command.

    leads: number of leads the assistant and the student see: 12, 6, 4, 3, 2 or 1.
    data: a folder of Challenge records; by default the records are simulated.
    preset: the corrected protocol, or the paper's own.
    epochs: number of epochs of each stage; by default 12, with --data the paper's 90.
    width: width of the teacher and the assistant; by default 16, with --data the paper's 64.
    records: number of simulated training records.
    strict: refuse bad records instead of leaving them out.
    fold: the fold to test on.
    folds: a file of folds; by default the records are divided into five.
    small: distill LRH-Net-S, which has a quarter of the multiply-adds.
    """
    paper = preset == "paper"
    epochs = epochs if epochs is not None else 90 if data else 12
    width = width if width is not None else 64 if data else 16
    challenge = Challenge2020.paper if paper else Challenge2020
    simulated = Synthetic(train=records, validation=records // 5, test=2 * records // 5)

    # A view selects the leads that a network sees; all of them see the same records.
    teacher = Net("teacher", SEResNet(leads=12, width=width), view=Leads(12))
    assistant = Net("assistant", SEResNet(leads=leads, width=width), view=Leads(leads))
    network = LRHNetS(leads=leads) if small else LRHNet(leads=leads, preset=preset)
    student = Net("student", network, view=Leads(leads))

    # The paper divides the learning rate by ten after 20, 40 and 70 of its 90 epochs.
    steps = LRSchedule(MultiStepLR, milestones=[max(1, epoch * epochs // 90) for epoch in (20, 40, 70)])
    return Recipe(
        data=challenge(data, strict=strict, fold=fold, folds=folds) if data else simulated,
        metrics=(ChallengeMetric(2020, add_highest=paper), MacroAUPRC(), MacroF1()),
        # Each network learns from the labels and from all networks before it.
        schedule=MultiLevel(
            teacher,
            assistant,
            Level(student, teacher_weights=(0.6, 0.4)),
            truth=Truth(BCEWithLogitsLoss()),
            kd_loss=SoftTargets(temperature=7.0, t_squared=False) if paper else SoftTargets(temperature=2.0),
            label_weight=0.3,
            training=Training(
                epochs=epochs,
                optimizer=Optimizer(Adam, lr=3e-3, weight_decay=1e-5),  # OneCycleLR replaces this lr
                lr_schedule=steps if paper else LRSchedule(OneCycleLR, interval="update", max_lr=1e-2),
                monitor="challenge_metric" if paper else "macro_auprc",
            ),
        ),
    )
