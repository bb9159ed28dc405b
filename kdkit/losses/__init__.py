"""The shelf of losses: `(student, target) -> scalar`.

The docstring of each ends in its Formula, the Shapes it takes and its Source, of which `docs/losses.md` is made. There
s and t are the student and the target, T the temperature, N the batch, C the classes or channels, ‖x‖ a length.
"""

from kdkit.losses.attention import CWD, AttentionTransfer
from kdkit.losses.base import BuildContext, Built, Loss, asked_by, loss_name, needs_of
from kdkit.losses.contrastive import CRD
from kdkit.losses.correlation import DIST, PerLabelDIST
from kdkit.losses.cross_layer import HCL, ReviewKD, SemCKD
from kdkit.losses.decoupled import DKD, NKD, PerLabelDKD
from kdkit.losses.hard_labels import HardTargets, PerLabelHardTargets, SecondHead
from kdkit.losses.hints import Hint, SquareHead
from kdkit.losses.logits import GeneralisedJSD, LogitMSE, LogitStandardisation, PerToken, ReverseKL, SoftTargets
from kdkit.losses.margins import OFD
from kdkit.losses.multi_teacher import PerTeacher, TeacherWeighting
from kdkit.losses.per_label import PerLabelSoftTargets
from kdkit.losses.relations import CC, PKT, RKD, SP, AdjacentCC
from kdkit.losses.self_distillation import PSKD, PerLabelPSKD
from kdkit.losses.similarity import CKA, Cosine
from kdkit.losses.srrl import SRRL
from kdkit.losses.statistics import NST, PKD, PatientKD
from kdkit.losses.variational import MGD, VID

__all__ = [
    "CC",
    "CKA",
    "CRD",
    "CWD",
    "DIST",
    "DKD",
    "HCL",
    "MGD",
    "NKD",
    "NST",
    "OFD",
    "PKD",
    "PKT",
    "PSKD",
    "RKD",
    "SP",
    "SRRL",
    "VID",
    "AdjacentCC",
    "AttentionTransfer",
    "BuildContext",
    "Built",
    "Cosine",
    "GeneralisedJSD",
    "HardTargets",
    "Hint",
    "LogitMSE",
    "LogitStandardisation",
    "Loss",
    "PatientKD",
    "PerLabelDIST",
    "PerLabelDKD",
    "PerLabelHardTargets",
    "PerLabelPSKD",
    "PerLabelSoftTargets",
    "PerTeacher",
    "PerToken",
    "ReverseKL",
    "ReviewKD",
    "SecondHead",
    "SemCKD",
    "SoftTargets",
    "SquareHead",
    "TeacherWeighting",
    "asked_by",
    "loss_name",
    "needs_of",
]
