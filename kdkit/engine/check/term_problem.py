"""Find the problem of a term from its inputs for a tiny batch."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kdkit.engine.check.plan import describe_shape
from kdkit.engine.check.probabilities import target_problem
from kdkit.engine.class_alignment import TermInputs
from kdkit.engine.terms import BoundTerm
from kdkit.errors import KdkitError, first_line
from kdkit.losses.base import describe_loss
from kdkit.losses.features import TensorOrTuple, as_tuple
from kdkit.losses.multi_teacher import PerTeacher
from kdkit.nets.net import Net
from kdkit.nets.taps import AttentionTap
from kdkit.recipe.objective import Match, taps_of
from kdkit.teachers.ensemble import Teachers
from kdkit.teachers.peer import Peer
from kdkit.utils.modules import preserve_buffers


def term_problem(
    term: BoundTerm, inputs: TermInputs, kwargs: Mapping[str, Any], cause_not_finite: Callable[[], str | None]
) -> str | None:
    """Return the problem of a term with these inputs, or None.

    cause_not_finite: returns why its value is not a finite number if the data or a teacher is the reason.
    """
    if (term.alignment is not None or term.rows is not None) and not len(as_tuple(inputs.student)[0]):
        return None  # no row of the tiny batch has a label or a shared class
    if term.ignore_index is not None and (inputs.labels == term.ignore_index).all():
        return None  # a later batch has labels
    target = inputs.target_or_labels()
    shapes = f"student {describe_shape(inputs.student)} and target {describe_shape(target)}"
    loss, student = describe_loss(term.loss), repr(term.student_net.name)
    if isinstance(term.weighted.term, Match):
        problem = target_problem(term.loss, inputs.student, target)
        if problem is not None:
            return f"{loss} does not fit: {problem}"
    watch = _WatchBroadcast(inputs.student, target)
    try:
        # A loss with a memory bank updates its buffers when it is called.
        with (
            watch,
            warnings.catch_warnings(record=True) as caught,
            preserve_buffers([term.loss] if isinstance(term.loss, nn.Module) else []),
        ):
            warnings.simplefilter("always")
            value = term.loss(inputs.student, target, **kwargs)
    except KdkitError as error:
        return str(error)
    except Exception as error:  # the loss may be user-defined, and its sides may not fit it
        takes_one = _matches(term, Teachers) and not isinstance(term.loss, PerTeacher)
        hint = f"; Teachers(...) gives a tuple, of which PerTeacher({loss}) takes each element" if takes_one else ""
        if term.alignment is not None and _has_other_vectors(term.loss, as_tuple(inputs.student)[0].shape[1]):
            hint = (
                "; only classes that both sides have are compared: a vector per class has a value for each of these, "
                "in the order of the data's classes"
            )
        if isinstance(inputs.student, tuple) and "'tuple'" in str(error):
            hint = "; it takes one tap on each side: write a term for each pair of taps"
        return f"{loss} does not accept {shapes}: {first_line(error)}{hint or _heads_advice(term, inputs)}"
    if any("target size" in str(warning.message) for warning in caught):  # the warning of torch.nn.functional
        of_labels = "give the labels the shape of the outputs, such as labels[:, None]"
        advice = of_labels if term.target is None else "bring them together with a projector"
        return f"{shapes} have different shapes and would be broadcast{_heads_advice(term, inputs) or f'; {advice}'}"
    if not isinstance(value, Tensor) or value.ndim:
        got = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        return f"{loss} must return a scalar; got {got}; reduce it, for example with .mean()"
    if not value.requires_grad:
        return f"{loss} has no effect: it has no gradient for net {student}"
    if not any(side.requires_grad for side in as_tuple(inputs.student)):
        return (
            f"{loss} trains its own parameters only: the tensors of net {student} have no gradient; they are detached, "
            "of frozen layers, or of a module that recomputes its activations with use_reentrant=True"
        )
    if watch.is_broadcast:
        return (
            f"{shapes} would be broadcast to {watch.shape}, which compares each sample with every other one; give "
            "both the same shape, such as labels[:, None] or outputs.squeeze(1)"
        )
    if _matches(term, Peer, net=term.student_net) and not _has_gradient(value, inputs.student):
        return f"{loss} has no effect: net {student} is compared with its own output"
    if not torch.isfinite(value):
        cause = cause_not_finite()
        return f"{loss} is {value.item()} at the first step{'' if cause is None else f': {cause}'}"
    # Zero is right for a batch without labels, or whose samples have no weight.
    has_labels = not isinstance(target, Tensor) or not target.isnan().all()
    has_weight = "sample_weights" not in kwargs or inputs.weights is None or bool(inputs.weights.any())
    if value == 0 and has_labels and has_weight and _is_zero_for_noise(term, inputs, kwargs):
        columns = as_tuple(inputs.student)[0].shape[1:2]
        is_alone = term.alignment is not None and columns == (1,)
        reason = ", since the sides share one class only, of which the probability is 1" if is_alone else ""
        return f"{loss} is always zero, whatever net {student} returns{reason}"
    return None


class _WatchBroadcast(TorchFunctionMode):
    """Finds out whether a loss broadcasts its two sides to a shape larger than both, as (N, 1) and (N,) to (N, N).

    A loss of user code may bring them together itself, so its calls of torch are watched.
    shape: the one they would be broadcast to, None if there is no such shape.
    """

    def __init__(self, student: TensorOrTuple, target: TensorOrTuple) -> None:
        super().__init__()
        self.shape = _broadcast_shape(student, target)
        self.sides = () if self.shape is None else (as_tuple(student)[0].shape, as_tuple(target)[0].shape)
        self.is_broadcast = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, and note whether it broadcasts the sides."""
        result = func(*args, **(kwargs or {}))
        if self.shape is not None:
            shapes = [value.shape for value in (*args, *(kwargs or {}).values()) if isinstance(value, Tensor)]
            # Functions of losses return a scalar, and call others that are watched as well.
            is_pair = set(self.sides) <= set(shapes)
            self.is_broadcast |= is_pair and isinstance(result, Tensor) and result.shape in (self.shape, ())
        return result


def _is_zero_for_noise(term: BoundTerm, inputs: TermInputs, kwargs: Mapping[str, Any]) -> bool:
    """Whether a loss is zero for a noisy student as well: then it is zero for every student."""
    noisy = tuple(tensor + torch.randn_like(tensor) for tensor in as_tuple(inputs.student))
    student = noisy if isinstance(inputs.student, tuple) else noisy[0]
    with warnings.catch_warnings(), preserve_buffers([term.loss] if isinstance(term.loss, nn.Module) else []):
        warnings.simplefilter("ignore")
        try:
            return bool(term.loss(student, inputs.target_or_labels(), **kwargs) == 0)
        except Exception:  # the loss may be user-defined, or take nothing but probabilities
            return False


def _has_other_vectors(loss: Any, classes: int) -> bool:
    """Whether a loss holds a vector that has not a value for each class, such as the `weight` of losses of torch."""
    tensors = [*loss.parameters(), *loss.buffers()] if isinstance(loss, nn.Module) else []
    return any(tensor.ndim == 1 and len(tensor) not in (1, classes) for tensor in tensors)


def _matches(term: BoundTerm, kind: type, net: Net[Any] | None = None) -> bool:
    """Whether a term matches a teacher of this kind, and of this network if one is passed."""
    match = term.weighted.term
    if not isinstance(match, Match) or not isinstance(match.teacher, kind):
        return False
    return net is None or getattr(match.teacher, "net", None) is net


def _heads_advice(term: BoundTerm, inputs: TermInputs) -> str:
    """Return advice for attention maps of different numbers of heads; "" for other sides."""
    match, student, target = term.weighted.term, inputs.student, inputs.target
    if not isinstance(match, Match) or not all(
        isinstance(tap, AttentionTap) for tap in (*taps_of(match.student), *taps_of(match.target))
    ):
        return ""
    if not isinstance(student, Tensor) or not isinstance(target, Tensor) or student.shape[1] == target.shape[1]:
        return ""
    return (
        f"; the maps have {student.shape[1]} and {target.shape[1]} heads: compare their means over heads, with a "
        "loss such as lambda student, target: nn.functional.mse_loss(student.mean(1), target.mean(1))"
    )


def _broadcast_shape(student: TensorOrTuple, target: TensorOrTuple) -> tuple[int, ...] | None:
    """Return the shape to which two tensors are broadcast if it is larger than both, as for (N, 1) and (N,)."""
    if isinstance(student, tuple) or isinstance(target, tuple) or student.ndim == target.ndim:
        return None
    try:
        shape: torch.Size = torch.broadcast_shapes(student.shape, target.shape)  # type: ignore[no-untyped-call]  # untyped
    except RuntimeError:  # they cannot be broadcast
        return None
    return tuple(shape) if shape.numel() > max(student.numel(), target.numel()) else None


def _has_gradient(value: Tensor, student: TensorOrTuple) -> bool:
    """Whether the gradient at the student side is above rounding."""
    sides = [side for side in as_tuple(student) if side.requires_grad]
    gradients = torch.autograd.grad(value, sides, retain_graph=True, allow_unused=True) if sides else ()
    return any(gradient is not None and gradient.abs().max() > 1e-6 for gradient in gradients)
