"""Problems of a recipe that are visible without running a network."""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from kdkit.data.dataset import Data
from kdkit.errors import KdkitError, RecipeError, did_you_mean
from kdkit.losses import BuildContext, requirements_of
from kdkit.metrics import Predictions
from kdkit.nets.net import Net
from kdkit.recipe.objective import Match, Term, as_objective, taps_of
from kdkit.recipe.recipe import Recipe, Stage, nets_of
from kdkit.teachers import Ema, Past, Peer, Teachers


def require_uncompiled(stages: Iterable[Stage]) -> None:
    """Raise RecipeError for a balance that a compiled lesson cannot serve: it has one backward pass for all terms."""
    for stage in stages:
        if getattr(stage.training.balancing, "each_gradient", False):
            raise RecipeError(
                f"stage {stage.name!r}: {type(stage.training.balancing).__name__} differentiates each term apart, which "
                "a compiled lesson does not allow; run without compile, or balance by WeightedSum or "
                "UncertaintyWeighting"
            )


def _same_classes(data: Data) -> Iterator[str]:
    for name, count in Counter(data.classes).items():
        if count > 1:
            yield f"{count} classes of the data are called {name!r}, of which a table could show one only"


def _across_stages(recipe: Recipe, stages: Sequence[Stage]) -> Iterator[str]:
    if not stages:
        yield f"{type(recipe.schedule).__name__} gives no stages: there is nothing to train"
    yield from _same_names(stages)
    for name, count in Counter(stage.name for stage in stages).items():
        if count > 1:
            yield f"{count} stages are called {name!r}; give each a name of its own: Stage(..., name=...)"
    trained: set[Net[Any]] = {net for net in nets_of(stages) if net.trained}
    metrics = [score.name for score in recipe.metrics]
    for stage in stages:
        for teacher in stage.teachers:
            if isinstance(teacher, Net) and teacher not in trained and teacher not in stage.objectives:
                yield (
                    f"stage {stage.name!r}: net {teacher.name!r} teaches but is neither trained in an earlier stage nor "
                    "given weights; pass Net(..., weights=FILE), or trained=True if its module is as it should be"
                )
        trained |= set(stage.objectives)
        if stage.training.monitor is not None and stage.training.monitor not in metrics:
            yield (
                f"stage {stage.name!r}: {stage.training.monitor!r} is not among the recipe's scores; "
                f"{did_you_mean(stage.training.monitor, metrics)}"
            )
    yield from _used_twice(stages)


def _same_names(stages: Sequence[Stage]) -> Iterator[str]:
    """Nets have names in files, so of a whole recipe; other sources have theirs in a stage."""
    for name, count in Counter(net.name for net in nets_of(stages)).items():
        if count > 1:
            yield f"{count} nets are called {name!r}; give each a name of its own"
    for stage in stages:
        matched = {*nets_of([stage]), *(match.teacher for match in stage.matches)}
        for name, count in Counter(each.name for each in matched).items():
            if count > 1 and any(each.name == name and not isinstance(each, Net) for each in matched):
                yield (
                    f"stage {stage.name!r}: {count} things that are matched are called {name!r}, such as one of other "
                    "options; match the same one in each term, or name them apart"
                )


def _scores(recipe: Recipe) -> Iterator[str]:
    """Score made-up answers, so that a score that does not fit the data is refused before hours of training."""
    classes = tuple(recipe.data.classes)
    random = np.random.default_rng(0)
    outputs = random.standard_normal((2 * len(classes) + 2, len(classes)))
    right = np.arange(len(outputs)) % len(classes)
    labels: NDArray[Any] = right if recipe.data.task == "multiclass" else np.eye(len(classes))[right]
    said = Predictions(labels=labels, outputs=outputs, classes=classes)
    for score in recipe.metrics:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # made-up answers may be odd ones
                score.fit(said).compute(said)
        except KdkitError as error:
            yield f"score {score.name!r}: {error}"
        except Exception as error:  # a stranger's score may raise anything
            yield f"score {score.name!r} cannot score this data ({recipe.data.task}): {type(error).__name__}: {error}"


def _answers(recipe: Recipe) -> Iterator[str]:
    if recipe.teacher_cache.top is not None and recipe.data.task != "multiclass":
        yield (
            f"answers are cut to their {recipe.teacher_cache.top} largest outputs where labels are one class per sample, and "
            f"this data is {recipe.data.task}; leave out Answers(top=...)"
        )


def _used_twice(stages: Sequence[Stage]) -> Iterator[str]:
    losses = [
        each.term for stage in stages for objective in stage.objectives.values() for each in as_objective(objective)
    ]
    seen: dict[int, str] = {}
    for term in losses:
        loss = term.loss
        if isinstance(loss, nn.Module) and (hasattr(loss, "build") or any(True for _ in loss.parameters())):
            if id(loss) in seen:
                yield (
                    f"terms {seen[id(loss)]!r} and {term.label!r} share one {type(loss).__name__}, which has weights; "
                    "give each its own"
                )
            seen[id(loss)] = term.label


def _before_rehearsal(stage: Stage, facts: BuildContext) -> Iterator[str]:
    for net, objective in stage.objectives.items():
        if not isinstance(net.module, nn.Module):
            yield f"net {net.name!r} is a plain callable: it can teach, but not be trained"
        elif not any(parameter.requires_grad for parameter in net.module.parameters()):
            yield f"net {net.name!r} has nothing to train: none of its parameters requires a gradient"
        else:
            yield from (
                f"net {net.name!r} keeps {key!r}, a {type(value).__name__}, in its state_dict(), of which a run folder "
                "holds tensors alone; leave out get_extra_state, or return a tensor"
                for key, value in net.module.state_dict().items()
                if not isinstance(value, Tensor)
            )
        labels = Counter(each.term.label for each in as_objective(objective))
        for label, count in labels.items():
            if count > 1:
                yield f"{count} terms are called {label!r}; tell them apart with label='...'"
        for each in as_objective(objective):
            found = term_problems(net, each.term, stage, facts)
            yield from (f"term {each.term.label!r}: {problem}" for problem in found)


def _training(stage: Stage) -> Iterator[str]:
    """Make the optimizer and its schedule once, so that the last stage's options are refused before the first runs."""
    training = stage.training
    named = [
        (f"{net.name}.{path}", each)
        for net in stage.objectives
        for path, each in net.network.named_parameters()
        if each.requires_grad
    ]
    try:
        optimizer = training.optimizer.build(named)
        if training.lr_schedule is not None:
            training.lr_schedule.build(optimizer, epochs=training.epochs, updates=training.epochs)
    except KdkitError as error:
        yield str(error)


def term_problems(net: Net[Any], term: Term, stage: Stage, facts: BuildContext) -> Iterator[str]:
    """Say what is wrong with a term of a net's goal in this stage, for all that can be seen without running it."""
    yield from _needs(term.loss, facts)
    if isinstance(term, Match):
        yield from _match(net, term, stage, facts)


def _match(net: Net[Any], match: Match, stage: Stage, facts: BuildContext) -> Iterator[str]:
    teacher = match.teacher
    if teacher is net or teacher in stage.objectives:
        yield (
            f"net {teacher.name!r} is in training in this stage, so it cannot be matched as a frozen teacher; match "
            f"what it says at this step, Peer(net), what it said in its last epoch, Past(net), or its average, Ema(net)"
        )
    for member in teacher.members if isinstance(teacher, Teachers) else ():
        if member in stage.objectives:
            yield (
                f"net {member.name!r} is in training in this stage, so it has no place in a Panel of frozen teachers; "
                "match Peer(net) in a term of its own"
            )
    if isinstance(teacher, Past | Ema | Peer) and teacher.net not in stage.objectives:
        yield (
            f"{teacher.name!r} is of a net that is not trained in this stage; match the net itself, or train it here too"
        )
    if isinstance(teacher, Past) and teacher.net is not net:
        yield f"{teacher.name!r} can be matched by net {teacher.net.name!r} alone; match Peer(net) or Ema(net) instead"
    if isinstance(teacher, Past) and not facts.ids:
        yield f"{teacher.name!r} needs sample ids, and a DataLoader of your own has none; pass its Dataset instead"
    yield from _target_taps(match)
    for tap in taps_of(match.student):
        yield from _belongs(tap.module, net, "student")


def _target_taps(match: Match) -> Iterator[str]:
    taps, teacher = taps_of(match.target), match.teacher
    if isinstance(teacher, Past) and taps:
        yield f"{teacher.name!r} remembers outputs only; match it without target=..."
    elif isinstance(teacher, Net):
        for tap in taps:
            yield from _belongs(tap.module, teacher, "target")
    elif isinstance(teacher, Ema | Peer):
        for tap in taps:
            yield from _belongs(tap.module, teacher.net, "target")
    elif isinstance(teacher, Teachers) and taps:
        if len(taps) != len(teacher.members):
            yield f"a Panel of {len(teacher.members)} nets takes as many taps as target, one of each; got {len(taps)}"
        for tap, member in zip(taps, teacher.members, strict=False):
            yield from _belongs(tap.module, member, "target")


def _belongs(module: nn.Module, net: Net[Any], side: str) -> Iterator[str]:
    if not isinstance(net.module, nn.Module):
        yield f"net {net.name!r} is a plain callable, which cannot be tapped"
    elif all(module is not each for each in net.module.modules()):
        yield f"the {side} tap sits on a {type(module).__name__} that is not a part of net {net.name!r}"


def _needs(loss: Any, facts: BuildContext) -> Iterator[str]:
    needs = requirements_of(loss)
    if "ids" in needs and not facts.ids:
        yield "it needs sample ids, and a DataLoader of your own has none; pass its Dataset instead"
    if "hard_labels" in needs and facts.task != "multiclass":
        yield f"it needs one class per sample, and this data is {facts.task}; take one that does not, as PerLabel... do"
