"""Find probabilities that are passed to losses on logits, and logits that are passed as targets of probabilities."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from kdkit.losses.base import is_of_kdkit, unwrapped
from kdkit.losses.sides import TensorOrTuple, as_tuple

_CROSS_ENTROPIES: tuple[object, ...] = (nn.CrossEntropyLoss, F.cross_entropy)
_BINARY: tuple[object, ...] = (
    nn.BCEWithLogitsLoss,
    F.binary_cross_entropy_with_logits,
    nn.MultiLabelSoftMarginLoss,
    F.multilabel_soft_margin_loss,
)
_CTC: tuple[object, ...] = (F.ctc_loss, torch.ctc_loss)
_TAKES_LOGITS = (*_CROSS_ENTROPIES, *_BINARY)
_VIEWS = ("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "ToCopy", "Slice", "Select")
# This many values are not all in [0, 1] by chance. Functions return probabilities more often than networks do.
_ENOUGH, _ENOUGH_OF_FUNCTION = 12, 4


def _is_no_probability(values: Tensor) -> Tensor:
    return (values < -1e-3) | (values > 1 + 1e-3)


def _is_no_log_probability(values: Tensor) -> Tensor:
    return values > 1e-3


class _Values(NamedTuple):
    """The values that losses of torch take on one side: in words, how to recognize others, and what to use instead."""

    losses: tuple[object, ...]
    words: str
    is_wrong: Callable[[Tensor], Tensor]
    remedy: str


_SOFT_TARGETS = "kdkit.losses.SoftTargets(temperature=1), which takes the logits of both sides"
_NO_COUNT = "a loss on numbers, such as nn.MSELoss()"
_TARGETS = (
    _Values(_CROSS_ENTROPIES, "probabilities", _is_no_probability, _SOFT_TARGETS),
    _Values(
        (*_BINARY, nn.BCELoss, F.binary_cross_entropy),
        "probabilities",
        _is_no_probability,
        "kdkit.losses.PerLabelSoftTargets(temperature=1), which takes the logits of both sides",
    ),
    _Values((nn.PoissonNLLLoss, F.poisson_nll_loss), "counts", lambda target: target < 0, _NO_COUNT),
    _Values(
        (nn.SoftMarginLoss, F.soft_margin_loss, nn.HingeEmbeddingLoss, F.hinge_embedding_loss),
        "labels of 1 and -1",
        lambda target: target.abs() != 1,
        _NO_COUNT,
    ),
)
_STUDENTS = (
    _Values(
        (nn.NLLLoss, F.nll_loss),
        "log-probabilities, such as those of log_softmax",
        _is_no_log_probability,
        "nn.CrossEntropyLoss(), which takes logits",
    ),
    _Values(
        (nn.CTCLoss, *_CTC),
        "log-probabilities, such as those of log_softmax",
        _is_no_log_probability,
        "log_softmax in the loss",
    ),
    _Values(
        (nn.BCELoss, F.binary_cross_entropy),
        "probabilities, such as those of a sigmoid",
        _is_no_probability,
        "nn.BCEWithLogitsLoss(), which takes logits",
    ),
)


def kind_of_probabilities(outputs: Tensor, *, of_function: bool) -> Literal["softmax", "sigmoid"] | None:
    """Return the function that seems to have turned outputs, (batch, classes, ...), into probabilities, or None.

    The logarithm of a softmax does not count: losses on logits are invariant to it. of_function: whether the outputs
    are not those of a network, but for example of trees, whose probabilities of a rare class are almost equal.
    """
    if not outputs.is_floating_point() or outputs.is_nested or outputs.ndim < 2 or not outputs.numel():
        return None
    values = outputs.detach().float()
    if _is_no_probability(values).any() or values.isnan().any():
        return None
    # Probabilities in half precision do not sum to exactly 1.
    tolerance = 1e-3 if outputs.dtype.itemsize >= 4 else 1e-2
    if ((values.sum(1) - 1).abs() < tolerance).all():
        return "softmax"
    node = outputs.grad_fn
    if node is None:  # of a frozen teacher
        # If outputs of a network are almost equal for all samples, they may all be in [0, 1] by chance.
        enough, least = (_ENOUGH_OF_FUNCTION, 0) if of_function else (_ENOUGH, 0.05)
        varies = (values.amax(0) - values.amin(0)).max() > least
        return "sigmoid" if values.numel() >= enough and varies else None
    # Outputs of an untrained network may all be in [0, 1] by chance, so the graph decides.
    while node.name().startswith(_VIEWS) and node.next_functions[0][0] is not None:
        node = node.next_functions[0][0]
    return "sigmoid" if node.name().startswith("Sigmoid") else None


def takes_logits(loss: object) -> bool:
    """Whether a loss is known to take logits: a loss of kdkit, or a cross-entropy of torch, even if kdkit wraps it."""
    loss = unwrapped(loss)
    return _is_among(loss, _TAKES_LOGITS) or is_of_kdkit(loss)


def student_problem(loss: Any, student: TensorOrTuple) -> str | None:
    """Return why the outputs of a student cannot be those that a loss of torch takes, and what to do, or None."""
    loss = unwrapped(loss)
    for kind in _STUDENTS:
        if _is_among(loss, kind.losses) and _any(student, kind.is_wrong):
            return f"it takes {kind.words}, but got other values; use {kind.remedy}"
    return None


def target_problem(loss: Any, student: TensorOrTuple, target: TensorOrTuple) -> str | None:
    """Return why the outputs of a teacher cannot be the target of a loss of torch, and what to do, or None."""
    loss = unwrapped(loss)
    if _is_among(loss, (nn.KLDivLoss, F.kl_div)):
        is_log = getattr(loss, "log_target", False)
        targets_fit = not _any(target, _is_no_log_probability if is_log else _is_no_probability)
        if targets_fit and not _any(student, _is_no_log_probability):
            return None
        return (
            f"it takes log-probabilities of the student, such as those of log_softmax, and "
            f"{'log-' if is_log else ''}probabilities of the teacher, but got other values; use {_SOFT_TARGETS}"
        )
    for kind in _TARGETS:
        if _is_among(loss, kind.losses) and _any(target, kind.is_wrong):
            least, most = (float(f(side.min() for side in as_tuple(target))) for f in (min, max))
            return (
                f"its target must be {kind.words}, but these are numbers from {least:.3g} to {most:.3g}; use "
                f"{kind.remedy}"
            )
    return None


class WatchLosses(TorchFunctionMode):
    """Watches the calls of torch's losses within the context, also those of a loss that a user wrote.

    checks_targets: whether targets are looked at, which come from a teacher. outputs: the shape of the outputs, (batch,
    classes, ...), if the loss gets these. calls_ctc: whether one is the CTC loss.
    notice: why the arguments of a call seem to be mistaken, or "". A formula may use the function for something else.
    """

    def __init__(self, *, checks_targets: bool, outputs: torch.Size | None) -> None:
        super().__init__()
        self.checks_targets, self.outputs, self.calls_ctc = checks_targets, outputs, False
        self.notice = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a torch function, and look at its arguments if it is a loss."""
        kwargs = kwargs or {}
        self.calls_ctc |= func in _CTC
        if not self.notice and func in _WATCHED:
            student = args[0] if args else kwargs.get("input")
            target = args[1] if len(args) > 1 else kwargs.get("target")
            has_target = self.checks_targets and not kwargs.get("log_target")
            with suppress(RuntimeError):  # within vmap, tensors have no values
                problem = _call_problem(func, student, target if has_target else None, self.outputs)
                self.notice = "" if problem is None else f"calls {func.__name__}, which may be a mistake: {problem}"
        return func(*args, **kwargs)


_WATCHED = frozenset(
    loss
    for loss in (F.kl_div, *(loss for kind in (*_TARGETS, *_STUDENTS) for loss in kind.losses))
    if not isinstance(loss, type)
)


def _call_problem(func: Any, student: Any, target: Any, outputs: torch.Size | None) -> str | None:
    if not isinstance(student, Tensor):
        return None
    problem = student_problem(func, student)
    if problem is None and isinstance(target, Tensor) and func not in _CTC:
        problem = target_problem(func, student, target)
    # In a tensor of another form, such as one whose positions come first, the classes may be in any dimension.
    if problem is None and func is F.kl_div and (student.ndim == 2 or student.shape == outputs):
        sums = [
            size > 1 and bool((student.detach().exp().sum(dim) - 1).abs().max() < 1e-2)
            for dim, size in enumerate(student.shape)
        ]
        if any(sums) and not sums[1]:
            over = "samples" if sums[0] else "positions, and outputs are (batch, classes, *positions)"
            problem = f"its probabilities sum to 1 over the {over}; pass dim=1 to log_softmax and softmax"
    return problem


def _is_among(loss: object, losses: tuple[object, ...]) -> bool:
    return any(isinstance(loss, kind) if isinstance(kind, type) else loss is kind for kind in losses)


def _any(side: TensorOrTuple, predicate: Callable[[Tensor], Tensor]) -> bool:
    return any(bool(predicate(tensor).any()) for tensor in as_tuple(side) if tensor.is_floating_point())
