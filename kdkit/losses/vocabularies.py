"""Losses between outputs over different vocabularies, such as those of language models with different tokenizers."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use

from kdkit.errors import RecipeError
from kdkit.losses.logits import log_probabilities, reduce_sum
from kdkit.losses.validation import Reduction, require_sides, validate_reduction, validate_temperature


@dataclass(frozen=True, slots=True, kw_only=True)
class ULD:
    """Absolute difference of sorted probabilities, whose classes may differ (universal logit distillation).

    Dimensionless, in [0, 2] for each sample or token. The probabilities of either side are sorted, and the shorter list
    is padded with zeros, so the loss compares how sure both sides are, not of what: a closed form of a Wasserstein
    distance between them. reduction "batchmean" sums over all other dimensions and averages over the batch; "mean"
    averages over all entries of the student. A temperature divides both sides; the paper has none. Token k is compared
    to token k. For texts that are tokenized differently, Masked(ULD(), mask="answer", target_mask="teacher_answer")
    compares the answers of both from their first tokens, up to the shorter one, as in the authors' code. That code
    takes the mean over the tokens of each text first; here, every token counts once.

    Formula: 1/N · Σ |sort p - sort q|, with p = softmax(t / T) and q = softmax(s / T), padded with zeros
    Shapes: logits (N, C), (N, tokens, C); the classes of both sides may differ
    Source: Boizard et al. 2024, "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs",
        arXiv:2402.12030
    """

    temperature: float = 1.0
    reduction: Reduction = "batchmean"

    per_position = True
    mean_over_rows = True
    any_classes = True

    def __post_init__(self) -> None:
        validate_temperature(self.temperature)
        validate_reduction(self.reduction)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the difference, minimal (0) if both sides have the same probabilities in any order."""
        require_sides(student, target, self, form="outputs (batch, classes) or (batch, tokens, classes)")
        if student.ndim > 3 or student.shape[:-1] != target.shape[:-1]:
            raise RecipeError(
                f"ULD compares outputs (batch, classes) or (batch, tokens, classes) with as many rows; got "
                f"{tuple(student.shape)} and {tuple(target.shape)}; PerToken(loss) takes each token as a sample, "
                "PerPosition(loss) each position of (batch, classes, ...)"
            )
        ours, theirs = (log_probabilities(side, self.temperature).exp() for side in (student, target))
        ours, theirs = (side.sort(dim=-1, descending=True).values for side in (ours, theirs))
        classes = max(ours.shape[-1], theirs.shape[-1])
        ours, theirs = (F.pad(side, (0, classes - side.shape[-1])) for side in (ours, theirs))
        return reduce_sum((ours - theirs).abs().sum(), student, self.reduction)
