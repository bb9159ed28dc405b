"""Distillation losses, `(student, target) -> scalar`.

Each docstring ends with the fields Formula, Shapes and Source; `tools/make_losses_page.py` writes docs/losses.md from
them. In these fields, s and t are the student and the target, T the temperature, N the batch size, C the number of
classes or channels and ‖x‖ the Euclidean norm.
"""

from kdkit.losses.attention import CWD, AttentionTransfer
from kdkit.losses.base import (
    LOSS_KWARGS,
    BuildableLoss,
    BuildContext,
    Loss,
    LossAttributes,
    accepts_no_rows,
    accepts_unknown,
    allows_any_classes,
    extra_kwargs_of,
    fills_missing,
    is_mean_over_rows,
    is_per_position,
    loss_name,
    requirements_of,
)
from kdkit.losses.channel_relations import FSP, ICKD
from kdkit.losses.chunked import Chunked
from kdkit.losses.class_maps import CATKD, SDD
from kdkit.losses.contrastive import CRD, InfoNCE
from kdkit.losses.correlation import DIST, PerLabelDIST
from kdkit.losses.cross_layer import HCL, ReviewKD, SemCKD
from kdkit.losses.decoupled import DKD, NKD, MarginMSE, PerLabelDKD
from kdkit.losses.divergences import (
    ULD,
    AdaptiveKL,
    AlphaBetaDivergence,
    PerLabelAlphaBetaDivergence,
    SkewKL,
    SkewReverseKL,
    TotalVariation,
)
from kdkit.losses.feature_statistics import FT, NST, PKD, SRD, WKDF, DISTPlus, PatientKD
from kdkit.losses.features import ProjectedLoss
from kdkit.losses.hard_labels import HardTargets, PerLabelHardTargets, SecondHead
from kdkit.losses.hints import DistilHubert, Hint, SquareHead
from kdkit.losses.interpolated import CTKD, TAID
from kdkit.losses.label_embeddings import LED
from kdkit.losses.label_losses import IgnoreUnknown, SampleWeighted
from kdkit.losses.logits import (
    GeneralisedJSD,
    LogitMSE,
    LogitStandardisation,
    PerLabelSoftTargets,
    ReverseKL,
    SoftTargets,
)
from kdkit.losses.margins import AB, OFD
from kdkit.losses.multi_level import MLLD, PerLabelMLLD
from kdkit.losses.multi_teacher import PerTeacher, TeacherWeighting
from kdkit.losses.positions import Masked, PerPosition, PerToken
from kdkit.losses.queue import QueueKL
from kdkit.losses.refined import OFA, RLD, TTM, WSLD, WTTM, PerLabelRLD
from kdkit.losses.relations import CC, PKT, RKD, SKD, SP, AdjacentCC
from kdkit.losses.self_distillation import PSKD, PerLabelPSKD
from kdkit.losses.self_supervision import SSKD
from kdkit.losses.similarity import CKA, Cosine, PairwiseAffinity
from kdkit.losses.singular_vectors import KDSVD
from kdkit.losses.srrl import SRRL
from kdkit.losses.token_relations import MiniLM
from kdkit.losses.variational import MGD, PAD, VID

__all__ = [
    "AB",
    "CATKD",
    "CC",
    "CKA",
    "CRD",
    "CTKD",
    "CWD",
    "DIST",
    "DKD",
    "FSP",
    "FT",
    "HCL",
    "ICKD",
    "KDSVD",
    "LED",
    "LOSS_KWARGS",
    "MGD",
    "MLLD",
    "NKD",
    "NST",
    "OFA",
    "OFD",
    "PAD",
    "PKD",
    "PKT",
    "PSKD",
    "RKD",
    "RLD",
    "SDD",
    "SKD",
    "SP",
    "SRD",
    "SRRL",
    "SSKD",
    "TAID",
    "TTM",
    "ULD",
    "VID",
    "WKDF",
    "WSLD",
    "WTTM",
    "AdaptiveKL",
    "AdjacentCC",
    "AlphaBetaDivergence",
    "AttentionTransfer",
    "BuildContext",
    "BuildableLoss",
    "Chunked",
    "Cosine",
    "DISTPlus",
    "DistilHubert",
    "GeneralisedJSD",
    "HardTargets",
    "Hint",
    "IgnoreUnknown",
    "InfoNCE",
    "LogitMSE",
    "LogitStandardisation",
    "Loss",
    "LossAttributes",
    "MarginMSE",
    "Masked",
    "MiniLM",
    "PairwiseAffinity",
    "PatientKD",
    "PerLabelAlphaBetaDivergence",
    "PerLabelDIST",
    "PerLabelDKD",
    "PerLabelHardTargets",
    "PerLabelMLLD",
    "PerLabelPSKD",
    "PerLabelRLD",
    "PerLabelSoftTargets",
    "PerPosition",
    "PerTeacher",
    "PerToken",
    "ProjectedLoss",
    "QueueKL",
    "ReverseKL",
    "ReviewKD",
    "SampleWeighted",
    "SecondHead",
    "SemCKD",
    "SkewKL",
    "SkewReverseKL",
    "SoftTargets",
    "SquareHead",
    "TeacherWeighting",
    "TotalVariation",
    "accepts_no_rows",
    "accepts_unknown",
    "allows_any_classes",
    "extra_kwargs_of",
    "fills_missing",
    "is_mean_over_rows",
    "is_per_position",
    "loss_name",
    "requirements_of",
]
