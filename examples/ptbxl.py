"""LRH-Net on PTB-XL, with the classes and folds of its benchmark (Strodthoff et al. 2021, arXiv:2004.13701).

The result is the macro AUROC on fold 10 with its bootstrap interval over patients. Folds 1 to 8 train, and the best
epoch is chosen on fold 9.

    kdkit ecg fetch ptb-xl data/ptb-xl
    kdkit run examples/ptbxl.py --data data/ptb-xl
    kdkit run examples/ptbxl.py --data data/ptb-xl --labels all --no-teacher
"""

from pathlib import Path
from typing import Literal

from torch.nn import BCEWithLogitsLoss
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from kdkit import LRSchedule, Net, Optimizer, Parallel, Recipe, Stage, Training, Truth
from kdkit.losses import PerLabelSoftTargets
from kdkit.metrics import BootstrapInterval, MacroAUPRC, MacroAUROC
from kdkit_ecg import PTBXL, LRHNet, SEResNet, Synthetic


def recipe(
    data: Path | None = None,
    labels: Literal["superdiagnostic", "subdiagnostic", "diagnostic", "form", "rhythm", "all"] = "superdiagnostic",
    rate: float = 100,
    epochs: int = 30,
    width: int = 64,
    teacher: bool = True,
    samples: int = 640,
) -> Recipe:
    """Return the experiment. Its parameters are options of the command.

    data: the folder of PTB-XL, with ptbxl_database.csv; simulated records by default, to try the command.
    labels: the statements that are classes, as in the benchmark.
    rate: Hz, 100 or 500 as published, or any other.
    epochs: number of epochs of each network.
    width: width of the teacher.
    teacher: distill a teacher; without one, the student learns from the labels alone.
    samples: number of simulated training records.
    """
    # All ten seconds of each record, so that a test record is seen as a whole.
    length = round(10 * rate)
    simulated = Synthetic(train=samples, validation=samples // 5, test=samples // 5, rate=rate, length=length)
    records = PTBXL(data, labels=labels, rate=rate, length=length) if data else simulated
    student, truth = Net("student", LRHNet.for_data(records)), Truth(BCEWithLogitsLoss())
    training = Training(
        epochs=epochs,
        optimizer=Optimizer(AdamW, lr=1e-2, weight_decay=1e-2),  # OneCycleLR replaces this lr
        lr_schedule=LRSchedule(OneCycleLR, interval="update", max_lr=1e-2),
        monitor="macro_auroc",
    )
    distilled = Parallel(
        Net("teacher", SEResNet.for_data(records, width=width)),
        student,
        truth=truth,
        kd_loss=PerLabelSoftTargets(temperature=2.0),
        label_weight=0.3,
        training=training,
    )
    return Recipe(
        data=records,
        metrics=(BootstrapInterval(MacroAUROC()), BootstrapInterval(MacroAUPRC())),
        schedule=distilled if teacher else [Stage({student: truth}, training)],
    )
