"""Run an open stage once on a tiny batch, which shows the shapes, builds the losses and reveals most mistakes."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch, modifications, nested_tensors
from kdkit.engine.check.facts import CheckedTerm, Facts
from kdkit.engine.check.notices import stage_notices
from kdkit.engine.check.output_problems import output_problems
from kdkit.engine.check.plan import ProjectorSummary, summarize
from kdkit.engine.check.probabilities import WatchLosses
from kdkit.engine.check.term_problem import TermCheck, compares_nothing
from kdkit.engine.failures.network_errors import describe_failure
from kdkit.engine.stage.module import temporary_training
from kdkit.engine.stage.open_stage import OpenStage
from kdkit.engine.stage.term_inputs import TermInputs
from kdkit.engine.stage.terms import BoundTerm
from kdkit.errors import KdkitError, RecipeError
from kdkit.losses.base import BUILD_ARGUMENTS, describe_loss, is_of_kdkit, unwrapped
from kdkit.losses.sides import as_tuple
from kdkit.nets.net import Net
from kdkit.nets.taps import HeadTap, TapLike, is_left_out, path_of
from kdkit.recipe.objective import Taps, taps_of
from kdkit.recipe.recipe import weighted_terms
from kdkit.teachers.base import Teacher, require_output
from kdkit.utils.modules import forward_hook, parameters_behind
from kdkit.utils.signatures import parameters_by_name


def dry_run(open_stage: OpenStage, batch: Batch) -> Facts:
    """Run an open stage once on a tiny batch, build its losses, and return the problems and other facts.

    Modes, buffers, gradients and random states are restored; only the built losses stay.
    """
    facts = Facts(open_stage, batch)
    # The buffers of losses are not restored, because the dry run creates them.
    with open_stage.autocast(), temporary_training(open_stage.module, open_stage.module.nets):
        try:
            # Each step yields problems, and needs the earlier steps to yield none.
            for step in (_run_networks, _run_in_eval_mode, output_problems, _build_losses, _compute_terms):
                facts.problems += step(facts)
                if facts.problems:
                    break
        except KdkitError as error:
            facts.problems.append(str(error))
        facts.notices += stage_notices(facts)
    # Their graphs hold the activations.
    facts.student_outputs.clear()
    facts.outputs.clear()
    facts.checked_terms.clear()
    return facts


def _run_networks(facts: Facts) -> Iterator[str]:
    """Run teachers, and students in training mode. Yield failures, and modules that do not run."""
    yield from _run_teachers(facts)
    yield from _run_students(facts)


def _run_teachers(facts: Facts) -> Iterator[str]:
    batch = facts.batch
    for teacher, taps in facts.stage.teachers.items():
        session = facts.open_stage.sessions[teacher.name]
        try:
            unfired = session.dry_run(batch)
            yield from _unfired_taps(teacher, unfired, " in eval mode")
            if unfired:
                continue
            counts = [*map(modifications, nested_tensors(batch.inputs))]
            output = facts.open_stage.teacher_outputs(batch, {teacher.name: session})[teacher.name]
            if counts != [*map(modifications, nested_tensors(batch.inputs))]:
                yield (
                    f"{teacher.name!r} changes its inputs in place, but other networks get the same inputs; compute on "
                    "a copy: inputs = inputs.clone()"
                )
            require_output(teacher.name, output, batch, taps)
            yield from _other_heads(taps, output.output)
            facts.teacher_outputs[teacher.name] = output
        except Exception as error:  # a user-defined teacher may raise anything
            yield describe_failure(teacher, batch, error)


def _run_students(facts: Facts) -> Iterator[str]:
    module, batch = facts.module, facts.batch
    for net in module.students:
        try:
            module.open_taps.reset_fired()  # a teacher such as Ema may have run the network already
            facts.student_outputs[net.name] = net.first_pass(batch)
        except Exception as error:  # a network may raise anything
            yield describe_failure(net, batch, error)
    module.open_taps.copy_if_modified()
    for net in module.students:
        if net.name in facts.student_outputs:  # otherwise the net failed, and its taps could not fire
            parts = set(net.network.modules())
            yield from _unfired_taps(net, [tap for tap in module.open_taps.unfired() if tap.module in parts])
            taps_of_net = [tap for tap in module.open_taps.taps if tap.module in parts]
            yield from _other_heads(taps_of_net, facts.student_outputs[net.name])
            unused = module.recomputation.unused()
            for name, part in zip(net.recompute, net.recomputed, strict=True):
                if part in unused:
                    yield (
                        f"net {net.name!r} cannot recompute {name!r}: this {type(part).__name__} is not called in a "
                        "forward pass; name modules inside it, or others that are called"
                    )


def _unfired_taps(teacher: Teacher, taps: Iterable[TapLike], mode: str = "") -> Iterator[str]:
    for tap in taps:
        path = path_of(tap.module, teacher) if isinstance(teacher, Net) else None  # Ema taps a copy of its network
        yield (
            f"the tap on {type(tap.module).__name__}{f' {path!r}' if path else ''} of net {teacher.name!r} never "
            f"fired: this module does not run in a forward pass{mode}; tap a module that does, and turn off LayerDrop"
        )


def _other_heads(taps: Iterable[TapLike], output: Tensor) -> Iterator[str]:
    """Yield a problem if a HeadTap leaves out a head that does not compute the outputs of the network."""
    for tap in taps:
        if isinstance(tap, HeadTap) and not is_left_out(output):
            yield (
                f"the outputs of the network are not those of {tap.tap.form.layer}, which a HeadTap leaves out: "
                "the network changes them, for example by a soft cap, or has another head; use "
                "Tap(module, 'input') and Chunked(loss, heads=(...)) with functions that compute the same"
            )


def _run_in_eval_mode(facts: Facts) -> Iterator[str]:
    """Run students as in validation: in eval mode and without taps, when some models return different outputs."""
    facts.module.open_taps.pause()
    for net in facts.module.students:
        taps = [weighted.term.student for owner, weighted in weighted_terms(facts.stage) if owner is net]
        if facts.context.position_dims and not facts.context.has_labels and all(taps):
            continue  # in a Distiller, which has no validation, nothing uses these outputs
        net.network.eval()
        parts = set(net.network.modules())
        watched = [tap for tap in facts.module.open_taps.taps if tap.module in parts and not _is_tap_of_kdkit(tap)]
        try:
            with torch.no_grad(), _notice_changes(watched, facts):
                facts.eval_outputs[net.name] = net.first_pass(facts.batch)
        except Exception as error:  # a network may raise anything
            yield describe_failure(net, facts.batch, error)


def _is_tap_of_kdkit(tap: TapLike) -> bool:
    return type(tap).__module__.startswith("kdkit.nets.taps.")


@contextmanager
def _notice_changes(taps: Sequence[TapLike], facts: Facts) -> Iterator[None]:
    """Add a notice for each user-defined tap whose hook changes the output of its module in a forward pass."""
    before: dict[nn.Module, tuple[Any, list[int | None]]] = {}
    changed: list[nn.Module] = []

    def remember(module: nn.Module, _args: Any, output: Any) -> None:
        before[module] = output, [*map(modifications, nested_tensors(output))]

    def compare(module: nn.Module, _args: Any, output: Any) -> None:
        value, counts = before[module]
        if output is not value or counts != [*map(modifications, nested_tensors(output))]:
            changed.append(module)

    modules = {tap.module for tap in taps}
    with ExitStack() as handles:
        for module in modules:
            handles.callback(module.register_forward_hook(remember, prepend=True).remove)
            handles.callback(module.register_forward_hook(compare).remove)
        yield
    facts.notices += [
        f"the output of {type(tap.module).__name__}, which {type(tap).__name__} taps, is changed by a hook: if it is "
        "that of the tap, the network is trained with the changed output, but tested and exported without the tap; "
        "pass a copy to capture, and return None from the hook"
        for tap in taps
        if tap.module in changed
    ]


def _build_losses(facts: Facts) -> Iterator[str]:
    """Build the losses, and yield their problems, and teachers and students that share tensors."""
    module = facts.module
    module.train()
    module.open_taps.begin_pass()
    of_teachers = {buffer for teacher in facts.teacher_modules.values() for buffer in teacher.buffers()}
    before = {buffer: buffer.clone() for buffer in module.nets.buffers() if buffer in of_teachers}
    facts.outputs = module.run_students(facts.batch, facts.teacher_outputs)
    for term in module.terms:
        yield from _build_loss(facts, term)
    module.losses.to(facts.batch.labels.device)  # their new parameters are on the CPU
    for teacher in facts.stage.teachers:
        yield from _shared_tensors(facts, teacher, before)
    if facts.stage.training.ema is None:
        return
    # A forward pass may have stored tensors in a network, which then cannot be copied for an average.
    for net in module.students:
        try:
            net.copy_network()
        except KdkitError as error:
            yield str(error)


def _build_loss(facts: Facts, term: BoundTerm) -> Iterator[str]:
    """Build the loss of a term if it needs to know shapes, such as one with a projector, and yield its problem."""
    build = getattr(term.loss, "build", None)
    if build is None:
        return
    inputs = term.gather_inputs(facts.batch, facts.outputs, fill=True)
    modules = tuple(map(facts.teacher_modules.get, term.teachers))
    teacher = modules if len(modules) > 1 else next(iter(modules), None)
    source = term.weighted.term
    context = replace(
        facts.context,
        tapped=tuple(tap.module for tap in taps_of(source.target)),
        teacher_classes=getattr(source.teacher, "classes", None),
        heads=(_head(source.student), _head(source.target)),
        columns=term.columns,
    )
    sides = as_tuple(inputs.student), as_tuple(inputs.target_or_labels())
    try:
        build(*(tuple(tensor.shape for tensor in side) for side in sides), context, teacher)
    except RecipeError as error:
        yield f"term {term.label!r}: {error}"
    except Exception as error:  # a user-defined loss may raise anything
        yield f"term {term.label!r}: its build raises {type(error).__name__}: {error}{BUILD_ARGUMENTS}"


def _head(side: Taps) -> nn.Module | None:
    """Return the module that the HeadTap of a side is on, or None."""
    return side.module if isinstance(side, HeadTap) else None


def _shared_tensors(facts: Facts, teacher: Teacher, before: Mapping[Tensor, Tensor]) -> Iterator[str]:
    """Yield a problem if training or moving a student or a loss changes a teacher, because they share tensors.

    before: copies of the shared buffers, made before a forward pass in training mode.
    """
    network, ours = facts.teacher_modules.get(teacher.name), set(facts.module.parameters())
    if network is None:
        return
    shared = [parameter for parameter in network.parameters() if parameter in ours]
    trained = [parameter for parameter in shared if parameter.requires_grad]
    if shared and isinstance(teacher, Net) and teacher.device is not None:
        yield (
            f"net {teacher.name!r} has its own device, but a student or a loss shares parameters with it; "
            "give it a copy (copy.deepcopy), or leave out its device"
        )
    elif trained and _depends_on(facts, teacher, trained):
        yield (
            f"net {teacher.name!r} teaches, but a student or a loss would train parameters that it shares with it; "
            "give it a copy (copy.deepcopy), or freeze those parameters with requires_grad_(False)"
        )
    elif any(not torch.equal(buffer, before.get(buffer, buffer)) for buffer in network.buffers()):
        yield (
            f"net {teacher.name!r} teaches, but a student shares buffers with it that change in training, such as the "
            "statistics of a batch norm; give it a copy (copy.deepcopy)"
        )


def _depends_on(facts: Facts, teacher: Teacher, trained: Sequence[Tensor]) -> bool:
    """Return whether the outputs of a teacher change with parameters that it shares with a student.

    They do not if the teacher is the student with its adapters switched off.
    """
    session = facts.open_stage.sessions[teacher.name]
    values = [parameter.data for parameter in trained]
    with torch.no_grad():
        before = session(facts.batch)
        try:
            for parameter in trained:
                parameter.data = parameter.data + torch.randn_like(parameter)  # not in place: a graph may need it
            after = session(facts.batch)
        finally:
            for parameter, value in zip(trained, values, strict=True):
                parameter.data = value
    pairs = zip((before.output, *before.features), (after.output, *after.features), strict=True)
    return not all(torch.equal(first, second) for first, second in pairs)


def _compute_terms(facts: Facts) -> Iterator[str]:
    """Compute every term, and yield its problems."""
    trained: set[Tensor] = set()
    for term in facts.module.terms:
        try:
            # As if the teacher had an output for each sample: a Past has them later.
            inputs = term.gather_inputs(facts.batch, facts.outputs, fill=True)
            problem, projectors = _compute_term(facts, term, inputs)
        except RecipeError as error:
            yield f"term {term.label!r}: {error}"
            continue
        if problem is not None:
            yield f"term {term.label!r}: {problem}"
        if term.weighted.has_weight:
            trained.update(parameters_behind(as_tuple(inputs.student)))
            tap = term.weighted.term.student
            trained.update(tap.module.parameters() if isinstance(tap, HeadTap) else ())
        # The plan shows the shapes of the outputs, not those of rows of positions.
        whole = inputs if term.rows is None else term.whole_inputs(facts.batch, facts.outputs, fill=True)
        facts.checked_terms.append(CheckedTerm(term, inputs, whole))
        facts.terms.append(summarize(term, whole, facts.taps, projectors))
    outputs = [facts.outputs[net.name].output for net in facts.module.students]
    facts.untrained_outputs = all(parameters_behind([output]) - trained for output in outputs)


def _compute_term(facts: Facts, term: BoundTerm, inputs: TermInputs) -> tuple[str | None, Collection[ProjectorSummary]]:
    """Compute a term, add its notices, and return its problem, or None, and the projectors of its loss."""
    labels = facts.batch.labels
    can_relabel = facts.context.has_labels and not labels.is_floating_point()
    if can_relabel and compares_nothing(term, inputs):  # later samples have labels that it compares
        inputs = term.gather_inputs(_labelled_batch(facts, term), facts.outputs, fill=True)
    shared = [*nested_tensors([(output.output, output.features) for output in facts.outputs.values()]), labels]
    counts = [*map(modifications, shared)]
    outputs_shape = as_tuple(inputs.student)[0].shape if term.student.is_output else None
    watch = WatchLosses(checks_targets=term.target is not None, outputs=outputs_shape)
    with _watch_projectors(term.loss) as projectors, watch:
        check = TermCheck(facts, term, inputs)
        problem = check.problem()
    facts.computes_ctc |= watch.calls_ctc
    if problem is None and counts != [*map(modifications, shared)]:
        problem = (
            f"{describe_loss(term.loss)} changes its inputs in place, but other terms get the same tensors; compute "
            "new ones, such as by student = student / 4 instead of student /= 4"
        )
    if not is_of_kdkit(unwrapped(term.loss)):
        if problem is None:
            if watch.notice:
                facts.notices.append(f"term {term.label!r}: {describe_loss(term.loss)} {watch.notice}")
            facts.notices += _untrained_weights(facts, term, check)
        elif watch.notice:
            problem = f"{problem}; it {watch.notice}"
    return problem, projectors.values()


def _untrained_weights(facts: Facts, term: BoundTerm, check: TermCheck) -> Iterator[str]:
    """Yield a notice if a loss has weights that no optimizer gets, such as a function that calls a projector."""
    if not isinstance(check.value, Tensor):  # it was not called, because no sample has a label
        return
    of_teachers = chain.from_iterable(module.parameters() for module in facts.teacher_modules.values())
    of_loss = parameters_behind([check.value]) - parameters_behind(as_tuple(check.inputs.student))
    others = of_loss - {*facts.module.parameters(), *of_teachers}
    facts.untrained_weights[term.label] = others
    shapes = [tuple(weight.shape) for weight in others if isinstance(weight, nn.Parameter)]
    if shapes:
        yield (
            f"term {term.label!r}: {describe_loss(term.loss)} has weights that are not trained, such as one of "
            f"{max(shapes)}; make the loss an nn.Module that holds them, or freeze them with requires_grad_(False)"
        )


@contextmanager
def _watch_projectors(loss: object) -> Iterator[dict[nn.Module, ProjectorSummary]]:
    """Collect the projectors that a loss calls within the context."""
    summaries: dict[nn.Module, ProjectorSummary] = {}

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        result = as_tuple(output)[0] if isinstance(output, tuple | Tensor) else None
        if args and isinstance(args[0], Tensor) and isinstance(result, Tensor):
            summaries[module] = ProjectorSummary(
                module=type(module).__name__,
                input=tuple(args[0].shape),
                output=tuple(result.shape),
                parameters=sum(map(torch.numel, module.parameters())),
            )

    with forward_hook(_projectors(loss) if isinstance(loss, nn.Module) else (), note):
        yield summaries


def _projectors(loss: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost trained modules of a loss that map one tensor. A module with two inputs is itself a loss."""
    for module in loss.children():
        if not any(parameter.requires_grad for parameter in module.parameters()):
            continue
        parameters = parameters_by_name(module.forward).values()
        required = [
            parameter
            for parameter in parameters
            if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        if isinstance(module, nn.ModuleList | nn.ModuleDict) or len(required) > 1:
            yield from _projectors(module)
        else:
            yield module


def _labelled_batch(facts: Facts, term: BoundTerm) -> Batch:
    """Return the batch with labels of classes that a term compares."""
    shared = getattr(term.alignment, "labels", None)  # None if all are
    classes = range(len(facts.context.classes)) if shared is None else shared.tolist()
    compared = torch.tensor([index for index in classes if index not in facts.context.ignored_labels] or [0])
    labels = facts.batch.labels
    numbers = torch.arange(labels.numel()) % len(compared)
    return replace(facts.batch, labels=compared[numbers].view_as(labels).to(labels))
