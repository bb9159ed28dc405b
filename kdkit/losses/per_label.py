"""Soft targets for multi-label classification: a divergence between the Bernoulli distributions of every label."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.losses.features import upcast_half
from kdkit.losses.logits import DivergenceOptions
from kdkit.losses.validation import Reduction, require_same_outputs, validate_switches


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLabelSoftTargets(DivergenceOptions):
    """Kullback-Leibler divergence between the two Bernoulli distributions of every label, softened by a temperature.

    The multi-label form of soft targets: a sigmoid per class keeps the teacher's absolute confidence, which a softmax
    over the classes loses. In nats. reduction "mean" averages over batch and classes, the scale of BCEWithLogitsLoss;
    "batchmean" sums over classes and averages over the batch. entropy=True keeps the teacher's entropy, which gives the
    plain cross-entropy: the same gradient, with a minimum above 0.

    Formula: T²/(N C) · Σ (p log(p / q) + (1 - p) log((1 - p) / (1 - q))), with p = sigmoid(t / T) and q = sigmoid(s /
        T)
    Shapes: logits (N, C)
    Source: ours, after Hinton et al. 2015, arXiv:1503.02531
    """

    t_squared: bool = True
    reduction: Reduction = "mean"
    entropy: bool = False

    def __post_init__(self) -> None:
        super(PerLabelSoftTargets, self).__post_init__()
        validate_switches(entropy=self.entropy)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, minimal (0, unless entropy=True) if both give the same probabilities."""
        require_same_outputs(student, target, self, dense=True)
        student, softened = upcast_half(student) / self.temperature, upcast_half(target) / self.temperature
        probability = softened.sigmoid()
        # computed from logits, which stays finite if a sigmoid saturates
        loss = F.binary_cross_entropy_with_logits(student, probability, reduction="sum")
        if not self.entropy:
            # KL = cross-entropy - entropy of the teacher
            loss = loss - F.binary_cross_entropy_with_logits(softened, probability, reduction="sum")
        return self._reduce(loss, student)
