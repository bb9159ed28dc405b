"""More divergences between probabilities: alpha-beta, skewed, adaptive, total variation, and of sorted ones (ULD)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kdkit.errors import RecipeError
from kdkit.losses.logits import (
    SoftenedLoss,
    clamp_masked,
    kl_sum,
    kl_terms,
    log_probabilities,
    mixture_log,
    reduce_sum,
)
from kdkit.losses.numerics import upcast_half
from kdkit.losses.validation import (
    Reduction,
    is_number,
    require_same_outputs,
    require_sides,
    validate_reduction,
    validate_share,
    validate_temperature,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlphaBetaDivergence(SoftenedLoss):
    """Divergence with two exponents, alpha on the teacher's and beta on the student's probabilities (ABKD).

    Dimensionless; reduction and t_squared as in ReverseKL. (1, 0) is the forward KL divergence, (0, 1) the reverse one,
    (0.5, 0.5) four times the squared Hellinger distance Σ (√p - √q)², and (1, 1) half the squared difference of
    probabilities. The defaults are those of the authors' code; its script for GPT-2 uses (0.2, 0.7). If alpha, beta or
    their sum is 0, the limit is computed. A small beta emphasises classes that the teacher is sure of, a small alpha
    those that the student is sure of. With negative exponents, the loss is infinite if a probability underflows.

    The authors' code differs in the limits: it divides by alpha or beta once, not twice, so its values are not
    continuous in the options. It leaves out classes that one side masks; here, only classes that both sides mask add
    nothing.

    Formula: -1/(N alpha beta) · Σ (p^alpha q^beta - alpha/(alpha + beta) p^(alpha + beta) - beta/(alpha + beta)
        q^(alpha + beta)), with p = softmax(t / T) and q = softmax(s / T)
    Shapes: logits (N, C), (N, tokens, C)
    Source: Wang et al. 2025, "ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation via
        alpha-beta-Divergence", arXiv:2505.04560; Cichocki et al. 2011, "Generalized Alpha-Beta Divergences and Their
        Application to Robust Nonnegative Matrix Factorization", Entropy 13
    """

    alpha: float = 0.5
    beta: float = 0.5

    def __post_init__(self) -> None:
        super(AlphaBetaDivergence, self).__post_init__()
        _validate_exponents(self.alpha, self.beta)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, minimal (0) if both sides give the same probabilities."""
        student_log, target_log = self._log_probabilities(student, target)
        return self._reduce(_alpha_beta_terms(target_log, student_log, self.alpha, self.beta).sum(), student)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLabelAlphaBetaDivergence(SoftenedLoss):
    """Alpha-beta divergence between the Bernoulli distributions of every label, the form for multi-label outputs.

    Dimensionless, mean over batch and classes by default; options as in AlphaBetaDivergence. (1, 0) is
    PerLabelSoftTargets.

    Formula: 1/(N C) · Σ (D(p, q) + D(1 - p, 1 - q)), with p = sigmoid(t / T), q = sigmoid(s / T) and D(p, q) the term
        of AlphaBetaDivergence
    Shapes: logits (N, C)
    Source: ours, after Wang et al. 2025, arXiv:2505.04560
    """

    alpha: float = 0.5
    beta: float = 0.5
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        super(PerLabelAlphaBetaDivergence, self).__post_init__()
        _validate_exponents(self.alpha, self.beta)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, minimal (0) if both sides give the same probabilities."""
        require_same_outputs(student, target, self, dense=True)
        ours, theirs = upcast_half(student) / self.temperature, upcast_half(target) / self.temperature
        present = _alpha_beta_terms(F.logsigmoid(theirs), F.logsigmoid(ours), self.alpha, self.beta)
        absent = _alpha_beta_terms(F.logsigmoid(-theirs), F.logsigmoid(-ours), self.alpha, self.beta)
        return self._reduce((present + absent).sum(), student)


@dataclass(frozen=True, slots=True, kw_only=True)
class SkewKL(SoftenedLoss):
    """Kullback-Leibler divergence from a mixture of both sides to the teacher (DistiLLM).

    In nats; reduction and t_squared as in ReverseKL. skew is the teacher's share in the mixture, in [0, 1); 0 is the
    forward KL divergence. The gradient stays bounded if the student gives a probability of 0 to one of the teacher's
    classes. The authors' code leaves out the teacher's entropy, a constant, and takes logarithms of probabilities,
    which may underflow.

    Formula: 1/N · Σ p log(p / (skew p + (1 - skew) q)), with p = softmax(t / T) and q = softmax(s / T)
    Shapes: logits (N, C), (N, tokens, C)
    Source: Ko et al. 2024, "DistiLLM: Towards Streamlined Distillation for Large Language Models", arXiv:2402.03898,
        sec. 3.1
    """

    skew: float = 0.1

    def __post_init__(self) -> None:
        super(SkewKL, self).__post_init__()
        validate_share("skew", self.skew, below_one=True)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, minimal (0) if both sides give the same probabilities."""
        student_log, target_log = self._log_probabilities(student, target)
        return self._reduce(_skewed_kl_sum(target_log, student_log, self.skew), student)


@dataclass(frozen=True, slots=True, kw_only=True)
class SkewReverseKL(SkewKL):
    """Kullback-Leibler divergence from a mixture of both sides to the student (DistiLLM).

    In nats; options as in SkewKL. skew is the student's share in the mixture; 0 is ReverseKL. Unlike ReverseKL it is
    finite for classes that the teacher masks.

    Formula: 1/N · Σ q log(q / ((1 - skew) p + skew q)), with p = softmax(t / T) and q = softmax(s / T)
    Shapes: logits (N, C), (N, tokens, C)
    Source: Ko et al. 2024, "DistiLLM: Towards Streamlined Distillation for Large Language Models", arXiv:2402.03898,
        sec. 3.1
    """

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the divergence, minimal (0) if both sides give the same probabilities."""
        student_log, target_log = self._log_probabilities(student, target)
        return self._reduce(_skewed_kl_sum(student_log, target_log, self.skew), student)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveKL(SoftenedLoss):
    """Forward and reverse KL divergence, weighted for each sample by how much its likely and unlikely classes differ.

    In nats; reduction and t_squared as in ReverseKL. The teacher's head is its most probable classes, as many as are
    needed for a total probability of at least `head`; the other classes are its tail. The weight of the forward
    divergence is the share of the head in Σ |p - q|. The weights get no gradient.

    DSKD's code does the same. The authors' code and that of ABKD count the class that reaches this total as part of the
    tail, unless it is the most probable one. TAID's code applies the mask of the sorted classes to the gaps in their
    original order, which makes the weights depend on the order of the classes.

    Formula: 1/N · Σ (w KL(p ‖ q) + (1 - w) KL(q ‖ p)), with p = softmax(t / T), q = softmax(s / T) and w = Σ |p - q|
        over the head of p, divided by that over all classes
    Shapes: logits (N, C), (N, tokens, C)
    Source: Wu et al. 2024, "Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large Language
        Models", arXiv:2404.02657
    """

    head: float = 0.5

    def __post_init__(self) -> None:
        super(AdaptiveKL, self).__post_init__()
        validate_share("head", self.head)

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the weighted sum, minimal (0) if both sides give the same probabilities."""
        student_log, target_log = self._log_probabilities(student, target)
        forward, backward = kl_terms(target_log, student_log).sum(-1), kl_terms(student_log, target_log).sum(-1)
        with torch.no_grad():
            weight = self.forward_weight(student_log.exp(), target_log.exp())
        return self._reduce((weight * forward + (1 - weight) * backward).sum(), student)

    def forward_weight(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the weight of the forward divergence, (...), from probabilities (..., classes)."""
        target, order = target.sort(dim=-1, descending=True, stable=True)
        gaps = (target - student.gather(-1, order)).abs()
        # a class belongs to the head if the more probable classes do not reach the share by themselves
        in_head = target.cumsum(-1) - target < self.head
        total = gaps.sum(-1)
        return (gaps * in_head).sum(-1) / torch.where(total > 0, total, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TotalVariation(SoftenedLoss):
    """Total variation distance, half the absolute difference of probabilities.

    Dimensionless, in [0, 1] for each sample; reduction and t_squared as in ReverseKL. It is symmetric, and its gradient
    does not grow with the error.

    Formula: 1/(2 N) · Σ |p - q|, with p = softmax(t / T) and q = softmax(s / T)
    Shapes: logits (N, C), (N, tokens, C)
    Source: Wen et al. 2023, "f-Divergence Minimization for Sequence-Level Knowledge Distillation", arXiv:2307.15190
    """

    def __call__(self, student: Tensor, target: Tensor) -> Tensor:
        """Return the distance, minimal (0) if both sides give the same probabilities."""
        student_log, target_log = self._log_probabilities(student, target)
        return self._reduce((student_log.exp() - target_log.exp()).abs().sum() / 2, student)


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


def _validate_exponents(alpha: float, beta: float) -> None:
    for name, exponent in (("alpha", alpha), ("beta", beta)):
        if not is_number(exponent):
            raise RecipeError(f"{name} is an exponent, a finite number; got {exponent!r}")


def _skewed_kl_sum(first_log: Tensor, second_log: Tensor, skew: float) -> Tensor:
    """Return KL(first ‖ skew * first + (1 - skew) * second) from log probabilities, summed over all rows."""
    if skew == 0:
        return kl_sum(first_log, second_log)
    first_log, second_log = clamp_masked(first_log), clamp_masked(second_log)
    return kl_sum(first_log, mixture_log(first_log, second_log, skew), finite=True)


def _alpha_beta_terms(target_log: Tensor, student_log: Tensor, alpha: float, beta: float) -> Tensor:
    """Return the terms of the divergence from log probabilities, of the shape of both, each at least 0.

    They are written with expm1 of the differences of log probabilities: the three terms of the formula nearly cancel
    for similar sides, which would leave rounding errors times 1 / (alpha * beta).
    """
    absent = (target_log == -math.inf) & (student_log == -math.inf)  # on both sides, whose difference would be NaN
    target_log, student_log = target_log.masked_fill(absent, 0), student_log.masked_fill(absent, 0)
    if alpha == beta == 0:
        return (target_log - student_log).square() / 2
    if alpha + beta == 0:
        ratio = alpha * (target_log - student_log)
        return (ratio.expm1() - ratio) / alpha**2
    if alpha == 0:  # the mirror image of beta = 0
        target_log, student_log, alpha, beta = student_log, target_log, beta, alpha
    # log(p / q) and log(q / p), or 0 instead of a negative one: at 0, a term and its gradient are 0
    above, below = (target_log - student_log).clamp(min=0), (student_log - target_log).clamp(min=0)
    if beta == 0:
        above, below = alpha * above, clamp_masked(-alpha * below)
        target_terms = (alpha * target_log).exp() * (above + (-above).expm1())
        return (target_terms + (alpha * student_log).exp() * (below * below.exp() - below.expm1())) / alpha**2
    total = alpha + beta

    def terms(log: Tensor, difference: Tensor, exponent: float) -> Tensor:
        # the larger probability is the factor, so that the exponentials in the bracket are at most 1
        bracket = exponent / total * (-total * difference).expm1() - (-exponent * difference).expm1()
        return (total * log).exp() * bracket / (alpha * beta)

    return terms(target_log, above, beta) + terms(student_log, below, alpha)
