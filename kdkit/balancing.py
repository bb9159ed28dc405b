"""Make the balancer of a stage, and try it once before the first step."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.balance import Balancer, Trained, WeightedSum
from kdkit.data import Batch
from kdkit.errors import KdkitError, RecipeError
from kdkit.lesson import Lesson
from kdkit.modes import buffers_kept
from kdkit.recipe import Stage
from kdkit.runoptions import Precision, autocast
from kdkit.sources import Respondent, ask
from kdkit.training import Training


def balancer_of(training: Training, lesson: Lesson) -> Balancer:
    """Return the balancer of a stage. Raises RecipeError where it does not fit, or is none."""
    made = training.balance.build(trained_by(lesson))
    if not isinstance(made, Balancer):
        raise RecipeError(
            f"build of {training.balance!r} returns a Balancer, which is called with terms, weights and a scale, and "
            f"has state_dict and load_state_dict; it returned {made!r}"
        )
    return made


def trained_by(lesson: Lesson) -> Trained:
    """Return what a lesson trains, each parameter in one place."""
    seen: set[int] = set()
    return Trained(
        labels=tuple(line.label for line in lesson.lines),
        nets=tuple(_new(net.network.parameters(), seen) for net in lesson.learners),
        losses=_new(lesson.losses.parameters(), seen),
    )


def learned_by(balancer: Balancer) -> Iterator[tuple[str, nn.Parameter]]:
    """Give what a balancer with weights of its own has trained by the stage's optimizer, by name."""
    if isinstance(balancer, nn.Module):
        yield from ((f"balance.{name}", each) for name, each in balancer.named_parameters() if each.requires_grad)


def tried(
    training: Training,
    lesson: Lesson,
    respondents: Mapping[str, Respondent],
    batch: Batch,
    precision: Precision = "fp32",
) -> Iterator[str]:
    """Balance one step of a tiny batch, every weight 1, and say what is wrong; the stage is left as it was.

    The optimizer is made too where it has to train a part of the balancer, which its groups may have left out.
    """
    if type(training.balance) is WeightedSum:
        return
    try:
        with _unchanged(lesson):
            with autocast(precision, batch.labels.device):
                terms = lesson(batch, ask(respondents, batch))
            balancer = balancer_of(training, lesson)
            balancer(terms, dict.fromkeys(terms, 1.0), _as_it_is)
            learned = [*learned_by(balancer)]
            if learned:
                training.optimizer.build([*_named(lesson), *learned])
    except KdkitError as error:
        yield str(error)
    except Exception as error:  # a stranger's balancer may raise anything
        yield f"{training.balance!r} cannot balance this stage: {type(error).__name__}: {error}"


def require_uncompiled(stages: Iterable[Stage]) -> None:
    """Raise RecipeError for a balance that a compiled lesson cannot serve: it has one backward pass for all terms."""
    for stage in stages:
        if getattr(stage.training.balance, "each_gradient", False):
            raise RecipeError(
                f"stage {stage.name!r}: {type(stage.training.balance).__name__} differentiates each term apart, which "
                "a compiled lesson does not allow; run without compile, or balance by WeightedSum or "
                "UncertaintyWeighting"
            )


def _new(parameters: Iterable[nn.Parameter], seen: set[int]) -> tuple[nn.Parameter, ...]:
    fresh = [each for each in parameters if each.requires_grad and id(each) not in seen]
    seen.update(id(each) for each in fresh)
    return tuple(fresh)


def _named(lesson: Lesson) -> Iterator[tuple[str, nn.Parameter]]:
    for net in lesson.learners:
        for name, parameter in net.network.named_parameters():
            if parameter.requires_grad:
                yield f"{net.name}.{name}", parameter


def _as_it_is(total: Tensor) -> Tensor:
    return total


@contextmanager
def _unchanged(lesson: Lesson) -> Iterator[None]:
    """Train for a step, and leave modes, buffers, gradients and random states as they were."""
    modes = {module: module.training for module in lesson.modules()}
    gradients: list[tuple[Any, Tensor | None]] = [(each, each.grad) for each in lesson.parameters()]
    devices = [lesson.progress.device] if lesson.progress.is_cuda else []
    with torch.random.fork_rng(devices=devices), buffers_kept([lesson]):
        lesson.train()
        for parameter, _ in gradients:
            parameter.grad = None
        try:
            yield
        finally:
            lesson.listening.clear()
            for parameter, gradient in gradients:
                parameter.grad = gradient
            for module, training in modes.items():
                module.training = training
