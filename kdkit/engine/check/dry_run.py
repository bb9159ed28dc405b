"""Run an open stage once on a tiny batch, which shows the shapes, builds the losses and reveals most mistakes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch, nested_tensors
from kdkit.engine.check.input_advice import input_advice, line_of_user_code
from kdkit.engine.check.label_offset import offset_notices, sees_offset
from kdkit.engine.check.output_columns import class_names_problem, columns_problem, is_about_classes
from kdkit.engine.check.plan import TermSummary, summarize
from kdkit.engine.check.probabilities import kind_of_probabilities, takes_logits
from kdkit.engine.check.projectors import watch_projectors
from kdkit.engine.check.sequence_labels import WatchCTC, sequence_notices
from kdkit.engine.check.step_problems import preserve, step_problem
from kdkit.engine.check.term_problem import term_problem
from kdkit.engine.failures.not_finite import cause_in_inputs, cause_in_outputs
from kdkit.engine.stage.open_stage import OpenStage
from kdkit.engine.stage.term_inputs import TermInputs
from kdkit.engine.stage.terms import BoundTerm
from kdkit.engine.stage.train_state import balancer_parameters, build_balancer, named_trainable_parameters
from kdkit.errors import KdkitError, RecipeError, first_line
from kdkit.losses.base import allows_any_classes, requirements_of
from kdkit.losses.catalog import ON_FEATURES
from kdkit.losses.contrastive import CRD
from kdkit.losses.features import as_tuple
from kdkit.losses.multi_teacher import PerTeacher
from kdkit.nets.head_tap import HeadTap, is_left_out
from kdkit.nets.layout import path_of
from kdkit.nets.net import Net
from kdkit.nets.taps import Tap, TapLike
from kdkit.nets.views import Images
from kdkit.recipe.balancing.base import WeightedSum
from kdkit.recipe.objective import as_objective
from kdkit.recipe.recipe import nets_of, teachers_of
from kdkit.teachers.base import Teacher, TeacherOutput, require_output
from kdkit.teachers.ema import Ema
from kdkit.teachers.past import Past
from kdkit.utils.devices import Precision, autocast
from kdkit.utils.modules import parameters_behind

# Losses that compare positions; CRD compares means over positions.
_ON_FEATURES = tuple(loss for loss in ON_FEATURES if isinstance(loss, type) and loss is not CRD)


@dataclass(slots=True)
class DryRunReport:
    """The result of a dry run. terms: empty if there are problems.

    feature_teachers: teachers whose outputs are not about the data's classes; they are matched by features only.
    outputs: of each student in eval mode, by its name. notices: see `Plan`. untrained_outputs: whether the outputs of
    every student depend on parameters that no term trains.
    """

    problems: list[str] = field(default_factory=list)
    terms: list[TermSummary] = field(default_factory=list)
    feature_teachers: list[Net[Any]] = field(default_factory=list)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    untrained_outputs: bool = False


def dry_run(
    open_stage: OpenStage, batch: Batch, precision: Precision = "fp32", *, update: bool = False
) -> DryRunReport:
    """Run an open stage once on a tiny batch, build its losses, and return the problems.

    update: also try the rest of a training step: a backward pass, if balancing or recomputed activations may fail in
    it, and an optimizer step.
    Modes, buffers, gradients and random states are restored; only the built losses stay.
    """
    report = DryRunReport()
    run = _DryRun(open_stage, batch, report)
    # The buffers of losses are not restored, because the dry run creates them.
    with autocast(precision, batch.labels.device), preserve(open_stage.module, open_stage.module.nets):
        try:
            run.execute()
        except KdkitError as error:
            report.problems.append(str(error))
    if update and not report.problems:
        run.check_update(precision)
    return report


class _DryRun:
    """One dry run. Each step adds to the problems of the report, and needs the earlier steps to succeed."""

    def __init__(self, open_stage: OpenStage, batch: Batch, report: DryRunReport) -> None:
        self.open_stage = open_stage
        self.stage = open_stage.stage
        self.module = open_stage.module
        self.context = open_stage.context
        self.batch = batch
        self.report = report
        self.problems = report.problems
        self.open_taps = [*self.module.open_taps.taps, *chain.from_iterable(self.stage.teachers.values())]

    def execute(self) -> None:
        """Run teachers and students, check their outputs, build the losses, and compute every term."""
        teachers = self.stage.teachers
        teacher_outputs = {teacher.name: self._run_teacher(teacher) for teacher in teachers}
        student_outputs = {net.name: self._run_student(net) for net in self.module.students}
        self.module.open_taps.copy_if_modified()
        for net in nets_of([self.stage]):
            notice = net.view.notice(self.batch.inputs) if isinstance(net.view, Images) else ""
            self.report.notices += [f"the view Images of net {net.name!r} {notice}"] if notice else []
        # Before a problem can end the dry run: a wrong order of dimensions may be its cause.
        self.report.notices += [tap.form.notice for tap in self.open_taps if isinstance(tap, Tap) and tap.form.notice]
        for net in self.module.students:
            if student_outputs[net.name] is not None:  # otherwise the net failed, and its taps could not fire
                parts = set(net.network.modules())
                self._report_unfired(net, [tap for tap in self.module.open_taps.unfired() if tap.module in parts])
                self._report_not_recomputed(net)
        complete = {name: output for name, output in teacher_outputs.items() if output is not None}
        failed = len(complete) < len(teacher_outputs) or any(output is None for output in student_outputs.values())
        if self.problems or failed:
            return
        self._check_classes(student_outputs, complete)
        labels, students = self.batch.labels, [*self.report.outputs.values()]
        for teacher in teachers:
            output = complete[teacher.name].output
            if isinstance(teacher, Net) and not is_about_classes(teacher, output, labels, self.context, students):
                self.report.feature_teachers.append(teacher)
        self._check_soft_labels()
        if self.problems:
            return
        self._notice_probabilities({**student_outputs, **{name: output.output for name, output in complete.items()}})
        self.module.train()
        self.module.open_taps.clear()
        modules = {teacher.name: getattr(teacher, "module", None) for teacher in teachers}
        of_teachers = {id(buffer) for module in modules.values() for buffer in _buffers_of(module)}
        buffers = {id(buffer): buffer.clone() for buffer in self.module.nets.buffers() if id(buffer) in of_teachers}
        self.problems += self.module.build_losses(self.batch, complete, self.context, modules)
        self._check_frozen(modules, buffers)
        self._check_averages()
        if not self.problems:
            self._check_terms(complete)

    def check_update(self, precision: Precision) -> None:
        """Try the optimizer, and the gradients of one step with all weights 1 if computing them may fail."""
        training, module = self.stage.training, self.module
        recomputing = [net.name for net in module.students if net.recompute]
        try:
            balancer = build_balancer(training, module)

            def compute_gradients() -> None:
                with autocast(precision, self.batch.labels.device):
                    losses = module(self.batch, self.open_stage.teachers(self.batch))
                balancer(losses, dict.fromkeys(losses, 1.0), lambda total: total)

            # The backward pass of a sum of finite terms with gradients cannot fail.
            if type(training.balancing) is not WeightedSum or recomputing:
                with preserve(module, [module]):
                    compute_gradients()
            named = [*named_trainable_parameters(module), *balancer_parameters(balancer)]
            with preserve(module, [module]):
                problem = step_problem(training.optimizer, named, module, compute_gradients)
            self.problems += [] if problem is None else [problem]
        except KdkitError as error:
            self.problems.append(str(error))
        except Exception as error:  # a user-defined balancer may raise anything
            reason = f"{type(error).__name__}: {error}"
            if recomputing:
                self.problems.append(
                    f"the backward pass fails; modules that net {recomputing[0]!r} recomputes must not change their "
                    f"inputs in place, and must compute the same values in a second pass: {reason}"
                )
            else:
                self.problems.append(f"{training.balancing!r} fails in this stage: {reason}")

    def _run_teacher(self, teacher: Teacher) -> TeacherOutput | None:
        session = self.open_stage.sessions[teacher.name]
        try:
            self._report_unfired(teacher, session.dry_run(self.batch))
            if self.problems:
                return None
            versions = [tensor._version for tensor in nested_tensors(self.batch.inputs)]
            output = session(self.batch)
            if versions != [tensor._version for tensor in nested_tensors(self.batch.inputs)]:
                self.problems.append(
                    f"{teacher.name!r} changes its inputs in place, but other networks get the same inputs; compute on "
                    "a copy: inputs = inputs.clone()"
                )
            require_output(teacher.name, output, self.batch, self.stage.teachers[teacher])
            self._check_head(teacher, self.stage.teachers[teacher], output.output)
            return output
        except KdkitError as error:
            self.problems.append(str(error))
        except Exception as error:  # a user-defined teacher may raise anything
            self.problems.append(_describe_failure(teacher, self.batch, error))
        return None

    def _run_student(self, net: Net[Any]) -> Tensor | None:
        try:
            self.module.open_taps.begin_first_pass()  # a teacher such as Ema may have run the network already
            output = net.first_pass(self.batch)
            parts = set(net.network.modules())
            self._check_head(net, [tap for tap in self.module.open_taps.taps if tap.module in parts], output)
            return output
        except KdkitError as error:
            self.problems.append(str(error))
        except Exception as error:  # a network may raise anything
            self.problems.append(_describe_failure(net, self.batch, error))
        return None

    def _check_head(self, net: Teacher, taps: Sequence[TapLike], output: Tensor) -> None:
        """Check that the outputs of a net are those of the head that a HeadTap leaves out."""
        is_captured = not isinstance(net, Net) or net not in self.module.students or self.module.open_taps.captures
        for tap in taps:
            if isinstance(tap, HeadTap) and is_captured and not is_left_out(output):
                self.problems.append(
                    f"the outputs of the network are not those of {tap.tap.form.layer}, which a HeadTap leaves out: "
                    "the network changes them, for example by a soft cap, or has another head; use "
                    "Tap(module, 'input') and Chunked(loss, heads=(...)) with functions that compute the same"
                )

    def _report_unfired(self, teacher: Teacher, taps: Sequence[TapLike]) -> None:
        for tap in taps:
            path = path_of(tap.module, teacher) if isinstance(teacher, Net) else None  # Ema taps a copy of its network
            self.problems.append(
                f"the tap on {type(tap.module).__name__}{f' {path!r}' if path else ''} of net {teacher.name!r} never "
                "fired: this module does not run in a forward pass; tap a module that does"
            )

    def _report_not_recomputed(self, net: Net[Any]) -> None:
        unused = self.module.recomputation.unused()
        for name, module in zip(net.recompute, net.recomputed, strict=True):
            if module in unused:
                self.problems.append(
                    f"net {net.name!r} cannot recompute {name!r}: this {type(module).__name__} is not called in a "
                    "forward pass; name modules inside it, or others that are called"
                )

    def _check_classes(
        self, student_outputs: Mapping[str, Tensor | None], teacher_outputs: Mapping[str, TeacherOutput]
    ) -> None:
        """Check that every output that is compared by classes has a column for each class."""
        labels, context = self.batch.labels, self.context
        for net in self.module.students:
            terms = [weighted.term for weighted in as_objective(self.stage.objectives[net])]
            if context.position_dims and not context.has_labels and all(term.student for term in terms):
                continue  # in a Distiller, which has no validation, nothing uses these outputs
            # Validation runs in eval mode without taps, and some models then return different outputs.
            self.module.open_taps.pause()
            net.network.eval()
            with torch.no_grad():
                outputs = [
                    output for output in (student_outputs[net.name], self._run_student(net)) if output is not None
                ]
            self.report.outputs[net.name] = outputs[-1]
            problems = (columns_problem(net, output, labels, context) for output in outputs)
            self.problems += filter(None, dict.fromkeys(problems))
        compared = {
            teacher
            for match in self.stage.matches
            if all(side is None or isinstance(side, HeadTap) for side in (match.student, match.target))
            and not allows_any_classes(match.loss)
            for teacher in teachers_of(match)
        }
        # Teachers that are aligned by the names of their columns, even in terms that also compare features.
        alignments = ((term.alignment, term.teachers) for term in self.module.terms)
        aligned = {
            name for alignment, names in alignments if alignment is not None and alignment.targets for name in names
        }
        for teacher in self.stage.teachers:
            output = teacher_outputs[teacher.name].output
            if isinstance(teacher, Net) and teacher in compared:
                self.problems += filter(None, [columns_problem(teacher, output, labels, context)])
            elif teacher.name in aligned and not isinstance(teacher, Ema | Past):  # their net is checked as a student
                self.problems += filter(None, [class_names_problem(teacher, output)])

    def _check_soft_labels(self) -> None:
        """Check that no term needs class indices if the labels are soft, (batch, classes)."""
        if self.context.task != "multiclass" or self.batch.labels.ndim == 1 or self.context.position_dims:
            return
        for term in self.module.terms:
            reason = None
            if "hard_labels" in requirements_of(term.loss):
                reason = f"{type(term.loss).__name__} needs one class per sample"
            if term.alignment is not None and term.alignment.drops_samples:
                reason = "it leaves out samples whose class one of the sides lacks, which needs one class per sample"
            if isinstance(term.loss, PerTeacher) and term.loss.weights == "confidence":
                reason = "weights='confidence' compares the teachers' outputs with one class per sample"
            if reason is not None:
                self.problems.append(
                    f"term {term.label!r}: {reason}, but the labels are soft; pass class indices, such as "
                    "labels.argmax(1), and no batch_transform that mixes samples"
                )

    def _notice_probabilities(self, outputs: Mapping[str, Tensor | None]) -> None:
        """Add a notice for outputs that look like those of a softmax or sigmoid, but go into a loss on logits."""
        if self.context.task == "regression":
            return
        losses: dict[str, str] = {}  # the first such loss by network name
        for term in self.module.terms:
            if takes_logits(term.loss):
                sides = [term.student] if term.target is None else [term.student, term.target]
                names = [name for side in sides for name, tap in side.entries if tap is None]
                loss = getattr(term.loss, "__name__", None) or type(term.loss).__name__
                losses = {**dict.fromkeys(names, loss), **losses}
        # Other teachers, such as Past, may have no output yet. Features after a ReLU can also be in [0, 1].
        features = {net.name for net in self.report.feature_teachers}
        nets = {net.name for net in nets_of([self.stage])} - features
        for name, loss in losses.items():
            output = outputs.get(name) if name in nets else None
            kind = None if output is None else kind_of_probabilities(output)
            if kind is not None:
                self.report.notices.append(
                    f"the outputs of net {name!r} look like probabilities, such as those of a {kind}, but {loss} takes "
                    f"logits and would compute probabilities of probabilities; leave the {kind} out of the network"
                )

    def _notice_sequences(self, label: str, student: Sequence[Tensor], target: Sequence[Tensor]) -> None:
        """Add a notice for image tokens, (batch, channels, tokens), that a loss would resize as a sequence."""
        has_images = any(tensor.ndim == 4 for tensor in nested_tensors(self.batch.inputs))
        for feature, target_feature in zip(student, target, strict=False):  # some losses take any number of taps
            tokens, target_tokens = feature.shape[-1], target_feature.shape[-1]
            if has_images and feature.ndim == target_feature.ndim == 3 and tokens != target_tokens:
                self.report.notices.append(
                    f"term {label!r} compares {tokens} tokens with {target_tokens} as a sequence, by their order; "
                    "if they are patches of an image, turn them into a map without class and register tokens, with "
                    "timm_tap(model, index) or Tap(layer, element=lambda tokens: tokens[:, 1:].unflatten(1, (height, "
                    "width)), channels_last=True)"
                )
                return

    def _check_frozen(self, teachers: Mapping[str, Any], buffers: Mapping[int, Tensor]) -> None:
        """Check that no teacher would be trained, moved or changed through a student or loss that shares its tensors.

        buffers: copies of the shared buffers by id, made before a forward pass in training mode.
        """
        nets = {teacher.name: teacher for teacher in self.stage.teachers}
        ours = {*self.module.parameters()}
        elsewhere = {net.name for net in self.stage.teachers if isinstance(net, Net) and net.device is not None}
        for name, teacher in teachers.items():
            of_teacher = teacher.parameters() if isinstance(teacher, nn.Module) else ()
            shared = [parameter for parameter in of_teacher if parameter in ours]
            trained = [parameter for parameter in shared if parameter.requires_grad]
            if shared and name in elsewhere:
                self.problems.append(
                    f"net {name!r} has its own device, but a student or a loss shares parameters with it; "
                    "give it a copy (copy.deepcopy), or leave out its device"
                )
            elif trained and self._depends_on(nets[name], trained):
                self.problems.append(
                    f"net {name!r} teaches, but a student or a loss would train parameters that it shares with it; "
                    "give it a copy (copy.deepcopy), or freeze those parameters with requires_grad_(False)"
                )
            elif any(not torch.equal(buffer, buffers.get(id(buffer), buffer)) for buffer in _buffers_of(teacher)):
                self.problems.append(
                    f"net {name!r} teaches, but a student shares buffers with it that change in training, such as the "
                    "statistics of a batch norm; give it a copy (copy.deepcopy)"
                )

    def _depends_on(self, teacher: Teacher, trained: Sequence[Tensor]) -> bool:
        """Return whether the outputs of a teacher change with parameters that it shares with a student.

        They do not if the teacher is the student with its adapters switched off.
        """
        session = self.open_stage.sessions[teacher.name]
        values = [parameter.detach().clone() for parameter in trained]
        with torch.no_grad():
            before = session(self.batch)
            try:
                for parameter in trained:
                    parameter.add_(torch.randn_like(parameter))
                after = session(self.batch)
            finally:
                for parameter, value in zip(trained, values, strict=True):
                    parameter.copy_(value)
        pairs = zip((before.output, *before.features), (after.output, *after.features), strict=True)
        return not all(torch.equal(first, second) for first, second in pairs)

    def _check_averages(self) -> None:
        """Check that networks can be copied for averages even after a forward pass, which may store tensors in them."""
        ema = self.stage.training.ema
        for net in self.module.students if ema is not None else ():
            try:
                net.copy_network()
            except KdkitError as error:
                self.problems.append(str(error))

    def _check_terms(self, teacher_outputs: Mapping[str, TeacherOutput]) -> None:
        outputs = self.module.run_students(self.batch, teacher_outputs)

        def cause_not_finite() -> str | None:
            cause = cause_in_inputs(self.batch, has_unknown=self.context.has_unknown)
            return cause or cause_in_outputs(self.batch, teacher_outputs)

        trained: set[Tensor] = set()
        computes_ctc = False
        by_net: dict[str, list[tuple[BoundTerm, bool]]] = {}  # whether terms see an offset of the outputs
        for term in self.module.terms:
            try:
                # As if the teacher had an output for each sample: a Past has them later.
                inputs = self.module.gather_inputs(term, self.batch, outputs, fill=True)
                tried = inputs
                if self._leaves_out_all(term, inputs):  # later samples have labels that it compares
                    tried = self.module.gather_inputs(term, self._labelled_batch(term), outputs, fill=True)
                with watch_projectors(term.loss) as projectors, WatchCTC() as watch:
                    kwargs = self.module.loss_kwargs(term, tried)
                    problem = term_problem(term, tried, kwargs, cause_not_finite)
            except RecipeError as error:
                self.problems.append(f"term {term.label!r}: {error}")
                continue
            computes_ctc |= watch.called
            if problem is not None:
                self.problems.append(f"term {term.label!r}: {problem}")
            elif self.context.task == "multilabel" and term.weighted.has_weight:
                by_net.setdefault(term.student_net.name, []).append((term, sees_offset(term, tried, kwargs)))
            if term.weighted.has_weight:
                trained.update(parameters_behind(as_tuple(inputs.student)))
                tap = term.weighted.term.student
                trained.update(tap.module.parameters() if isinstance(tap, HeadTap) else ())
            if term.rows is not None and self.context.position_dims and not len(as_tuple(inputs.student)[0]):
                # There is no advice for a loss that takes labels.
                advice = "" if term.extra_kwargs else "; PerPosition(loss, ignore_index=None) compares all positions"
                self.report.notices.append(
                    f"term {term.label!r} compares no position of the first samples, because none of them has a label"
                    f"{advice}"
                )
            # The plan shows the shapes of the outputs, not those of rows of positions.
            whole = inputs if term.rows is None else self.module.whole_inputs(term, self.batch, outputs, fill=True)
            if isinstance(term.loss, _ON_FEATURES) and whole.target is not None:
                self._notice_sequences(term.label, as_tuple(whole.student), as_tuple(whole.target))
            self.report.terms.append(summarize(term, whole, self.open_taps, projectors.values()))
        self.report.notices += [] if self.problems else offset_notices(by_net)
        if computes_ctc and self.context.position_dims:
            self.report.notices += sequence_notices(self.module.terms)
        students = self.module.students
        self.report.untrained_outputs = all(parameters_behind([outputs[net.name].output]) - trained for net in students)

    def _leaves_out_all(self, term: BoundTerm, inputs: TermInputs) -> bool:
        """Whether a term compares no sample of the batch, because of their labels."""
        if not self.context.has_labels or self.batch.labels.is_floating_point():
            return False
        if term.ignore_index is not None and (inputs.labels == term.ignore_index).all():
            return True
        selects = term.alignment is not None or term.rows is not None
        return selects and not len(as_tuple(inputs.student)[0])

    def _labelled_batch(self, term: BoundTerm) -> Batch:
        """Return the batch with labels of classes that a term compares."""
        shared = getattr(term.alignment, "labels", None)  # None if all are
        classes = range(len(self.context.classes)) if shared is None else shared.tolist()
        compared = torch.tensor([index for index in classes if index not in self.context.ignored_labels] or [0])
        labels = self.batch.labels
        numbers = torch.arange(labels.numel()) % len(compared)
        return replace(self.batch, labels=compared[numbers].view_as(labels).to(labels))


def _describe_failure(teacher: Teacher, batch: Batch, error: Exception) -> str:
    reason = f"{type(error).__name__}: {first_line(error)}"
    if not isinstance(teacher, Net):
        return f"{teacher.name!r} fails for a batch: {reason}{line_of_user_code(error)}"
    try:
        args, kwargs = teacher.view(batch)
    except Exception:  # a user-defined view may raise anything
        return f"the view {teacher.view!r} of net {teacher.name!r} fails for a batch: {reason}"
    named = [*(("", value) for value in args), *((f"{name} ", value) for name, value in kwargs.items())]
    tensors = [value for _, value in named if isinstance(value, Tensor)]
    inputs = ", ".join(f"{name}{tuple(value.shape)}" for name, value in named if isinstance(value, Tensor))
    return (
        f"net {teacher.name!r} fails for its inputs ({inputs}): {reason}{line_of_user_code(error)}"
        f"{input_advice(teacher, tensors, error)}"
    )


def _buffers_of(teacher: object) -> Iterable[Tensor]:
    return teacher.buffers() if isinstance(teacher, nn.Module) else ()
