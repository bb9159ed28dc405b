"""Everything that a stage updates and checkpoints."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch
from kdkit.engine.gradient_stats import GradientFigures, Gradients
from kdkit.engine.module import DistillationModule
from kdkit.errors import RecipeError
from kdkit.recipe.balancing import Balancer, TrainedParameters
from kdkit.recipe.training import Training
from kdkit.teachers import TeacherSession
from kdkit.utils.collectives import sync_buffers


class TrainState:
    """The optimizer and what goes with it: learning rate, gradient scaler, averages, balancer, and the clock.

    averages are made before taps are opened, since a copy of a module would carry its hooks.
    """

    def __init__(
        self,
        training: Training,
        lesson: DistillationModule,
        sessions: Mapping[str, TeacherSession],
        averages: Mapping[str, Any],
        *,
        batches: int,
        scaler: bool,
    ) -> None:
        self.training = training
        self.lesson = lesson
        self.sessions = sessions
        self._observers = [each for each in sessions.values() if type(each).observe is not TeacherSession.observe]
        lesson.observed = bool(self._observers)
        self.averages = averages
        self.updates = 0
        self.updates_per_epoch = math.ceil(batches / training.accumulate_steps)
        self.total = training.epochs * self.updates_per_epoch
        self.balancer = balancer_of(training, lesson)
        named = [*_trained(lesson), *learned_by(self.balancer)]
        self.parameters = [parameter for _, parameter in named]
        self.optimizer = training.optimizer.build(named)
        rate = training.lr_schedule
        self.rate = None if rate is None else rate.build(self.optimizer, epochs=training.epochs, updates=self.total)
        self._lr_interval = rate.interval if rate is not None else "epoch"
        self.figures: GradientFigures | None = None
        self.scaler = torch.amp.GradScaler(lesson.progress.device.type) if scaler else None
        self._constant = all(not callable(f) for line in lesson.lines for f in line.weighted.factors)
        self._weights = lesson.weights(0.0)
        self._asks_progress = any("progress" in line.asks for line in lesson.lines)

    @property
    def progress(self) -> float:
        """How far the stage is, in optimizer updates: 0 before the first, 1 after the last."""
        return self.updates / self.total

    def weights(self) -> Mapping[str, float]:
        """Return the weights of the terms as of now."""
        if not self._constant:
            self._weights = self.lesson.weights(self.progress)
        return self._weights

    def backward(self, terms: Mapping[str, Tensor], micro_batches: int, weight: float = 1.0) -> None:
        """Add the gradients of this micro-batch, one of so many to the coming update.

        weight: what its terms count for in the mean over processes, of which one may have a larger part of a batch.
        """
        scaler = self.scaler
        if weight != 1.0:
            terms = {label: term * weight for label, term in terms.items()}

        def scale(total: Tensor) -> Tensor:
            shared = total if micro_batches == 1 else total / micro_batches
            return shared if scaler is None else scaler.scale(shared)

        if self.figures is not None and self.figures.due(self.updates):
            self.figures.add(terms, self.weights(), scale)
        self.balancer(terms, self.weights(), scale)

    def step(self) -> None:
        """Update the weights from the gathered gradients."""
        sync_buffers(self.lesson.nets)
        if self.figures is not None:
            self.figures.close()
        on_step = True
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.training.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.training.max_grad_norm)
        if self.scaler is not None:
            before = self.scaler.get_scale()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            on_step = self.scaler.get_scale() >= before  # gradients overflowed: the update was left out
        else:
            self.optimizer.step()
        for parameter in self.parameters:  # as the optimizer's own zero_grad does, at a tenth of its price
            parameter.grad = None
        self.updates += 1
        if self._asks_progress:
            self.lesson.progress.fill_(self.progress)
        if on_step and self.rate is not None and self._lr_interval == "update":
            self.rate.step()
        for net in self.lesson.students if self.averages else ():
            self.averages[net.name].update_parameters(net.network)
        for each in self.sessions.values():
            each.on_step()

    def observe(self, batch: Batch) -> None:
        """Tell those who are matched what the nets said of this batch."""
        for each in self._observers:
            each.observe(batch, self.lesson.said)

    def look_at_gradients(self, every: int) -> None:
        """Record figures of gradients at every so many updates from now on; never where 0."""
        trained = trained_by(self.lesson)
        self.figures = GradientFigures(every, trained.labels, trained.students) if every else None

    def gradients(self) -> Gradients | None:
        """Return the means of these figures since the last time, None where there are none."""
        return None if self.figures is None else self.figures.take()

    def on_epoch_end(self) -> None:
        """Advance what goes by epochs."""
        for each in self.sessions.values():
            each.on_epoch_end()
        if self.rate is not None and self._lr_interval == "epoch":
            self.rate.step()

    def module(self, name: str) -> nn.Module:
        """Return what a net is judged and kept by: the average of its weights where there is one."""
        ema = self.averages.get(name)
        net = next(net for net in self.lesson.students if net.name == name)
        module: nn.Module = net.network if ema is None else ema.module
        return module

    @property
    def lr(self) -> float:
        """The learning rate of the first group of parameters, as of now."""
        return float(self.optimizer.param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes."""
        return {
            "lesson": self.lesson.state_dict(),
            "respondents": {name: each.state_dict() for name, each in self.sessions.items()},
            "optimizer": self.optimizer.state_dict(),
            "rate": None if self.rate is None else self.rate.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "averages": {name: ema.state_dict() for name, ema in self.averages.items()},
            "balancer": self.balancer.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.lesson.load_state_dict(state["lesson"])
        for name, each in self.sessions.items():
            each.load_state_dict(state["respondents"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.rate is not None:
            self.rate.load_state_dict(state["rate"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        for name, ema in self.averages.items():
            ema.load_state_dict(state["averages"][name])
        self.balancer.load_state_dict(state["balancer"])
        self.updates = state["updates"]
        self.lesson.progress.fill_(self.progress)


def _trained(lesson: DistillationModule) -> Iterator[tuple[str, nn.Parameter]]:
    """Give what is trained, under the names of its nets and not of their places in the lesson."""
    for path, parameter in lesson.named_parameters():
        part, index, *rest = path.split(".")
        if parameter.requires_grad:
            yield ".".join([lesson.students[int(index)].name, *rest]) if part == "nets" else path, parameter


def balancer_of(training: Training, lesson: DistillationModule) -> Balancer:
    """Return the balancer of a stage. Raises RecipeError where it does not fit, or is none."""
    made = training.balancing.build(trained_by(lesson))
    if not isinstance(made, Balancer):
        raise RecipeError(
            f"build of {training.balancing!r} returns a Balancer, which is called with terms, weights and a scale, and "
            f"has state_dict, load_state_dict and averages_across_ranks; it returned {made!r}"
        )
    return made


def trained_by(lesson: DistillationModule) -> TrainedParameters:
    """Return what a lesson trains, each parameter in one place."""
    seen: set[int] = set()
    return TrainedParameters(
        labels=tuple(line.label for line in lesson.lines),
        nets=tuple(_new(net.network.parameters(), seen) for net in lesson.students),
        losses=_new(lesson.losses.parameters(), seen),
    )


def learned_by(balancer: Balancer) -> Iterator[tuple[str, nn.Parameter]]:
    """Give what a balancer with weights of its own has trained by the stage's optimizer, by name."""
    if isinstance(balancer, nn.Module):
        yield from ((f"balance.{name}", each) for name, each in balancer.named_parameters() if each.requires_grad)


def _new(parameters: Iterable[nn.Parameter], seen: set[int]) -> tuple[nn.Parameter, ...]:
    fresh = [each for each in parameters if each.requires_grad and id(each) not in seen]
    seen.update(id(each) for each in fresh)
    return tuple(fresh)
