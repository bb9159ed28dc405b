"""The losses that kdkit registers, grouped by what they compare; `loss_name` gives their registered names."""

from collections.abc import Callable

from kdkit import losses
from kdkit.losses.base import Loss

LossClasses = tuple[Callable[..., Loss], ...]

# Each group is a table of docs/losses.md, which tools/make_losses_page.py writes in this order.
ON_OUTPUTS: LossClasses = (
    losses.SoftTargets,
    losses.HardTargets,
    losses.SecondHead,
    losses.LogitMSE,
    losses.MarginMSE,
    losses.LogitStandardisation,
    losses.DKD,
    losses.NKD,
    losses.DIST,
    losses.ReverseKL,
    losses.GeneralisedJSD,
    losses.SkewKL,
    losses.SkewReverseKL,
    losses.AdaptiveKL,
    losses.AlphaBetaDivergence,
    losses.TotalVariation,
    losses.TTM,
    losses.WTTM,
    losses.WSLD,
    losses.MLLD,
    losses.RLD,
    losses.TAID,
    losses.CTKD,
    losses.ULD,
    losses.PSKD,
    losses.OFA,
    losses.SKD,
)
# Multi-label forms, with a sigmoid per label.
PER_LABEL: LossClasses = (
    losses.PerLabelSoftTargets,
    losses.PerLabelHardTargets,
    losses.PerLabelDKD,
    losses.PerLabelDIST,
    losses.PerLabelAlphaBetaDivergence,
    losses.PerLabelMLLD,
    losses.PerLabelRLD,
    losses.PerLabelPSKD,
)
# Between the samples of a batch.
ON_RELATIONS: LossClasses = (losses.RKD, losses.SP, losses.PKT, losses.CC, losses.AdjacentCC, losses.CKA)
ON_FEATURES: LossClasses = (
    losses.Hint,
    losses.Cosine,
    losses.SquareHead,
    losses.DistilHubert,
    losses.AttentionTransfer,
    losses.CWD,
    losses.PairwiseAffinity,
    losses.MiniLM,
    losses.NST,
    losses.PKD,
    losses.PatientKD,
    losses.FT,
    losses.FSP,
    losses.KDSVD,
    losses.ICKD,
    losses.VID,
    losses.PAD,
    losses.MGD,
    losses.OFD,
    losses.AB,
    losses.HCL,
    losses.ReviewKD,
    losses.SemCKD,
    losses.SRRL,
    losses.CRD,
    losses.SSKD,
    losses.InfoNCE,
    losses.SRD,
    losses.DISTPlus,
    losses.WKDF,
    losses.SDD,
    losses.CATKD,
    losses.LED,
    losses.QueueKL,
)
# Soft targets at the scale of other public code, registered under separate names.
PRESETS: dict[str, Callable[..., Loss]] = {
    "soft_targets_deit": losses.SoftTargets.deit,
    "soft_targets_modelopt": losses.SoftTargets.modelopt,
    "soft_targets_mutual": losses.SoftTargets.mutual,
}
