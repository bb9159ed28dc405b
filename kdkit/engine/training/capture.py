"""Capture a training step as a CUDA graph, so that its kernels are launched at once instead of one by one.

The Python code of a captured step runs once. Each later batch is copied into the tensors that the graph reads, and the
graph is replayed. The code must therefore not wait for the device, and must not hold anything in Python that changes
from step to step: numbers, tensors that are replaced instead of filled, or random states of the CPU. Steps that break
these rules are detected before, during or after the capture, and run eagerly. What changes between epochs is captured
again.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch, is_dense, items_of, map_tensors, nested_tensors
from kdkit.engine.options import RunOptions
from kdkit.engine.stage.open_stage import OpenStage
from kdkit.engine.stage.train_state import TrainState
from kdkit.engine.training.python_state import PythonState
from kdkit.engine.training.training_step import DistributedStep, TrainingStep
from kdkit.engine.training.update_parts import UpdatePart
from kdkit.errors import KdkitError, RecipeError, first_line
from kdkit.nets.net import Net
from kdkit.recipe.balancing.base import WeightedSum
from kdkit.teachers.base import TeacherOutput
from kdkit.teachers.frozen import Frozen
from kdkit.utils.captured import captured_step
from kdkit.utils.collectives import is_distributed

_EAGER_STEPS = 3  # before the capture: the first creates the optimizer's state, the second is watched for waits
_OTHER_SHAPES = 10  # after this many batches with other shapes than the first one, no capture is tried
_WORTHWHILE = 50  # least steps of a stage for a capture, which takes as long as about ten


class CapturedStep(TrainingStep):
    """A training step as a CUDA graph. Everything that the graph cannot hold runs eagerly, before or after it.

    The graph holds the networks, frozen teachers that run at every step, the losses, their gradients, and the optimizer
    if its options do not change from step to step. Other teachers, including those on another device, learning rate
    schedules, gradient scalers and averages run eagerly. So do the first steps of a stage, and batches with another
    shape, such as the last one, or with samples without a teacher output.
    """

    def __init__(self, open_stage: OpenStage, state: TrainState, options: RunOptions) -> None:
        super().__init__(open_stage, state, options)
        device = open_stage.module.progress.device
        self._required = options.capture == "require"
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._in_graph = {
            name: session
            for name, session in open_stage.sessions.items()
            if type(session) is Frozen and _runs_in_graph(session.net, device)
        }
        self._outside = {name: session for name, session in open_stage.sessions.items() if name not in self._in_graph}
        self._graph_updates = _updates_in_graph(state)  # whether the optimizer is in the graph
        # The weights of terms, if they change from step to step.
        self._weights = (
            None
            if state.constant_weights
            else {label: torch.tensor(weight, device=device) for label, weight in state.weights().items()}
        )
        self._eager_steps = 0
        self._other_shapes = 0  # steps on batches that differ from the first one
        self._inputs: _StaticInputs | None = None
        self._graph: _Graph | None = None
        self._is_current = False  # whether nothing in Python has changed between the last epoch and this one
        self._refused = False

    def __call__(self, batch: Batch, part: UpdatePart) -> dict[str, Tensor]:
        """Train on a batch, with the graph if possible."""
        stats = self.state.gradient_stats
        if self._refused or (stats is not None and stats.due(self.state.updates)):
            return super().__call__(batch, part)
        outputs = self.open_stage.teacher_outputs(batch, self._outside)
        # Terms are computed on the samples with a teacher output, but a graph cannot depend on their number. A Past has
        # outputs for all samples after the first epoch.
        has_mask = any(output.mask is not None for output in outputs.values())
        inputs = self._inputs
        # A resumed epoch may begin with its last batch, which is smaller.
        is_larger = inputs is not None and self._graph is None and len(batch) > len(inputs.batch)
        if not has_mask and (inputs is None or is_larger):
            inputs = self._inputs = _StaticInputs.like(batch, outputs)
        if has_mask:
            losses = self._run_eagerly(batch, outputs, part)
        elif inputs is not None and inputs.fill(batch, outputs):
            with captured_step():
                losses = self._train(batch, inputs, part)
        else:
            losses = self._run_eagerly(batch, outputs, part)
            self._other_shapes += 1
            if inputs is None:
                self._refuse("its inputs have other values than dense tensors")
            elif self._graph is None and self._other_shapes == _OTHER_SHAPES:
                self._refuse("the shapes of its batches differ")
        return losses

    @contextmanager
    def epoch(self) -> Iterator[None]:
        """Load and train the batches of an epoch on the stream of the graph."""
        self._is_current = False
        outer = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outer)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            outer.wait_stream(self._stream)
        # The options have changed if a schedule has stepped at the end of the epoch.
        if self._graph is not None and self._is_current and not self._options_changed(self._graph):
            changed = self._graph.python_state.changed_attributes()
            if changed:
                self._graph = None
                self._refuse(f"{changed[0]} changed within an epoch, in which captured steps used its old value")

    def _train(self, batch: Batch, inputs: "_StaticInputs", part: UpdatePart) -> dict[str, Tensor]:
        """Train on a batch, which was copied into `inputs`."""
        self._drop_old_graph()
        if self._graph is None and self._eager_steps < _EAGER_STEPS:
            self._eager_steps += 1
            if self._eager_steps == 2:
                return self._run_watched(batch, inputs, part)
            return self._run_eagerly(batch, inputs.outputs, part)
        if self._graph is None:
            self._capture(inputs, part)
        if self._graph is None:
            return self._run_eagerly(batch, inputs.outputs, part)
        return self._replay(self._graph, batch)

    def _run_watched(self, batch: Batch, inputs: "_StaticInputs", part: UpdatePart) -> dict[str, Tensor]:
        """Run eagerly what the graph will hold, and refuse to capture it if it waits for the device."""
        with _waits_for_device() as waits:
            losses = self._compute(inputs, part)
        self._finish_update(batch)
        if waits:
            self._refuse(f"it waits for the device in {waits[0]}")
        return losses

    def _drop_old_graph(self) -> None:
        """Drop the graph if numbers that it was captured with have changed."""
        if self._graph is None:
            return
        if self._options_changed(self._graph):
            self._graph, self._graph_updates = None, False  # a schedule will change the options again
        elif not self._is_current and self._graph.python_state.changed_attributes():
            self._graph, self._eager_steps = None, 0  # new parts of the networks may wait for the device
        self._is_current = True

    def _options_changed(self, graph: "_Graph") -> bool:
        return self._graph_updates and graph.options != self.state.optimizer.param_groups

    def _run_eagerly(self, batch: Batch, outputs: Mapping[str, TeacherOutput], part: UpdatePart) -> dict[str, Tensor]:
        all_outputs = {**outputs, **self.open_stage.teacher_outputs(batch, self._in_graph)}
        losses = self.add_gradients(batch, all_outputs, part)
        self.state.observe(batch)
        self.state.optimizer_step()
        return losses

    def _compute(self, inputs: "_StaticInputs", part: UpdatePart) -> dict[str, Tensor]:
        """Run everything that the graph holds."""
        all_outputs = {**inputs.outputs, **self.open_stage.teacher_outputs(inputs.batch, self._in_graph)}
        losses = self.add_gradients(inputs.batch, all_outputs, part, self._current_weights())
        if self._graph_updates:
            self.state.update_weights()
        return losses

    def _finish_update(self, batch: Batch) -> None:
        """Run the rest of the step on a batch."""
        self.state.observe(batch)
        updated = True if self._graph_updates else self.state.update_weights()
        self.state.advance(updated=updated)

    def _capture(self, inputs: "_StaticInputs", part: UpdatePart) -> None:
        python_state = PythonState(self._objects())
        graph = torch.cuda.CUDAGraph()
        self._current_weights()
        reason: Exception | None = None
        try:
            # thread_local, because other threads may pin memory during the capture.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                try:
                    losses = self._compute(inputs, part)
                    values = torch.stack([*losses.values()])
                except Exception as error:  # user code may raise anything
                    reason = error
                    raise
        except Exception as error:
            self.open_stage.module.open_taps.pause()
            self._drop_gradients()
            python_state.restore()
            if error is not reason:  # the capture did not end, and torch draws no random numbers after it
                raise KdkitError(
                    f"the training step of stage {self.open_stage.stage.name!r} cannot be captured as a CUDA graph "
                    f"({first_line(reason or error)}); run with capture off: --capture off"
                ) from error
            self._refuse(f"{type(error).__name__}: {first_line(error)}")
            return
        finally:
            reason = None  # its traceback would keep the tensors of the step in memory
        gradients = [parameter.grad for parameter in self.state.parameters]
        self._drop_gradients()
        changed = python_state.changes()
        if changed:
            python_state.restore()
            self._refuse(f"{changed[0]} changes from step to step")
            return
        module = self.open_stage.module
        outputs = module.student_outputs if module.track_outputs else {}
        options = [{**group} for group in self.state.optimizer.param_groups]
        self._graph = _Graph(graph, tuple(losses), values, gradients, outputs, options, python_state)

    def _replay(self, graph: "_Graph", batch: Batch) -> dict[str, Tensor]:
        self._current_weights()
        graph.graph.replay()
        if not self._graph_updates:
            for parameter, gradient in zip(self.state.parameters, graph.gradients, strict=True):
                parameter.grad = gradient
        if graph.student_outputs:  # copies: a teacher may keep them
            copies = {name: output.clone() for name, output in graph.student_outputs.items()}
            self.open_stage.module.student_outputs = copies
        self._finish_update(batch)
        return dict(zip(graph.labels, graph.losses.clone().unbind(), strict=True))

    def _current_weights(self) -> Mapping[str, Any] | None:
        """Fill in the current weights of the terms, and return them; None if they never change."""
        if self._weights is not None and not torch.cuda.is_current_stream_capturing():
            for label, weight in self.state.weights().items():
                self._weights[label].fill_(weight)
        return self._weights

    def _refuse(self, reason: str) -> None:
        """Run eagerly from now on. Raises RecipeError if a capture is required."""
        self._refused = True
        message = f"the training step of stage {self.open_stage.stage.name!r} is not captured as a CUDA graph: {reason}"
        if self._required:
            raise RecipeError(f"{message}; run with capture auto or off")
        warnings.warn(message, stacklevel=2)

    def _drop_gradients(self) -> None:
        for parameter in self.state.parameters:
            parameter.grad = None

    def _objects(self) -> Iterator[object]:
        """Yield everything that has Python code in the graph, or attributes that it reads."""
        module = self.open_stage.module
        yield from (module.nets, module.alignments, self.state.balancer)
        yield from (term.loss for term in module.terms)
        yield from (net.view for net in module.students)
        for session in self._in_graph.values():
            yield from (session.net.network, session.net.view)
        if self._graph_updates:
            yield self.state.optimizer


def make_step(open_stage: OpenStage, state: TrainState, options: RunOptions) -> tuple[TrainingStep, list[str]]:
    """Return the training step of a stage, and on CUDA a notice if a capture is allowed but impossible.

    Raises RecipeError if a capture is required but impossible.
    """
    reason, required = _why_not_captured(open_stage, state), options.capture == "require"
    if required and reason is not None:
        raise RecipeError(
            f"the training step of stage {open_stage.stage.name!r} cannot be captured as a CUDA graph: {reason}; run "
            "with capture auto or off"
        )
    is_worthwhile = options.capture == "auto" and state.total_updates >= _WORTHWHILE
    if reason is None and (required or is_worthwhile):
        return CapturedStep(open_stage, state, options), []
    step = DistributedStep(open_stage, state, options) if is_distributed() else TrainingStep(open_stage, state, options)
    is_notable = reason is not None and options.capture == "auto" and open_stage.module.progress.is_cuda
    return step, [f"the training step is not captured as a CUDA graph: {reason}"] if is_notable else []


def _why_not_captured(open_stage: OpenStage, state: TrainState) -> str | None:
    """Return why the step of a stage cannot be captured, as far as this is known before it runs, or None."""
    training, balancer = state.training, state.balancer
    if not open_stage.module.progress.is_cuda:
        return f"the device is {open_stage.module.progress.device.type!r}, but only CUDA has graphs"
    if is_distributed():
        return "several processes train it"
    if training.accumulate_steps > 1:
        return f"gradients are accumulated over {training.accumulate_steps} batches"
    recomputing = [net.name for net in open_stage.module.students if net.recompute]
    if recomputing:
        return f"net {recomputing[0]!r} recomputes activations, so torch reads random states on the CPU"
    selecting = [term.label for term in open_stage.module.terms if term.rows is not None and term.rows.ignored]
    if selecting:
        return f"term {selecting[0]!r} is computed on the rows with a label; their number waits for the device"
    if not balancer.capturable:
        return f"{type(training.balancing).__name__} computes on the CPU, or keeps state in Python"
    if not state.constant_weights and not isinstance(balancer, WeightedSum):
        return f"{type(training.balancing).__name__} takes weights as numbers, but the weights of this stage change"
    return None


class _Graph(NamedTuple):
    """A captured step, and the tensors that a replay fills.

    labels, losses: of the terms; losses is (terms,). gradients: of the trained parameters, used if the optimizer is not
    in the graph. student_outputs: by name, if a teacher observes them. options: the optimizer's parameter groups at the
    capture. python_state: what the step holds in Python.
    """

    graph: torch.cuda.CUDAGraph
    labels: tuple[str, ...]
    losses: Tensor
    gradients: list[Tensor | None]
    student_outputs: Mapping[str, Tensor]
    options: list[dict[str, Any]]
    python_state: PythonState


class _StaticInputs:
    """The tensors that a graph reads: a batch, and the outputs of teachers outside of the graph."""

    def __init__(self, batch: Batch, outputs: Mapping[str, TeacherOutput], structure: object) -> None:
        self.batch = batch
        self.outputs = outputs
        self._structure = structure
        self._tensors = list(nested_tensors(self._parts(batch, outputs)))

    @classmethod
    def like(cls, batch: Batch, outputs: Mapping[str, TeacherOutput]) -> "_StaticInputs | None":
        """Return copies of these tensors; None if there are other values than dense tensors."""
        parts = cls._parts(batch, outputs)
        structure = _structure(parts)
        if structure is None:
            return None
        inputs, labels, ids, weights, copied_outputs = map_tensors(parts, torch.clone)
        # The draw and the ids on the CPU are left out: they would stay those of the captured batch, and views and
        # losses do not use them.
        copied = Batch(inputs, labels, ids, weights=weights)
        return cls(copied, copied_outputs, structure)

    def fill(self, batch: Batch, outputs: Mapping[str, TeacherOutput]) -> bool:
        """Copy these tensors into the static ones and return True, or return False if shapes or dtypes differ."""
        parts = self._parts(batch, outputs)
        if _structure(parts) != self._structure:
            return False
        for static, tensor in zip(self._tensors, nested_tensors(parts), strict=True):
            static.copy_(tensor, non_blocking=True)
        return True

    @staticmethod
    def _parts(batch: Batch, outputs: Mapping[str, TeacherOutput]) -> tuple[Any, ...]:
        return batch.inputs, batch.labels, batch.ids, batch.weights, dict(outputs)


def _runs_in_graph(net: Net[Any], device: torch.device) -> bool:
    """Whether a frozen teacher is a module that runs only on this device."""
    return isinstance(net.module, nn.Module) and net.device in (None, device) and not net.is_spread


def _updates_in_graph(state: TrainState) -> bool:
    """Whether the optimizer can be captured: it runs on the device, and its options do not change within an epoch."""
    schedule, optimizer = state.training.lr_schedule, state.optimizer
    if state.scaler is not None or (schedule is not None and schedule.interval == "update"):
        return False
    # A schedule fills a learning rate in a tensor in place, but a graph has the number of one on the CPU.
    if any(isinstance(group["lr"], Tensor) and not group["lr"].is_cuda for group in optimizer.param_groups):
        return False
    # SGD has no step count. Other optimizers must keep it on the device, which is their option `capturable`.
    return type(optimizer) is torch.optim.SGD or all(group.get("capturable") for group in optimizer.param_groups)


@contextmanager
def _waits_for_device() -> Iterator[list[str]]:
    """Record where the CPU waits for the device, as "file:line"."""
    locations: list[str] = []
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield locations
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    for warning in caught:
        if "synchronizing CUDA operation" in str(warning.message):
            locations.append(f"{warning.filename}:{warning.lineno}")
        elif "Synchronization debug mode is a prototype" not in str(warning.message):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _structure(value: Any) -> Any:
    """Return the shapes and dtypes of tensors in a nested value; None if there are other values than dense tensors."""
    if isinstance(value, Tensor):
        return (value.shape, value.dtype) if is_dense(value) else None
    if value is None:
        return ()
    items = items_of(value)
    if items is None:
        return None
    parts = [(key, _structure(item)) for key, item in items]
    return None if any(part is None for _, part in parts) else parts
