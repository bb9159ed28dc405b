"""Find the problem of a term from its inputs for a tiny batch."""

import warnings
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kdkit.engine.check.facts import Facts
from kdkit.engine.check.plan import describe_shape
from kdkit.engine.check.probabilities import student_problem, target_problem
from kdkit.engine.failures.network_errors import device_advice, line_of_user_code
from kdkit.engine.failures.not_finite import cause_in_inputs, cause_in_outputs
from kdkit.engine.stage.term_inputs import TermInputs
from kdkit.engine.stage.terms import BoundTerm
from kdkit.errors import KdkitError, first_line
from kdkit.losses.base import LOSS_KWARGS, describe_loss
from kdkit.losses.multi_teacher import PerTeacher
from kdkit.losses.positions import Masked
from kdkit.losses.sides import TensorOrTuple, as_tuple, map_side
from kdkit.losses.validation import ONE_OUTPUT
from kdkit.nets.taps import AttentionTap, moves_channels
from kdkit.recipe.objective import taps_of
from kdkit.teachers.ensemble import Teachers
from kdkit.teachers.peer import Peer
from kdkit.utils.modules import preserve_buffers
from kdkit.utils.validation import is_number

_NO_GRADIENT = (
    "they are computed in torch.no_grad() or torch.inference_mode(), or by torch.autograd.grad without "
    "create_graph=True, are detached, or come from frozen layers or from a module that recomputes activations with "
    "use_reentrant=True"
)


def compares_nothing(term: BoundTerm, inputs: TermInputs) -> bool:
    """Whether no row of the inputs has a label and a shared class, so that the loss is 0 or is not called."""
    selects = term.alignment is not None or term.rows is not None
    has_no_label = term.ignore_index is not None and bool((inputs.labels == term.ignore_index).all())
    return has_no_label or (selects and not len(as_tuple(inputs.student)[0]))


class TermCheck:
    """Checks a term with the inputs of its loss. Each check needs the earlier ones to find no problem."""

    def __init__(self, facts: Facts, term: BoundTerm, inputs: TermInputs) -> None:
        self.facts, self.term, self.inputs = facts, term, inputs
        self.kwargs = term.loss_kwargs(inputs, facts.module.progress)
        self.target = inputs.target_or_labels()
        self.shapes = f"student {describe_shape(inputs.student)} and target {describe_shape(self.target)}"
        self.loss, self.student = describe_loss(term.loss), repr(term.student_net.name)
        self.teacher = term.weighted.term.teacher
        self.first = as_tuple(inputs.student)[0]
        self.value: Any = None  # of the loss, once `problem` has computed it

    def problem(self) -> str | None:
        """Return the first problem, or None."""
        term = self.term
        if compares_nothing(term, self.inputs):
            return None  # later batches have labels
        problem = student_problem(term.loss, self.inputs.student)
        if problem is None and self.teacher is not None:
            problem = target_problem(term.loss, self.inputs.student, self.target)
        if problem is not None:
            return f"{self.loss} does not fit: {problem}"
        watch = _WatchBroadcast(self.inputs.student, self.target)
        try:
            with watch, warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                value = self.value = self._value(self.inputs.student, self.target)
        except KdkitError as error:
            return str(error)
        except Exception as error:  # a user-defined loss may raise anything, or not fit its two sides
            reason = f"{first_line(error)}{line_of_user_code(error)}{self._advice_for_sides(error)}"
            return f"{self.loss} does not accept {self.shapes}: {reason}"
        if any("target size" in str(warning.message) for warning in caught):  # the warning of torch.nn.functional
            return f"{self.shapes} have different shapes and would be broadcast{self._advice_for_shapes()}"
        problem = self._scalar_problem(value) or self._gradient_problem(value)
        if problem is None and watch.is_broadcast:
            problem = (
                f"{self.shapes} would be broadcast to {watch.shape}, which compares each sample with every other one; "
                "give both the same shape, such as labels[:, None] or outputs.squeeze(1)"
            )
        return problem or self._value_problem(value)

    def _value(self, student: TensorOrTuple, target: TensorOrTuple) -> Any:
        """Return the value of the loss, and restore its buffers: a memory bank updates them in a call."""
        loss = self.term.loss
        with preserve_buffers([loss] if isinstance(loss, nn.Module) else []):
            return loss(student, target, **self.kwargs)

    def _advice_for_sides(self, error: Exception) -> str:
        """Return advice for a loss that raises an error for its two sides; "" if there is none."""
        loss = self.term.loss
        if advice := device_advice(error, self.first.device):
            return advice
        if isinstance(loss, Masked) and self.teacher is None and not self.inputs.labels.is_floating_point():
            return (
                "; Masked compares numbers, not classes: give samples that should not count the ignore_index as label, "
                "or write a function of (outputs, labels, *, inputs)"
            )
        missing = {name for name in LOSS_KWARGS if f"'{name}'" in str(error)} - self.kwargs.keys()
        if isinstance(error, TypeError) and "missing" in str(error) and missing:  # of a loss with **kwargs
            names = ", ".join(name for name in LOSS_KWARGS if name in missing)
            return f"; a loss gets the arguments that its signature names: write {names} instead of **kwargs"
        classes, *positions = self.first.shape[1:] or (0,)
        buffers = loss.named_buffers() if isinstance(loss, nn.Module) else ()
        for name, buffer in buffers:
            if buffer.dtype == torch.float64 != self.first.dtype and "Double" in str(error):
                return f"; its {name} is float64, as arrays of NumPy are: convert it with .float()"
            # Such as the `pos_weight` of BCEWithLogitsLoss. The `weight` of CrossEntropyLoss needs no positions.
            is_by_class = name.endswith("weight") and buffer.shape == (classes,) != (1,)
            if positions and is_by_class and "must match the size" in str(error):
                shape = ", ".join(["-1", *("1" for _ in positions)])
                return (
                    f"; its {name.rpartition('.')[2]} has a value for each class, so give it positions: .view({shape})"
                )
        if isinstance(self.inputs.student, tuple) and "'tuple'" in str(error):
            return "; it takes one tap on each side: write a term for each pair of taps"
        if self.term.alignment is not None:
            classes = self.first.shape[1]
            tensors = [*loss.parameters(), *loss.buffers()] if isinstance(loss, nn.Module) else []
            # Such as the `weight` of a torch loss.
            if any(tensor.ndim == 1 and len(tensor) not in (1, classes) for tensor in tensors):
                return (
                    "; only classes that both sides have are compared: a vector over classes must have one value for "
                    "each of these, in the order of the data's classes"
                )
        if isinstance(self.teacher, Teachers) and not isinstance(loss, PerTeacher):
            return f"; Teachers(...) returns a tuple; PerTeacher({self.loss}) applies the loss to each element"
        labels = None if self.teacher is not None else as_tuple(self.target)[0]
        if labels is not None and self.first.ndim == labels.ndim + 1:
            advice = self._advice_for_classes(labels)
            if advice:
                return advice
        tap = self.term.weighted.term.student
        if labels is not None and moves_channels(tap) and self.first.movedim(1, -1).shape == labels.shape:
            return "; the last dimension was taken as channels, and moved: pass Tap(..., channels_last=False)"
        if isinstance(error, IndexError) and self.first.ndim == 1:
            return f"; {ONE_OUTPUT}"
        # Outputs by class have as many columns on both sides; others, such as embeddings, are like features.
        if self.teacher is not None and self.first.shape[1:] != as_tuple(self.target)[0].shape[1:]:
            return self._heads_advice() or "; kdkit.losses.Hint() maps features to the shape of the other side"
        return self._heads_advice()

    def _advice_for_shapes(self) -> str:
        """Return advice for sides of different shapes that a loss of torch broadcasts."""
        if advice := self._heads_advice():
            return advice
        if self.term.target is None:
            index = ":" if self.first.ndim == 2 else "..."
            return f"; give the labels the shape of the outputs, such as labels[{index}, None]"
        if self.first.ndim != as_tuple(self.target)[0].ndim:
            return "; give both the same dimensions, such as output[:, None]"
        return "; map one to the shape of the other with a projector"

    def _advice_for_classes(self, labels: Tensor) -> str:
        """Return advice for labels (batch, *positions) that do not fit outputs (batch, classes, *positions), or ""."""
        if labels.is_floating_point():
            is_class = bool((labels.round() == labels).all())
            advice = (
                "; labels that are floats are numbers (regression); if they are classes, make them integers: .long()"
            )
            return advice if is_class else ""
        if self.first.shape[2:] != labels.shape[1:]:
            resize = f"nn.functional.interpolate(outputs, {tuple(labels.shape[1:])})"
            return f"; resize them to the positions of the labels, Tap(..., element=lambda outputs: {resize})"
        without = labels[(labels < 0) | (labels >= self.first.shape[1])]
        if len(without) and int(without[0]) in self.term.ignored:
            return f"; the label {int(without[0])} means that there is none: leave these positions out in the loss"
        if len(without):  # only in a Distiller: a run checks its labels first
            count = self.first.shape[1]
            return f"; one label is {int(without[0])}, but the {count} classes are numbered 0 to {count - 1}"
        return ""

    def _heads_advice(self) -> str:
        """Return advice for attention maps of different numbers of heads; "" for other sides."""
        term, student, target = self.term.weighted.term, self.inputs.student, self.inputs.target
        taps = (*taps_of(term.student), *taps_of(term.target))
        if not taps or not all(isinstance(tap, AttentionTap) for tap in taps):
            return ""
        if not isinstance(student, Tensor) or not isinstance(target, Tensor) or student.shape[1] == target.shape[1]:
            return ""
        return (
            f"; the maps have {student.shape[1]} and {target.shape[1]} heads: compare their means over heads with a "
            "loss such as lambda student, target: nn.functional.mse_loss(student.mean(1), target.mean(1))"
        )

    def _scalar_problem(self, value: object) -> str | None:
        """Return the problem of a value that is not a scalar tensor, or None."""
        if isinstance(value, Tensor) and not value.ndim:
            return None
        if isinstance(value, Tensor):
            got, advice = f"a tensor {tuple(value.shape)}", "reduce it, for example with .mean()"
        else:
            got = f"a {type(value).__name__}"
            advice = "return the tensor, without .item() or float()" if is_number(value) else "return one number"
        return f"{self.loss} must return a scalar, but returned {got}; {advice}"

    def _gradient_problem(self, value: Tensor) -> str | None:
        """Return the problem of a loss that does not train its student as it should, or None."""
        sides = [side for side in as_tuple(self.inputs.student) if side.requires_grad]
        if not sides:
            effect = "trains its own parameters only" if value.requires_grad else "has no effect"
            return f"{self.loss} {effect}: the tensors of net {self.student} have no gradient; {_NO_GRADIENT}"
        if not value.requires_grad:
            return f"{self.loss} has no effect: it has no gradient for net {self.student}"
        if isinstance(self.teacher, Peer) and self.teacher.net is self.term.student_net:
            gradients = torch.autograd.grad(value, sides, retain_graph=True, allow_unused=True)
            if not any(gradient is not None and gradient.abs().max() > 1e-6 for gradient in gradients):  # rounding
                return f"{self.loss} has no effect: net {self.student} is compared with its own output"
        return None

    def _value_problem(self, value: Tensor) -> str | None:
        """Return the problem of a value that is not finite or always zero, or None."""
        if not torch.isfinite(value):
            outputs = {name: self.facts.outputs[name] for name in (self.term.student_net.name, *self.term.teachers)}
            cause = cause_in_inputs(self.facts.batch, has_unknown=self.facts.context.has_unknown)
            cause = cause or cause_in_outputs(self.facts.batch, outputs)
            return f"{self.loss} is {value.item()} at the first step{'' if cause is None else f': {cause}'}"
        # Zero is right for a batch without labels. A loss with extra arguments may be zero for this batch alone, for
        # example because a mask selects none of its samples, or because the progress is 0.
        has_labels = not isinstance(self.target, Tensor) or not self.target.isnan().all()
        if value == 0 and not self.kwargs and has_labels and self._is_zero_for_noise():
            is_alone = self.term.alignment is not None and self.first.shape[1:2] == (1,)
            reason = ", because the sides share only one class, which has a probability of 1" if is_alone else ""
            return f"{self.loss} is always zero, whatever net {self.student} returns{reason}"
        return None

    def _is_zero_for_noise(self) -> bool:
        """Whether the loss is also zero for a noisy student, which means that it is zero for every student.

        Noise of 100 makes the target confident, for losses that leave out samples of which a teacher is unsure.
        """
        targets = [self.target] if self.teacher is None else [self.target, _noisy(self.target, 100)]
        student = _noisy(self.inputs.student, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return all(bool(self._value(student, target) == 0) for target in targets)
            except Exception:  # the loss may be user-defined, or only take probabilities
                return False


def _noisy(side: TensorOrTuple, scale: float) -> TensorOrTuple:
    """Return a side with noise added."""
    return map_side(lambda tensor: tensor + scale * torch.randn_like(tensor), side)


class _WatchBroadcast(TorchFunctionMode):
    """Finds out whether a loss broadcasts its two sides to a larger shape than both, such as (N, 1) and (N,) to (N, N).

    A user-defined loss may reshape its sides itself, so its calls of torch functions are watched.
    shape: the shape that the sides would be broadcast to, None if there is none.
    """

    def __init__(self, student: TensorOrTuple, target: TensorOrTuple) -> None:
        super().__init__()
        self.shape: tuple[int, ...] | None = None
        self.is_broadcast = False
        if isinstance(student, Tensor) and isinstance(target, Tensor) and student.ndim != target.ndim:
            self.sides = {student.shape, target.shape}
            with suppress(RuntimeError):  # they cannot be broadcast
                shape: torch.Size = torch.broadcast_shapes(*self.sides)  # type: ignore[no-untyped-call]  # untyped
                self.shape = tuple(shape) if shape.numel() > max(student.numel(), target.numel()) else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a torch function, and note whether it broadcasts the sides."""
        result = func(*args, **(kwargs or {}))
        if self.shape is not None:
            shapes = {value.shape for value in (*args, *(kwargs or {}).values()) if isinstance(value, Tensor)}
            # Loss functions return a scalar, and the functions that they call are watched too.
            is_pair = self.sides <= shapes
            self.is_broadcast |= is_pair and isinstance(result, Tensor) and result.shape in (self.shape, ())
        return result
