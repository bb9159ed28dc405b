"""Problems of a recipe that show when a stage runs on a tiny batch."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch
from kdkit.engine.check.plan import TermSummary, _said, _shape, compared
from kdkit.engine.class_alignment import TermInputs
from kdkit.engine.module import DistillationModule, build_losses
from kdkit.engine.terms import BoundTerm
from kdkit.engine.train_state import balancer_of, learned_by
from kdkit.errors import KdkitError, first_line
from kdkit.losses import BuildContext, PerTeacher
from kdkit.losses.features import TensorOrTuple
from kdkit.nets.net import Net
from kdkit.nets.taps import TapLike
from kdkit.recipe.balancing import WeightedSum
from kdkit.recipe.objective import Match
from kdkit.recipe.recipe import Stage, teachers_of
from kdkit.recipe.training import Training
from kdkit.teachers import Peer, TeacherOutput, Teachers, TeacherSession, open_teacher, require_output, run_teachers
from kdkit.teachers.base import Teacher
from kdkit.utils.devices import Precision, autocast
from kdkit.utils.modules import preserve_buffers


def tried(
    training: Training,
    lesson: DistillationModule,
    sessions: Mapping[str, TeacherSession],
    batch: Batch,
    precision: Precision = "fp32",
) -> Iterator[str]:
    """Balance one step of a tiny batch, every weight 1, and say what is wrong; the stage is left as it was.

    The optimizer is made too where it has to train a part of the balancer, which its groups may have left out.
    """
    if type(training.balancing) is WeightedSum:
        return
    try:
        with _unchanged_lesson(lesson):
            with autocast(precision, batch.labels.device):
                terms = lesson(batch, run_teachers(sessions, batch))
            balancer = balancer_of(training, lesson)
            balancer(terms, dict.fromkeys(terms, 1.0), _as_it_is)
            learned = [*learned_by(balancer)]
            if learned:
                training.optimizer.build([*_named(lesson), *learned])
    except KdkitError as error:
        yield str(error)
    except Exception as error:  # a stranger's balancer may raise anything
        yield f"{training.balancing!r} cannot balance this stage: {type(error).__name__}: {error}"


def _named(lesson: DistillationModule) -> Iterator[tuple[str, nn.Parameter]]:
    for net in lesson.students:
        for name, parameter in net.network.named_parameters():
            if parameter.requires_grad:
                yield f"{net.name}.{name}", parameter


def _as_it_is(total: Tensor) -> Tensor:
    return total


@contextmanager
def _unchanged_lesson(lesson: DistillationModule) -> Iterator[None]:
    """Train for a step, and leave modes, buffers, gradients and random states as they were."""
    modes = {module: module.training for module in lesson.modules()}
    gradients: list[tuple[Any, Tensor | None]] = [(each, each.grad) for each in lesson.parameters()]
    devices = [lesson.progress.device] if lesson.progress.is_cuda else []
    with torch.random.fork_rng(devices=devices), preserve_buffers([lesson]):
        lesson.train()
        for parameter, _ in gradients:
            parameter.grad = None
        try:
            yield
        finally:
            lesson.open_taps.clear()
            for parameter, gradient in gradients:
                parameter.grad = gradient
            for module, training in modes.items():
                module.training = training


class Rehearsal:
    """An open stage: the lesson, those who answer in it, the comparisons it makes, and its problems.

    foreign: the teachers whose outputs are about other things than the data's classes. Close it to leave every net as
    it was.
    """

    def __init__(self, stage: Stage, facts: BuildContext, batch: Batch, precision: Precision = "fp32") -> None:
        self.stage = stage
        facts = replace(facts, batch_size=stage.training.batch_size)
        self.problems: list[str] = []
        self.comparisons: list[TermSummary] = []
        self.foreign: list[Net[Any]] = []
        self.sessions: dict[str, TeacherSession] = {}
        self.lesson: DistillationModule | None = None
        try:
            for teacher, taps in stage.teachers.items():
                self.sessions[teacher.name] = open_teacher(teacher, taps, facts)
            self.lesson = DistillationModule(stage, facts).to(batch.labels.device)
            with _unchanged(self.lesson), autocast(precision, batch.labels.device):
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
        for each in self.sessions.values():
            each.close()

    def _run(self, lesson: DistillationModule, facts: BuildContext, batch: Batch) -> None:
        teacher_outputs = {teacher.name: self._answer(teacher, batch) for teacher in self.stage.teachers}
        outputs = {net.name: self._output(net, batch) for net in lesson.students}
        lesson.open_taps.copy_if_modified()
        for net in (each for each in lesson.students if outputs[each.name] is not None):  # else a problem already
            modules = set(net.network.modules())
            self._silent(net.name, [tap for tap in lesson.open_taps.unfired() if tap.module in modules])
        complete = {name: answer for name, answer in teacher_outputs.items() if answer is not None}
        if self.problems or len(complete) < len(teacher_outputs) or any(output is None for output in outputs.values()):
            return
        for net in lesson.students:
            self._classes(net, outputs[net.name], facts)
            net.network.eval()  # as it will be judged: some models return something else then
            with torch.no_grad():
                self._classes(net, self._output(net, batch), facts)
        for match in self.stage.matches:
            for teacher in teachers_of(match) if match.student is None and match.target is None else ():
                if isinstance(teacher, Net):
                    self._classes(teacher, complete[teacher.name].output, facts)
        for teacher in self.stage.teachers:
            if isinstance(teacher, Net) and not _can_be_scored(teacher, complete[teacher.name].output, batch, facts):
                self.foreign.append(teacher)
        lesson.train()
        lesson.open_taps.clear()
        teachers = {teacher.name: getattr(teacher, "module", None) for teacher in self.stage.teachers}
        self.problems += build_losses(lesson, batch, complete, facts, teachers)
        self.problems += _trained_teachers(lesson, teachers)
        if not self.problems:
            self._compare(lesson, batch, complete)

    def _answer(self, teacher: Teacher, batch: Batch) -> TeacherOutput | None:
        each = self.sessions[teacher.name]
        try:
            self._silent(teacher.name, each.dry_run(batch))
            if self.problems:
                return None
            answer = each(batch)
            require_output(teacher.name, answer, batch, self.stage.teachers[teacher])
            return answer
        except KdkitError as error:
            self.problems.append(str(error))
        except Exception as error:
            self.problems.append(_cannot_take(teacher, batch, error))
        return None

    def _output(self, net: Net[Any], batch: Batch) -> Tensor | None:
        try:
            return net(batch)
        except KdkitError as error:
            self.problems.append(str(error))
        except Exception as error:
            self.problems.append(_cannot_take(net, batch, error))
        return None

    def _silent(self, name: str, taps: Sequence[TapLike]) -> None:
        for tap in taps:
            self.problems.append(
                f"the tap on {type(tap.module).__name__} of net {name!r} never fired: that module does not run in "
                "a forward pass; tap one that does"
            )

    def _classes(self, net: Net[Any], output: Tensor | None, facts: BuildContext) -> None:
        classes = net.classes or facts.classes
        if output is not None and facts.task != "regression" and output.shape[1:] != (len(classes),):
            whose = "its classes" if net.classes else "the data's classes"
            self.problems.append(
                f"net {net.name!r} gives outputs of {tuple(output.shape[1:])} where {whose} are {len(classes)}; "
                "give it as many outputs, or say which classes they are with Net(..., classes=...)"
            )

    def _compare(self, lesson: DistillationModule, batch: Batch, teacher_outputs: Mapping[str, TeacherOutput]) -> None:
        heard = lesson.heard(batch, teacher_outputs)
        for line in lesson.lines:
            given = lesson.compared(line, batch, heard)
            problem = problem_of(line, given, lesson.asked(line, given))
            if problem:
                self.problems.append(f"term {line.label!r}: {problem}")
            self.comparisons.append(compared(line, given))


def _can_be_scored(net: Net[Any], output: Tensor, batch: Batch, facts: BuildContext) -> bool:
    """Whether a net's outputs are about the data's classes; those of a teacher of features alone need not be."""
    if facts.task == "regression":
        return output[0].numel() == batch.labels[0].numel()
    classes = net.classes or facts.classes
    return output.shape[1:] == (len(classes),) and not set(classes).isdisjoint(facts.classes)


def _trained_teachers(lesson: DistillationModule, teachers: Mapping[str, Any]) -> Iterator[str]:
    """Say which teachers would be trained, since the learners or their losses hold a part of them."""
    trained = {id(each) for each in lesson.parameters() if each.requires_grad}
    for name, module in teachers.items():
        if isinstance(module, nn.Module) and any(id(each) in trained for each in module.parameters()):
            yield (
                f"net {name!r} teaches, but a learner or a loss holds a part of it, which would be trained; "
                "give it a copy (copy.deepcopy), or freeze that part with requires_grad_(False)"
            )


@contextmanager
def _unchanged(lesson: DistillationModule) -> Iterator[None]:
    """Run the learners in training mode, as they will be, and leave modes, buffers and random states as they were."""
    modes = {module: module.training for module in lesson.modules()}
    devices = [lesson.progress.device] if lesson.progress.is_cuda else []
    with torch.random.fork_rng(devices=devices), preserve_buffers(lesson.nets):
        lesson.train()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training


def _cannot_take(teacher: Teacher, batch: Batch, error: Exception) -> str:
    said = f"{type(error).__name__}: {first_line(error)}"
    if not isinstance(teacher, Net):
        return f"{teacher.name!r} cannot answer a batch: {said}"
    try:
        args, kwargs = teacher.view(batch)
    except Exception:  # the view itself, which may be a stranger's
        return f"net {teacher.name!r} cannot be shown a batch by {teacher.view!r}: {said}"
    shown = ", ".join(str(tuple(each.shape)) for each in (*args, *kwargs.values()) if isinstance(each, Tensor))
    return f"net {teacher.name!r} cannot take what it sees ({shown}): {said}"


def problem_of(line: BoundTerm, given: TermInputs, asked: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a term, or None. Its loss is computed twice, the second time beside the answer."""
    target = given.labels if given.target is None else given.target
    shapes = f"student {_shape(given.student)} and target {_shape(target)}"
    if line.shared is not None and not len(given.labels):
        return None
    memory = [line.loss] if isinstance(line.loss, nn.Module) else []
    try:
        with warnings.catch_warnings(record=True) as caught, preserve_buffers(memory):
            warnings.simplefilter("always")
            value = line.loss(given.student, target, **asked)
            noisy = line.loss(_noisy(given.student), target, **asked)
    except KdkitError as error:
        return str(error)
    except Exception as error:
        one_alone = _of_panel(line) and not isinstance(line.loss, PerTeacher)
        hint = f"; a Panel gives a tuple, of which PerTeacher({_said(line.loss)}) takes each" if one_alone else ""
        return f"{shapes} cannot meet in {_said(line.loss)}: {first_line(error)}{hint}"
    broadcast = [str(warning.message) for warning in caught if "target size" in str(warning.message)]
    if broadcast:
        return f"{shapes} are of different shapes and would be broadcast; bring them together with a projector"
    if not isinstance(value, Tensor) or value.ndim:
        came = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        return f"{_said(line.loss)} gives {came} where a scalar was expected; reduce it, say with .mean()"
    if not value.requires_grad:
        return f"{_said(line.loss)} moves nothing: no gradient flows from it to net {line.student_net.name!r}"
    if _of_itself(line) and not _moves(value, given.student):
        return f"{_said(line.loss)} moves nothing: net {line.student_net.name!r} is compared with what it says itself"
    if not torch.isfinite(value):
        return f"{_said(line.loss)} is {value.item()} at the first step"
    if value == 0 and noisy == 0:
        return f"{_said(line.loss)} is constantly zero, whatever net {line.student_net.name!r} says"
    return None


def _of_panel(line: BoundTerm) -> bool:
    term = line.weighted.term
    return isinstance(term, Match) and isinstance(term.teacher, Teachers)


def _of_itself(line: BoundTerm) -> bool:
    term = line.weighted.term
    return isinstance(term, Match) and isinstance(term.teacher, Peer) and term.teacher.net is line.student_net


def _moves(value: Tensor, student: TensorOrTuple) -> bool:
    """Whether a loss has a slope at what the student says, but for rounding."""
    sides = [each for each in (student if isinstance(student, tuple) else (student,)) if each.requires_grad]
    slopes = torch.autograd.grad(value, sides, retain_graph=True, allow_unused=True) if sides else ()
    return any(slope is not None and slope.abs().max() > 1e-6 for slope in slopes)


def _noisy(side: TensorOrTuple) -> TensorOrTuple:
    if isinstance(side, tuple):
        return tuple(each + torch.randn_like(each) for each in side)
    return side + torch.randn_like(side)
