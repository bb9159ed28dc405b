"""The losses that kdkit registers, grouped by what they compare; `loss_name` gives their registered names."""

from collections.abc import Callable

from kdkit.losses.attention import CWD, AttentionTransfer
from kdkit.losses.base import Loss
from kdkit.losses.channel_relations import FSP, ICKD
from kdkit.losses.class_maps import CATKD, SDD
from kdkit.losses.contrastive import CRD, InfoNCE
from kdkit.losses.correlation import DIST, PerLabelDIST
from kdkit.losses.cross_architecture import OFA
from kdkit.losses.cross_layer import HCL, ReviewKD, SemCKD
from kdkit.losses.decoupled import DKD, NKD, MarginMSE, PerLabelDKD
from kdkit.losses.divergences import (
    AdaptiveKL,
    AlphaBetaDivergence,
    PerLabelAlphaBetaDivergence,
    SkewKL,
    SkewReverseKL,
    TotalVariation,
)
from kdkit.losses.feature_statistics import SRD, WKDF, DISTPlus
from kdkit.losses.gram import SKD
from kdkit.losses.hard_labels import HardTargets, PerLabelHardTargets, SecondHead
from kdkit.losses.hints import Hint, SquareHead
from kdkit.losses.interpolated import CTKD, TAID
from kdkit.losses.label_embeddings import LED
from kdkit.losses.logits import GeneralisedJSD, LogitMSE, LogitStandardisation, ReverseKL, SoftTargets
from kdkit.losses.margins import AB, OFD
from kdkit.losses.multi_level import MLLD, PerLabelMLLD
from kdkit.losses.per_label import PerLabelSoftTargets
from kdkit.losses.queue import QueueKL
from kdkit.losses.refined import RLD, TTM, WSLD, WTTM, PerLabelRLD
from kdkit.losses.relations import CC, PKT, RKD, SP, AdjacentCC
from kdkit.losses.self_distillation import PSKD, PerLabelPSKD
from kdkit.losses.similarity import CKA, Cosine, PairwiseAffinity
from kdkit.losses.srrl import SRRL
from kdkit.losses.statistics import FT, NST, PKD, PatientKD
from kdkit.losses.token_relations import MiniLM
from kdkit.losses.variational import MGD, PAD, VID
from kdkit.losses.vocabularies import ULD

LossClasses = tuple[Callable[..., Loss], ...]

# Each group is a table of docs/losses.md, which tools/make_losses_page.py writes in this order.
ON_OUTPUTS: LossClasses = (
    SoftTargets,
    HardTargets,
    SecondHead,
    LogitMSE,
    MarginMSE,
    LogitStandardisation,
    DKD,
    NKD,
    DIST,
    ReverseKL,
    GeneralisedJSD,
    SkewKL,
    SkewReverseKL,
    AdaptiveKL,
    AlphaBetaDivergence,
    TotalVariation,
    TTM,
    WTTM,
    WSLD,
    MLLD,
    RLD,
    TAID,
    CTKD,
    ULD,
    PSKD,
    OFA,
    SKD,
)
# Multi-label forms, with a sigmoid per label.
PER_LABEL: LossClasses = (
    PerLabelSoftTargets,
    PerLabelHardTargets,
    PerLabelDKD,
    PerLabelDIST,
    PerLabelAlphaBetaDivergence,
    PerLabelMLLD,
    PerLabelRLD,
    PerLabelPSKD,
)
# Between the samples of a batch.
ON_RELATIONS: LossClasses = (RKD, SP, PKT, CC, AdjacentCC, CKA)
ON_FEATURES: LossClasses = (
    Hint,
    Cosine,
    SquareHead,
    AttentionTransfer,
    CWD,
    PairwiseAffinity,
    MiniLM,
    NST,
    PKD,
    PatientKD,
    FT,
    FSP,
    ICKD,
    VID,
    PAD,
    MGD,
    OFD,
    AB,
    HCL,
    ReviewKD,
    SemCKD,
    SRRL,
    CRD,
    InfoNCE,
    SRD,
    DISTPlus,
    WKDF,
    SDD,
    CATKD,
    LED,
    QueueKL,
)
# Soft targets at the scale of other public code, registered under separate names.
PRESETS: dict[str, Callable[..., Loss]] = {
    "soft_targets_deit": SoftTargets.deit,
    "soft_targets_modelopt": SoftTargets.modelopt,
    "soft_targets_mutual": SoftTargets.mutual,
}
