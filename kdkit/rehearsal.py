"""Open a stage and run it once on a tiny batch: shapes become known, losses are built, and what is wrong shows."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data import Batch
from kdkit.errors import KdkitError
from kdkit.goal import Source, taps_of
from kdkit.lesson import Lesson, Line, Side, build_losses
from kdkit.losses import Facts
from kdkit.net import Net
from kdkit.recipe import Stage
from kdkit.sources import Answer, Frozen, respondent
from kdkit.taps import Tapping

Sided = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A term as it will be computed: what meets what, in which shapes, and what is trained to bring them together."""

    label: str
    loss: str
    weight: tuple[float, float]
    learner: str
    source: str | None
    student: str
    target: str
    parameters: int


class Rehearsal:
    """An open stage: the lesson, those who answer in it, the comparisons it makes, and its problems.

    foreign: the teachers whose outputs are about other things than the data's classes. Close it to leave every net as
    it was.
    """

    def __init__(self, stage: Stage, facts: Facts, batch: Batch) -> None:
        self.stage = stage
        self.problems: list[str] = []
        self.comparisons: list[Comparison] = []
        self.foreign: list[Net[Any]] = []
        self.respondents: dict[str, Frozen] = {}
        self.lesson: Lesson | None = None
        try:
            for source, taps in stage.sources.items():
                self.respondents[source.name] = respondent(source, taps)
            self.lesson = Lesson(stage, facts).to(batch.labels.device)
            with _unchanged(self.lesson):
                self._run(self.lesson, facts, batch)
        except KdkitError as error:
            self.problems.append(str(error))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Take every tap away and give the teachers their modes back."""
        if self.lesson is not None:
            self.lesson.close()
        for each in self.respondents.values():
            each.close()

    def _run(self, lesson: Lesson, facts: Facts, batch: Batch) -> None:
        answers = {source.name: self._answer(source, batch) for source in self.stage.sources}
        outputs = {net.name: self._output(net, batch) for net in lesson.learners}
        lesson.listening.keep_copies()
        for net in lesson.learners:
            modules = set(net.network.modules())
            self._silent(net.name, [tap for tap in lesson.listening.silent() if tap.module in modules])
        complete = {name: answer for name, answer in answers.items() if answer is not None}
        if self.problems or len(complete) < len(answers) or any(output is None for output in outputs.values()):
            return
        for net in lesson.learners:
            self._classes(net, outputs[net.name], facts)
            net.network.eval()  # as it will be judged: some models return something else then
            with torch.no_grad():
                self._classes(net, self._output(net, batch), facts)
        for match in self.stage.matches:
            if isinstance(match.source, Net) and match.student is None and match.target is None:
                self._classes(match.source, complete[match.source.name].output, facts)
        for source in self.stage.sources:
            if isinstance(source, Net) and not _can_be_scored(source, complete[source.name].output, batch, facts):
                self.foreign.append(source)
        lesson.train()
        lesson.listening.clear()
        teachers = {source.name: getattr(source, "module", None) for source in self.stage.sources}
        self.problems += build_losses(lesson, batch, complete, facts, teachers)
        if not self.problems:
            self._compare(lesson, batch, complete)

    def _answer(self, source: Source, batch: Batch) -> Answer | None:
        each = self.respondents[source.name]
        try:
            self._silent(source.name, each.rehearse(batch))
            if self.problems:
                return None
            return each.ask(batch)
        except KdkitError as error:
            self.problems.append(str(error))
        except Exception as error:
            self.problems.append(_cannot_take(source, batch, error))
        return None

    def _output(self, net: Net[Any], batch: Batch) -> Tensor | None:
        try:
            return net(batch)
        except KdkitError as error:
            self.problems.append(str(error))
        except Exception as error:
            self.problems.append(_cannot_take(net, batch, error))
        return None

    def _silent(self, name: str, taps: list[Tapping]) -> None:
        for tap in taps:
            self.problems.append(
                f"the tap on {type(tap.module).__name__} of net {name!r} never fired: that module does not run in "
                "a forward pass; tap one that does"
            )

    def _classes(self, net: Net[Any], output: Tensor | None, facts: Facts) -> None:
        classes = net.classes or facts.classes
        if output is not None and facts.task != "regression" and output.shape[1:] != (len(classes),):
            whose = "its classes" if net.classes else "the data's classes"
            self.problems.append(
                f"net {net.name!r} gives outputs of {tuple(output.shape[1:])} where {whose} are {len(classes)}; "
                "give it as many outputs, or say which classes they are with Net(..., classes=...)"
            )

    def _compare(self, lesson: Lesson, batch: Batch, answers: Mapping[str, Answer]) -> None:
        outputs = {net.name: net(batch) for net in lesson.learners}
        features = lesson.listening.take()
        for line in lesson.lines:
            term = line.weighted.term
            student, target = lesson.sides(line, batch, outputs, features, answers)
            problem = _problem(lesson, line, batch, (student, target))
            if problem:
                self.problems.append(f"term {line.label!r}: {problem}")
            trained = line.loss.parameters() if isinstance(line.loss, nn.Module) else ()
            self.comparisons.append(
                Comparison(
                    label=line.label,
                    loss=_said(line.loss),
                    weight=(line.weighted.weight(0.0), line.weighted.weight(1.0)),
                    learner=line.learner.name,
                    source=line.source,
                    student=_side(line.student, getattr(term, "student", None), student, line.learner),
                    target=_side(line.target, getattr(term, "target", None), target, getattr(term, "source", None)),
                    parameters=sum(parameter.numel() for parameter in trained),
                )
            )


def _can_be_scored(net: Net[Any], output: Tensor, batch: Batch, facts: Facts) -> bool:
    """Whether a net's outputs are about the data's classes; those of a teacher of features alone need not be."""
    if facts.task == "regression":
        return output[0].numel() == batch.labels[0].numel()
    classes = net.classes or facts.classes
    return output.shape[1:] == (len(classes),) and not set(classes).isdisjoint(facts.classes)


def _problem(lesson: Lesson, line: Line, batch: Batch, sides: tuple[Sided, Sided]) -> str | None:
    """Return what is wrong with a term, or None."""
    shapes = f"student {_shape(sides[0])} and target {_shape(sides[1])}"
    asked = {"labels": batch.labels, "ids": batch.ids, "progress": lesson.progress}
    asked = {name: value for name, value in asked.items() if name in line.asks}
    if line.shared is not None and not len(sides[1]):
        return None
    memory = [line.loss] if isinstance(line.loss, nn.Module) else []
    try:
        with warnings.catch_warnings(record=True) as caught, _buffers_kept(memory):
            warnings.simplefilter("always")
            value = line.loss(*sides, **asked)
            noisy = line.loss(_noisy(sides[0]), sides[1], **asked)
    except KdkitError as error:
        return str(error)
    except Exception as error:
        return f"{shapes} cannot meet in {_said(line.loss)}: {_first_line(error)}"
    broadcast = [str(warning.message) for warning in caught if "target size" in str(warning.message)]
    if broadcast:
        return f"{shapes} are of different shapes and would be broadcast; bring them together with a projector"
    if not isinstance(value, Tensor) or value.ndim:
        given = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        return f"{_said(line.loss)} gives {given} where a scalar was expected; reduce it, say with .mean()"
    if not value.requires_grad:
        return f"{_said(line.loss)} moves nothing: no gradient flows from it to net {line.learner.name!r}"
    if not torch.isfinite(value):
        return f"{_said(line.loss)} is {value.item()} at the first step"
    if value == 0 and noisy == 0:
        return f"{_said(line.loss)} is constantly zero, whatever net {line.learner.name!r} says"
    return None


@contextmanager
def _unchanged(lesson: Lesson) -> Iterator[None]:
    """Run the learners in training mode, as they will be, and leave modes, buffers and random states as they were."""
    modes = {module: module.training for module in lesson.modules()}
    with torch.random.fork_rng(), _buffers_kept(lesson.nets):
        lesson.train()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training


@contextmanager
def _buffers_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Leave every buffer as it was, also one that a module fills in place or assigns anew as it runs."""
    kept = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for each in modules
        for module in each.modules()
        for name, buffer in module._buffers.items()
    ]
    try:
        yield
    finally:
        for module, name, buffer, before in kept:
            module._buffers[name] = buffer
            if buffer is not None and before is not None:
                with torch.no_grad():
                    buffer.copy_(before)


def _noisy(side: Sided) -> Sided:
    if isinstance(side, tuple):
        return tuple(each + torch.randn_like(each) for each in side)
    return side + torch.randn_like(side)


def _cannot_take(source: Source, batch: Batch, error: Exception) -> str:
    view = getattr(source, "sees", None)
    args, kwargs = view(batch) if view is not None else ((), {})
    shown = ", ".join(str(tuple(each.shape)) for each in (*args, *kwargs.values()) if isinstance(each, Tensor))
    return f"net {source.name!r} cannot take what it sees ({shown}): {type(error).__name__}: {_first_line(error)}"


def _side(side: Side, taps: Any, value: Sided, net: Net[Any] | None) -> str:
    if net is None:
        return f"labels {_shape(value)}"
    if side.taps is None:
        return f"outputs {_shape(value)}"
    return f"{', '.join(_where(tap, net) for tap in taps_of(taps))} {_shape(value)}"


def _where(tap: Tapping, net: Net[Any]) -> str:
    name = next((name for name, module in net.network.named_modules() if module is tap.module), "?")
    at = getattr(tap, "at", type(tap).__name__)
    return name if at == "output" else f"{at} of {name}"


def _shape(side: Sided) -> str:
    return " ".join(str(tuple(each.shape)) for each in side) if isinstance(side, tuple) else str(tuple(side.shape))


def _said(loss: Any) -> str:
    if isinstance(loss, nn.Module):
        return type(loss).__name__
    return getattr(loss, "__name__", None) or repr(loss)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
