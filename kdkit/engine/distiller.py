"""A student and its objective as one module, for your own training loop or that of another framework."""

import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import chain
from operator import add
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch, as_targets
from kdkit.data.dataset import Task
from kdkit.data.label_check import LabelCheck
from kdkit.data.labels import is_ignored
from kdkit.data.samples import missing_labels
from kdkit.engine.check.dry_run import dry_run
from kdkit.engine.check.recipe_problems import repeated_names
from kdkit.engine.check.stage_problems import stage_problems
from kdkit.engine.distiller_example import ExampleData
from kdkit.engine.distiller_warnings import UntrainedWarnings
from kdkit.engine.stage.open_stage import OpenStage
from kdkit.engine.stage.terms import uses_labels
from kdkit.errors import CheckError, RecipeError
from kdkit.losses.base import BuildContext, requirements_of
from kdkit.losses.label_losses import IgnoreUnknown
from kdkit.nets.net import Net
from kdkit.recipe.objective import AnyObjective, Match, Truth
from kdkit.recipe.recipe import Stage
from kdkit.recipe.training import Training
from kdkit.teachers.base import OnlineTeacher, observers
from kdkit.teachers.past import Past
from kdkit.utils.devices import default_modes
from kdkit.utils.modules import is_sharded, keys_by_tensor, plain_state, reshard
from kdkit.utils.reprs import describe_array, describe_names
from kdkit.utils.validation import validate_choice


class DistillerOutput(NamedTuple):
    """The result of a step.

    loss: the weighted sum of the terms, a scalar with a graph. terms: the unweighted value of each term by label,
    detached. outputs: the student's outputs, (batch, classes), with a graph.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    outputs: Tensor

    def __repr__(self) -> str:
        terms = describe_names(self.terms)
        loss, outputs = describe_array(self.loss), describe_array(self.outputs)
        return f"DistillerOutput(loss={loss}, terms: {terms}, outputs={outputs})"  # values would wait for the device


class Distiller(nn.Module):
    """A student and its objective as one module. A call runs teachers and student, and returns the loss.

        distiller = kdkit.Distiller(student, 0.5 * Truth(nn.CrossEntropyLoss()) + 0.5 * Match(teacher, SoftTargets()),
                                    example=(inputs, labels))
        optimizer = torch.optim.Adam(distiller.parameters())
        for inputs, labels in loader:
            distiller(inputs, labels).loss.backward()
            ...

    student: a Net. objective: its terms, as in a Stage; they define the teachers. example: a batch of training inputs
    and labels with at least two samples; losses create their projectors from its shapes. The labels are None if no term
    learns from them; outputs (batch, classes, *positions) are then compared at all positions. An optional third element
    has the weights of the samples, if a loss uses them.
    classes: names, or their number; None for as many as the student has outputs. task: the kind of labels, see `Batch`;
    they may be classes of positions, (batch, *positions). ignore_index: the class index that stands for no label; if
    None, -100 and 255 at positions, see `TorchData`.
    samples: the number of training samples, for losses that keep a memory of all samples.

    Its parameters and state dict are those of the student and of the losses. The state dict has tied weights once, as
    safetensors takes them. They do not include the teachers, which are in eval mode and without gradients; `to` moves
    them too. The networks have hooks for the taps until `close` is called or the Distiller is deleted. Raises
    CheckError with all problems that a check of the stage finds, and RecipeError for a wrong example. Warns of a tap
    with uncertain channels, and of labels that are the input tokens.
    """

    @default_modes()
    def __init__(
        self,
        student: Net[Any],
        objective: AnyObjective,
        example: tuple[Any, ...],
        *,
        classes: Sequence[str] | int | None = None,
        task: Task = "multiclass",
        samples: int | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(student, Net):
            raise RecipeError(f'student must be a Net, Net("student", module); got a {type(student).__name__}')
        validate_choice("task", task, Task)
        self.student = student
        data = ExampleData(student, example, task, samples)
        self._per_position = data.per_position
        stage = Stage({student: objective}, Training(epochs=1, batch_size=max(2, len(data.batch))))
        self._on_labels = [term.label for term in stage.terms if uses_labels(term)]
        self._on_ids = [term.label for term in stage.terms if "ids" in requirements_of(term.loss) or _is_past(term)]
        self._open_stage = _opened(stage, data.context(classes, ignore_index), data.batch)
        self.module = self._open_stage.module
        self.module.train()  # like the Distiller itself: a student from from_pretrained is in eval mode
        self._follows_progress = [term.label for term in self.module.terms if term.follows_progress]
        # Weights that change are tensors, because numbers are constants in compiled code.
        self._weights: dict[str, float | Tensor] = {
            label: torch.tensor(weight, dtype=torch.float64) if label in self._follows_progress else weight
            for label, weight in self.module.weights(0.0).items()
        }
        self._has_progress = False
        self._is_sharded: bool | None = None
        self._observers = observers(self._open_stage.sessions.values())
        self._samples = samples or 0
        self._untrained = UntrainedWarnings(self._open_stage, samples)
        self.register_state_dict_post_hook(_keep_tied_once)  # type: ignore[no-untyped-call]  # of torch
        self.register_load_state_dict_pre_hook(_fill_in_tied)  # type: ignore[no-untyped-call]  # of torch
        # Called when the Distiller is deleted, or at exit, before Python tears down torch's modules.
        self._close = weakref.finalize(self, self._open_stage.close)

    def forward(
        self,
        inputs: Any,
        labels: Tensor | None = None,
        *,
        ids: Tensor | None = None,
        progress: float | None = None,
        sample_weights: Tensor | None = None,
    ) -> DistillerOutput:
        """Run teachers and student on a batch, which must be on their device.

        labels: None if no term learns from them. ids: of the samples, (batch,) int64, below `samples`; only losses with
        a memory need them. progress: the fraction of training that is done, in [0, 1]; in training mode, ramps and
        losses that change during training need it.
        sample_weights: (batch,), for losses that use them. Raises RecipeError if labels or `progress` are missing or
        invalid.
        """
        if self.student.module.training is not self.training:  # such as after student.eval() to validate it
            self.module.train(self.training)
        batch = self._as_batch(inputs, labels, ids, sample_weights)
        module = self._open_stage.module  # a plain attribute, unlike those of an nn.Module
        if progress is not None:
            self.set_progress(progress)
        elif self._follows_progress and self.training and not self._has_progress:
            raise RecipeError(
                f"term {self._follows_progress[0]!r} changes during training; pass the fraction that is done, from 0 "
                "to 1: distiller(inputs, labels, progress=step / steps)"
            )
        outputs = module.run_students(batch, self._open_stage.teacher_outputs(batch))
        student = outputs[self.student.name].output
        terms = module.term_values(batch, outputs)
        # Copies, because the next call may fill them before the backward pass of this one.
        weighted = [
            terms[label] * (weight.to(terms[label].dtype, copy=True) if isinstance(weight, Tensor) else weight)
            for label, weight in self._weights.items()
        ]
        loss = reduce(add, weighted)
        if self._is_sharded is None:  # in the first call: it may be sharded after the Distiller is created
            self._is_sharded = is_sharded(self.student.network)
        if self._is_sharded and loss.requires_grad and student.requires_grad:
            loss = _WithOutputs.apply(loss, student)
        if self.training:
            for session in self._observers:
                session.observe(batch, {self.student.name: student.detach()})
        # `is_compiling` first, so that compiled code has no guards on the rest.
        if not torch.compiler.is_compiling() and self.training and self._untrained.is_watching:
            self._untrained.look(self.student.network, self._weights, len(student))
        return DistillerOutput(loss, {label: term.detach() for label, term in terms.items()}, student)

    if TYPE_CHECKING:  # the call of an nn.Module has no types

        def __call__(
            self,
            inputs: Any,
            labels: Tensor | None = None,
            *,
            ids: Tensor | None = None,
            progress: float | None = None,
            sample_weights: Tensor | None = None,
        ) -> DistillerOutput:
            """Run `forward` and the hooks."""
            ...

    def set_progress(self, progress: float) -> None:
        """Set the fraction of training that is done, in [0, 1], for the following calls, like `progress=` in a call.

        In code that is compiled with fullgraph=True, call this before the Distiller. Raises RecipeError if it is
        invalid.
        """
        if not 0 <= progress <= 1:
            raise RecipeError(f"progress must be the fraction of training that is done, from 0 to 1; got {progress}")
        module = self._open_stage.module
        self._has_progress = True
        module.progress.fill_(progress)
        for label, weight in module.weights(progress).items():
            if isinstance(changing := self._weights[label], Tensor):
                changing.fill_(weight)

    def on_step(self) -> None:
        """Advance teachers that follow the student, such as `Ema`. Call this after each optimizer step.

        A Distiller whose student changes without this call warns.
        """
        self._untrained.followers = []
        for session in self._open_stage.sessions.values():
            session.on_step()

    def on_epoch_end(self) -> None:
        """Advance teachers that change with epochs, such as `Past`. Call this after each epoch.

        A Distiller that trains on more than two epochs of samples without this call warns.
        """
        self._untrained.until_epoch_end = 0
        for session in self._open_stage.sessions.values():
            session.on_epoch_end()

    def student_state_dict(self) -> dict[str, Tensor]:
        """Return the state dict of the student alone. It can be loaded into the same network without kdkit."""
        return plain_state(self.student.network)

    def teacher_state_dict(self) -> dict[str, Any]:
        """Return the states of teachers that change during training, such as `Ema` and `Past`, by name."""
        states = {name: session.state_dict() for name, session in self._open_stage.sessions.items()}
        return {name: state for name, state in states.items() if state}

    def load_teacher_state_dict(self, states: Mapping[str, Any]) -> None:
        """Load states from `teacher_state_dict`. Raises RecipeError if they belong to other teachers."""
        names = self.teacher_state_dict().keys()
        if names != states.keys():
            raise RecipeError(
                f"the states must be those of the teachers that change during training, "
                f"{describe_names(names) or 'none'}; got those of {describe_names(states) or 'none'}"
            )
        for name, state in states.items():
            self._open_stage.sessions[name].load_state_dict(state)

    def close(self) -> None:
        """Remove the hooks, and restore the mode of the teachers."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _as_batch(self, inputs: Any, labels: Tensor | None, ids: Tensor | None, sample_weights: Tensor | None) -> Batch:
        """Return the arguments of a call as a batch. Raises RecipeError if labels or ids are missing or no tensors."""
        if labels is None:
            if self._on_labels:
                raise RecipeError(
                    f"term {self._on_labels[0]!r} learns from labels, but they are None; call distiller(inputs, labels)"
                )
            labels = missing_labels(inputs)
        elif not isinstance(labels, Tensor):
            raise RecipeError(
                f"labels must be a tensor or None; got a {type(labels).__name__}; pass torch.as_tensor(labels)"
            )
        if ids is None and self._on_ids:
            raise RecipeError(
                f"term {self._on_ids[0]!r} needs the ids of the samples, (batch,) integers; call distiller(inputs, "
                "labels, ids=ids), with ids that the dataset yields"
            )
        is_valid = isinstance(ids, Tensor) and ids.shape == labels.shape[:1] and not ids.is_floating_point()
        if ids is not None and not is_valid:
            got = describe_array(ids) if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
            raise RecipeError(f"ids must be a tensor of integers, ({len(labels)},) for this batch; got {got}")
        if ids is not None and self._on_ids and self._samples and not torch.compiler.is_compiling():
            self._require_known(ids)
        return Batch(inputs, as_targets(labels, per_position=self._per_position), ids, weights=sample_weights)

    def _require_known(self, ids: Tensor) -> None:
        """Raise RecipeError if ids are not below the number of samples. On a GPU, this would wait for the device."""
        outside = ids[(ids < 0) | (ids >= self._samples)] if ids.device.type == "cpu" else ids[:0]
        if len(outside):
            raise RecipeError(
                f"ids must number the samples from 0 to {self._samples - 1}, because samples={self._samples}; got "
                f"{int(outside[0])}"
            )

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Move or convert the teachers together with the student."""
        for session in self._open_stage.sessions.values():
            session.apply(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy, which has its own copies of the teachers, and is closed separately."""
        return {name: value for name, value in vars(self).items() if name != "_close"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._close = weakref.finalize(self, self._open_stage.close)


def _is_past(term: Truth | Match) -> bool:
    return isinstance(term, Match) and isinstance(term.teacher, Past)


def _tied_keys(module: nn.Module, prefix: str) -> Iterator[list[str]]:
    """Yield the keys in a state dict of each tensor that has several, such as the weight of a tied embedding."""
    named = (
        (".".join(filter(None, (prefix.removesuffix("."), path, name))), tensor)
        for path, submodule in module.named_modules(remove_duplicate=False)
        for name, tensor in chain(submodule._parameters.items(), submodule._buffers.items())
        if tensor is not None and name not in submodule._non_persistent_buffers_set
    )
    return (keys for keys in keys_by_tensor(named) if len(keys) > 1)


def _keep_tied_once(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    """Remove all but the first key of tied tensors: the Trainer of transformers could not save them as safetensors."""
    for keys in _tied_keys(module, prefix):
        for key in [key for key in keys if key in state][1:]:
            del state[key]


def _fill_in_tied(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give each key of tied tensors the value of one that the state dict has."""
    for keys in _tied_keys(module, prefix):
        present = [state[key] for key in keys if key in state]
        if present:
            for key in keys:
                state.setdefault(key, present[0])


class _WithOutputs(torch.autograd.Function):
    """Returns the loss unchanged; its backward pass also reaches the student's outputs, with a gradient of 0.

    `fully_shard` reduces gradients in hooks on the outputs of a module, which would not run if all terms compare
    features.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, outputs: Tensor) -> Tensor:
        """Return the loss."""
        ctx.shape = outputs.shape
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of the loss and of the outputs."""
        (gradient,) = gradients
        return gradient, gradient.new_zeros(()).expand(ctx.shape)


def _opened(stage: Stage, context: BuildContext, batch: Batch) -> OpenStage:
    """Check a stage, open it on the device of a batch, and warn of its notices. Raises CheckError with all problems."""
    (student,) = stage.objectives
    problems = [
        *repeated_names([stage]),
        *_teacher_problems(stage, student),
        *_label_problems(stage, context, batch.labels),
    ]
    problems = problems or stage_problems(stage, context)
    if problems:
        raise CheckError(problems)
    device = batch.labels.device
    for teacher in stage.teachers:
        if isinstance(teacher, Net):
            teacher.move_to(device)
    open_stage = OpenStage(stage, context, device)
    try:
        facts = dry_run(open_stage, batch)
        reshard(student.network)
        if facts.problems:
            raise CheckError(facts.problems)
    except BaseException:  # also Ctrl-C: in a notebook, the networks are used again
        open_stage.close()
        raise
    for notice in facts.notices:
        warnings.warn(notice, stacklevel=4)  # the caller of the class, whose __init__ is decorated
    return open_stage


def _teacher_problems(stage: Stage, student: Net[Any]) -> Iterator[str]:
    """Yield the problems of teachers that are specific to a Distiller, which trains one network in one stage."""
    for teacher in stage.teachers:
        if isinstance(teacher, Net) and not teacher.trained and teacher is not student:
            yield (
                f"net {teacher.name!r} teaches, but it is not trained; pass Net(..., weights=FILE), or trained=True if "
                "its module is already trained, or another loop trains it at the same time"
            )
    for match in stage.matches:
        if isinstance(match.teacher, OnlineTeacher) and match.teacher.net is not student:
            yield (
                f"{match.teacher.name!r} needs a net that this Distiller trains, but it only trains {student.name!r}; "
                "match the net itself, Net(..., trained=True), even if another loop or Distiller trains it"
            )


def _label_problems(stage: Stage, context: BuildContext, labels: Tensor) -> Iterator[str]:
    """Yield the problems of labels that mean "unknown" without being declared as such."""
    if context.has_labels and any(map(uses_labels, stage.terms)) and labels.ndim == 1 and context.task == "multiclass":
        check = LabelCheck("", context.task, context.classes, source="the example")
        for index in ((labels < 0) & ~is_ignored(labels, context.ignored_labels)).nonzero()[:1, 0].tolist():
            yield check.explain_index(int(labels[index]), f"index {index} of the batch")
    yield from _beyond_probabilities(stage, labels)


def _beyond_probabilities(stage: Stage, labels: Tensor) -> Iterator[str]:
    """Yield binary cross-entropies whose labels are beyond [0, 1], such as -1 for unknown ones. NaN is not beyond."""
    beyond = labels[(labels < 0) | (labels > 1)]
    if not len(beyond):
        return
    for term in stage.terms:
        loss = term.loss.loss if isinstance(term.loss, IgnoreUnknown) else term.loss
        if isinstance(term, Truth) and isinstance(loss, nn.BCEWithLogitsLoss | nn.BCELoss):
            value = f"{beyond[0].item():g}"
            yield (
                f"term {term.label!r}: {type(loss).__name__} takes labels in [0, 1], but one of the example is {value}"
                f"; if it means unknown, make it NaN, labels.masked_fill(labels == {value}, torch.nan), in "
                f"IgnoreUnknown({type(loss).__name__}())"
            )
