"""Find the problems of one stage that are visible without running a network."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kdkit.engine.stage.terms import uses_labels
from kdkit.engine.storage.nested_state import flatten
from kdkit.errors import KdkitError, RecipeError, RunFolderError
from kdkit.losses.base import BuildContext, accepts_unknown, describe_loss, extra_kwargs_of, requirements_of
from kdkit.losses.chunked import Chunked
from kdkit.losses.positions import PerPosition, PerToken
from kdkit.nets.net import Net
from kdkit.nets.taps import HeadTap
from kdkit.recipe.objective import Match, Term, Truth, taps_of
from kdkit.recipe.optim import Scheduler
from kdkit.recipe.recipe import Stage, weighted_terms
from kdkit.teachers.base import OnlineTeacher
from kdkit.teachers.ema import Ema
from kdkit.teachers.ensemble import Teachers
from kdkit.teachers.past import Past
from kdkit.teachers.peer import Peer
from kdkit.utils.modules import is_read_only
from kdkit.utils.sealed import DTYPES

_ONE_HOT = "; if each sample has one class, in a row of 0 and 1, pass TorchData(..., task='multiclass')"
# The end of messages about losses and teachers that look up samples.
_NO_IDS = (
    "which a user-defined DataLoader does not have, nor a batch that batch_transform may have mixed; pass the Dataset "
    "and the collate_fn of the DataLoader to TorchData instead, without batch_transform; a Distiller gets samples=N, "
    "and ids= in each call"
)


def stage_problems(stage: Stage, context: BuildContext) -> list[str]:
    """Return the problems of one stage: its networks, its terms, and its optimizer."""
    problems = [
        *_untrainable_nets(stage),
        *_duplicate_labels(stage),
        *_term_problems(stage, context),
        *_outputs_left_out(stage),
    ]
    # Without trainable parameters the optimizer would raise too, with a less helpful message.
    return problems or [*_optimizer_problems(stage)]


def _untrainable_nets(stage: Stage) -> Iterator[str]:
    for net in stage.objectives:
        if not isinstance(net.module, nn.Module):
            yield f"net {net.name!r} is a plain callable: it can teach, but not be trained"
        elif net.device is not None:
            yield f"net {net.name!r} is trained on the device of the run; leave out its device={str(net.device)!r}"
        elif any(isinstance(part, GraphModule) and "train" in vars(part) for part in net.module.modules()):
            # torch.export replaces the `train` method of a program with one that raises.
            yield f"net {net.name!r} contains a program of torch.export; train the module that was exported"
        elif any(map(is_lazy, net.module.parameters())):
            yield (
                f"net {net.name!r} has lazy modules, whose weights have no shape yet; call its module once on a batch "
                "of inputs, in recipe() or before the run"
            )
        elif not any(parameter.requires_grad for parameter in net.module.parameters()):
            yield f"net {net.name!r} has nothing to train: none of its parameters requires a gradient"
        elif any(parameter.is_inference() for parameter in net.module.parameters()):
            yield (
                f"net {net.name!r} has weights that were created in torch.inference_mode, which cannot be trained; "
                "create the network outside of it"
            )


def _duplicate_labels(stage: Stage) -> Iterator[str]:
    for label, count in Counter((net, term.label) for net, term in _terms(stage)).items():
        if count > 1:
            yield f"{count} terms are called {label[1]!r}; distinguish them with label='...'"


def _term_problems(stage: Stage, context: BuildContext) -> Iterator[str]:
    for net, term in _terms(stage):
        for problem in (
            *_requirement_problems(term, context),
            *(_teacher_problems(net, term, stage, context) if isinstance(term, Match) else ()),
            *_tap_problems(net, term),
        ):
            yield f"term {term.label!r}: {problem}"


def _requirement_problems(term: Term, context: BuildContext) -> Iterator[str]:
    """Yield what the loss of a term needs and the data lacks, and the other way around."""
    requirements = requirements_of(term.loss)
    if "ids" in requirements and not context.ids:
        yield f"it needs sample ids, {_NO_IDS}"
    if "sample_weights" in requirements and not context.has_weights:
        yield (
            "it needs sample weights, but this data has none; let it yield triples (inputs, labels, weight); a "
            "Distiller gets them as the third element of its example, and sample_weights= in each call"
        )
    if context.has_weights and isinstance(term, Truth) and "sample_weights" not in extra_kwargs_of(term.loss):
        yield (
            f"the samples of this data have weights, but {type(term.loss).__name__} does not use them; wrap it: "
            "kdkit.losses.SampleWeighted(...)"
        )
    if "hard_labels" in requirements and context.task != "multiclass":
        yield (
            f"it needs one class per sample, but this data is {context.task}; use another loss, such as one "
            f"of the PerLabel... losses{_ONE_HOT if context.task == 'multilabel' else ''}"
        )
    if not context.has_labels and uses_labels(term):
        advice = "leave it out, or use kdkit.model_loss for a loss that the network computes from its inputs"
        if isinstance(term.loss, PerPosition | PerToken) and not extra_kwargs_of(term.loss.loss):
            advice = "PerPosition(loss, ignore_index=None) compares all positions"
        yield f"it learns from labels, but the training data has none; {advice}"
    if context.has_unknown and uses_labels(term) and not accepts_unknown(term.loss):
        advice = "wrap it: kdkit.losses.IgnoreUnknown(...)"
        if not isinstance(term, Truth):
            advice = "use a loss that takes no labels"
        elif not isinstance(term.loss, nn.Module) or getattr(term.loss, "reduction", None) not in ("mean", "sum"):
            advice = "leave out those that are NaN in it, and set its attribute accepts_unknown = True"
        name = getattr(term.loss, "__name__", None) or type(term.loss).__name__
        yield f"labels of this data may be unknown, but {name} does not leave them out; {advice}"


def _teacher_problems(net: Net[Any], match: Match, stage: Stage, context: BuildContext) -> Iterator[str]:
    teacher = match.teacher
    if teacher is net or teacher in stage.objectives:
        yield (
            f"net {teacher.name!r} is trained in this stage, so it cannot be matched as a frozen teacher; match "
            "its output in this step, Peer(net), its output in the last epoch, Past(net), or its average, Ema(net)"
        )
    members = teacher.members if isinstance(teacher, Teachers) else ()
    for member in members:
        if member in stage.objectives:
            yield (
                f"net {member.name!r} is trained in this stage, so it cannot be one of the frozen Teachers(...); "
                "match Peer(net) in a separate term"
            )
    if isinstance(teacher, OnlineTeacher) and teacher.net not in stage.objectives:
        yield (
            f"{teacher.name!r} needs a net that is trained in this stage, but {teacher.net.name!r} is not; match "
            "the net itself, or train it here too"
        )
    if isinstance(teacher, Past) and teacher.net is not net:
        yield f"only net {teacher.net.name!r} can match {teacher.name!r}; use Peer(net) or Ema(net) instead"
    if isinstance(teacher, Past) and not context.ids:
        yield f"{teacher.name!r} needs sample ids, {_NO_IDS}"


def _tap_problems(net: Net[Any], term: Term) -> Iterator[str]:
    teacher: Any = term.teacher
    targets = taps_of(term.target)
    if any(map(_is_head, targets)) and not isinstance(teacher, Net | Peer):
        yield (
            f"a HeadTap as target needs a Net or a Peer as teacher, but {teacher.name!r} is a "
            f"{type(teacher).__name__}; leave out target=... to match its outputs"
        )
    if isinstance(teacher, Past) and targets:
        yield f"{teacher.name!r} has no features, only outputs; leave out target=..."
    if isinstance(teacher, Teachers) and targets and len(targets) != len(teacher.members):
        yield (
            f"Teachers(...) of {len(teacher.members)} nets takes a tuple of {len(teacher.members)} taps as target, "
            f"one on each net; got {len(targets)}"
        )
    tapped = [(tap, net, "student") for tap in taps_of(term.student)]
    if isinstance(teacher, Teachers):
        tapped += [(tap, member, "target") for tap, member in zip(targets, teacher.members, strict=False)]
    elif isinstance(teacher, Net | Ema | Peer):
        tapped += [(tap, teacher if isinstance(teacher, Net) else teacher.net, "target") for tap in targets]
    for tap, owner, side in tapped:
        yield from _foreign_tap(tap.module, owner, side)
    if any(map(_is_head, (*taps_of(term.student), *targets))) and not isinstance(term.loss, Chunked):
        yield (
            f"with a HeadTap, the loss must compute the outputs of the head: wrap it, kdkit.losses.Chunked("
            f"{describe_loss(term.loss)}); for the hidden state before the head, use Tap(module, 'input')"
        )


def _foreign_tap(module: nn.Module, net: Net[Any], side: str) -> Iterator[str]:
    if not isinstance(net.module, nn.Module):
        yield f"net {net.name!r} is a plain callable, which cannot be tapped"
        return
    parts = [*net.module.modules()]
    if all(module is not part for part in parts):
        last = next(reversed([*module.children()]), None)
        # A slice of a Sequential is a new module with layers of the network.
        is_slice = last is not None and any(last is part for part in parts)
        advice = "tap one of its layers; if its network was created again, create its taps and terms again too"
        if is_slice:
            advice = "a slice, such as module[:2], is a new module: tap the last layer in it, module[1]"
        yield f"the {side} tap is on a {type(module).__name__} that is not a part of net {net.name!r}; {advice}"


def _outputs_left_out(stage: Stage) -> Iterator[str]:
    """Yield terms that take the outputs of a net whose head a HeadTap leaves out."""
    left_out: set[Any] = {net for net, term in _terms(stage) if isinstance(term.student, HeadTap)}
    left_out |= {getattr(match.teacher, "net", match.teacher) for match in stage.matches if _is_head(match.target)}
    for net, term in _terms(stage):
        taken: set[Any] = {net} if term.student is None else set()
        if isinstance(term, Match) and (term.target is None or "teacher_outputs" in extra_kwargs_of(term.loss)):
            teacher = term.teacher
            taken |= {*teacher.members} if isinstance(teacher, Teachers) else {teacher}
            taken |= {teacher.net} if isinstance(teacher, Peer | Past) else set()
        for owner in taken & left_out:
            yield (
                f"term {term.label!r} takes the outputs of net {owner.name!r}, which are not computed because "
                "another term has a HeadTap on it; use Chunked(loss) with a HeadTap here too, or "
                "Tap(module, 'input') and Chunked(loss, heads=...) there"
            )


def _optimizer_problems(stage: Stage) -> Iterator[str]:
    """Create the optimizer and its schedule, so that wrong options of a later stage are found before the run."""
    try:
        _optimizer_and_schedule(stage)
    except KdkitError as error:
        yield str(error)


def _optimizer_and_schedule(stage: Stage) -> tuple[Optimizer, Scheduler | None]:
    """Return the optimizer of the networks of a stage, and its schedule."""
    training = stage.training
    optimizer = training.optimizer.build(
        (f"{net.name}.{path}", parameter)
        for net in stage.objectives
        for path, parameter in net.network.named_parameters()
        if parameter.requires_grad
    )
    if training.lr_schedule is None:
        return optimizer, None
    return optimizer, training.lr_schedule.build(optimizer, epochs=training.epochs, updates=training.epochs)


def _terms(stage: Stage) -> list[tuple[Net[Any], Term]]:
    """Return each term with the network that it trains."""
    return [(net, weighted.term) for net, weighted in weighted_terms(stage)]


def _is_head(tap: object) -> bool:
    return isinstance(tap, HeadTap)


def storage_problems(stage: Stage) -> Iterator[str]:
    """Yield the tensors of trained networks that a run cannot store. In a user-defined loop, they are no problem."""
    for net in stage.objectives:
        state = net.network.state_dict()
        for key, value in state.items():
            if not isinstance(value, Tensor):
                yield (
                    f"net {net.name!r} has {key!r}, a {type(value).__name__}, in its state_dict(), but a run folder "
                    "stores tensors only; remove get_extra_state, or return a tensor from it"
                )
            elif is_read_only(value):
                kind = "a tensor of inference mode" if value.is_inference() else "an expanded tensor"
                yield (
                    f"net {net.name!r} has {key!r}, {kind}, into which torch cannot load the weights of a run; "
                    "register a copy of it, tensor.clone()"
                )
            elif value.dtype not in DTYPES:
                advice = ""
                if value.dtype == torch.complex128:
                    advice = "; use complex64, or float64 of shape (..., 2) and torch.view_as_complex in the forward"
                yield (
                    f"net {net.name!r} has {key!r} of {value.dtype}, which the files of a run, in the format of "
                    f"safetensors, cannot hold{advice}"
                )
                break
        wrappers = [key for key, value in state.items() if is_traceable_wrapper_subclass(value)]
        if wrappers:  # such as the weights of torchao
            key, kind = wrappers[0], type(state[wrappers[0]]).__name__
            more = f", and {len(wrappers) - 1} more" if len(wrappers) > 1 else ""
            advice = "quantize the network after it is trained, or use it as a teacher"
            if kind == "DTensor":  # of fully_shard, and only with several processes
                advice = "pass the module without fully_shard, because a run divides batches, but no weights; or "
                advice += "train it in your own loop with kdkit.Distiller"
            yield f"net {net.name!r} has {key!r}, a {kind}{more}, which a run folder cannot store; {advice}"


def require_storable(stages: Iterable[Stage]) -> None:
    """Raise RecipeError if a checkpoint cannot hold the state of an optimizer or of its learning rate schedule."""
    for stage in stages:
        optimizer, scheduler = _optimizer_and_schedule(stage)
        states: dict[str, Any] = {"optimizer": optimizer.state_dict()}
        if scheduler is not None:
            if not hasattr(scheduler, "state_dict"):
                raise RecipeError(
                    f"stage {stage.name!r}: the learning rate schedule, a {type(scheduler).__name__}, needs the "
                    "methods state_dict() and load_state_dict(state) for the checkpoints of a run folder; or run "
                    "without a folder"
                )
            states["lr_scheduler"] = scheduler.state_dict()
        try:
            flatten(states)
        except RunFolderError as error:
            raise RecipeError(f"stage {stage.name!r}: {error}, or run without a folder") from error


def require_compilable(stages: Iterable[Stage]) -> None:
    """Raise RecipeError if the balancing of a stage needs a gradient per term, which a compiled module lacks."""
    for stage in stages:
        balancing = stage.training.balancing
        if balancing.needs_separate_gradients:
            raise RecipeError(
                f"stage {stage.name!r}: {type(balancing).__name__} needs the gradient of each term, but a compiled "
                "module has one backward pass for all terms; run without compile, or balance by WeightedSum or "
                "UncertaintyWeighting"
            )
