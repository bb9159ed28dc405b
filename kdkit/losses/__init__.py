"""The shelf of losses: `(student, target) -> scalar`.

The docstring of each ends in its Formula, the Shapes it takes and its Source, of which `docs/losses.md` is made. There
s and t are the student and the target, T the temperature, N the batch, C the classes or channels, ‖x‖ a length.
"""

from kdkit.losses.attention import CWD, AttentionTransfer
from kdkit.losses.contrast import CRD
from kdkit.losses.correlation import DIST, PerLabelDIST
from kdkit.losses.crosslayer import SemCKD
from kdkit.losses.decoupled import DKD, NKD, PerLabelDKD
from kdkit.losses.divergences import GeneralisedJSD, ReverseKL
from kdkit.losses.hard import HardTargets, PerLabelHardTargets, SecondHead
from kdkit.losses.hints import Hint, SquareHead
from kdkit.losses.logits import LogitMSE, LogitStandardisation, SoftTargets
from kdkit.losses.loss import Built, Facts, Loss, asked_by, loss_name, needs_of
from kdkit.losses.margins import OFD
from kdkit.losses.multilabel import PerLabelSoftTargets
from kdkit.losses.past import PSKD, PerLabelPSKD
from kdkit.losses.regression import SRRL
from kdkit.losses.relations import CC, PKT, RKD, SP, AdjacentCC
from kdkit.losses.review import HCL, ReviewKD
from kdkit.losses.similarity import CKA, Cosine
from kdkit.losses.statistics import NST, PKD, PatientKD
from kdkit.losses.teachers import FromEach, Weighing
from kdkit.losses.tokens import Tokens
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
    "Built",
    "Cosine",
    "Facts",
    "FromEach",
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
    "ReverseKL",
    "ReviewKD",
    "SecondHead",
    "SemCKD",
    "SoftTargets",
    "SquareHead",
    "Tokens",
    "Weighing",
    "asked_by",
    "loss_name",
    "needs_of",
]
