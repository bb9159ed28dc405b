"""The state that a stage updates and checkpoints: optimizer, LR schedule, scaler, EMA, balancer, teacher sessions."""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch
from kdkit.engine.options import RunOptions
from kdkit.engine.stage.gradient_stats import Gradients, GradientStats
from kdkit.engine.stage.module import DistillationModule
from kdkit.engine.stage.open_stage import OpenStage
from kdkit.errors import RecipeError
from kdkit.nets.moving_average import MovingAverage
from kdkit.nets.net import Net
from kdkit.recipe.balancing.base import Balancer, Scale, TrainedParameters, unscaled
from kdkit.recipe.optim import Scheduler
from kdkit.recipe.training import Training
from kdkit.teachers.base import observers
from kdkit.utils.modules import load_state_dict


class TrainState:
    """The state of a stage in training. `state_dict` returns everything that changes.

    Create it after the dry run of the stage, because the optimizer takes the parameters of the losses that it builds.

    averages: the EMA of each network by name, if the stage has any. They must be created before taps are opened,
    because a copy of a module has its hooks.
    batches: per epoch. higher_is_better: for the monitored metric, which a learning rate schedule may follow.
    updates: the number of optimizer steps so far.
    """

    def __init__(
        self,
        open_stage: OpenStage,
        options: RunOptions,
        averages: Mapping[str, MovingAverage],
        *,
        batches: int,
        higher_is_better: bool,
    ) -> None:
        self.training = training = open_stage.stage.training
        self.module = module = open_stage.module
        self.sessions = open_stage.sessions
        self.averages = averages
        self._observers = observers(self.sessions.values())
        module.track_outputs = bool(self._observers)
        self.updates = 0
        self.total_updates = training.epochs * math.ceil(batches / training.accumulate_steps)
        self.balancer = build_balancer(training, module)
        named = optimized_parameters(module, self.balancer)
        self.parameters = [parameter for _, parameter in named]
        self.optimizer = training.optimizer.build(named)
        self.lr_scheduler: Scheduler | None = None
        self._lr_interval: str | None = None  # when the LR scheduler steps: after an update, an epoch or a validation
        if training.lr_schedule is not None:
            schedule = training.lr_schedule.for_metric(higher_is_better=higher_is_better)
            self.lr_scheduler = schedule.build(self.optimizer, epochs=training.epochs, updates=self.total_updates)
            self._lr_interval = "validation" if schedule.follows_metric else schedule.interval
        self.gradient_stats: GradientStats | None = None
        if options.gradients:
            trained = _trained_parameters(module)
            self.gradient_stats = GradientStats(options.gradients, trained.labels, trained.students)
        self.scaler = torch.amp.GradScaler(module.progress.device.type) if open_stage.precision == "fp16" else None
        self.constant_weights = all(term.weighted.is_constant for term in module.terms)
        self._weights = module.weights(0.0)
        self._uses_progress = any("progress" in term.extra_kwargs for term in module.terms)

    @property
    def progress(self) -> float:
        """The fraction of optimizer updates that are done: 0 before the first, 1 after the last."""
        return self.updates / self.total_updates

    @property
    def lr(self) -> float:
        """The current learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def weights(self) -> Mapping[str, float]:
        """Return the current weight of each term."""
        if not self.constant_weights:
            self._weights = self.module.weights(self.progress)
        return self._weights

    def backward(
        self,
        losses: Mapping[str, Tensor],
        divisor: float,
        rank_weight: float = 1.0,
        weights: Mapping[str, Any] | None = None,
    ) -> None:
        """Add the gradients of a micro-batch to those of the current update.

        divisor: the losses are divided by it, so that they are averaged over the micro-batches of the update.
        rank_weight: the weight of the losses in the mean over ranks, whose parts of a batch may differ in size.
        weights: the weight of each term as a number or a scalar tensor; None for the current weights.
        """
        weights = self.weights() if weights is None else weights
        if rank_weight != 1.0:
            losses = {label: loss * rank_weight for label, loss in losses.items()}
        scale: Scale = unscaled if divisor == 1 and self.scaler is None else partial(self._scaled, divisor)
        if self.gradient_stats is not None and self.gradient_stats.due(self.updates):
            self.gradient_stats.add(losses, weights, scale)
        self.balancer(losses, weights, scale)

    def optimizer_step(self) -> None:
        """Update the weights from the accumulated gradients, and everything that depends on the updates."""
        self.advance(updated=self.update_weights())

    def update_weights(self) -> bool:
        """Update the weights from the accumulated gradients. Returns False if the scaler skipped the update."""
        if self.gradient_stats is not None:
            self.gradient_stats.close()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.training.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.training.max_grad_norm)
        updated = self._step_optimizer()
        # The same as optimizer.zero_grad(), which takes ten times as long for small networks.
        for parameter in self.parameters:
            parameter.grad = None
        return updated

    def advance(self, *, updated: bool) -> None:
        """Advance everything that follows an update of the weights: progress, schedule, averages and teachers."""
        self.updates += 1
        if self._uses_progress:
            self.module.progress.fill_(self.progress)
        if updated:
            self._step_schedule("update")
        if self.averages:
            for net in self.module.students:
                self.averages[net.name].update(net.network)
        for session in self.sessions.values():
            session.on_step()

    def observe(self, batch: Batch) -> None:
        """Pass the student outputs of this batch to the teachers that use them."""
        for session in self._observers:
            session.observe(batch, self.module.student_outputs)

    def on_epoch_end(self) -> None:
        """Advance the teachers, and an LR schedule that steps once per epoch."""
        for session in self.sessions.values():
            session.on_epoch_end()
        self._step_schedule("epoch")

    def on_validated(self, value: float) -> None:
        """Advance an LR schedule that follows the monitored metric."""
        self._step_schedule("validation", value)

    def gradients(self) -> Gradients | None:
        """Return the means of the gradient statistics since the last call, or None if there are none."""
        return None if self.gradient_stats is None else self.gradient_stats.take()

    def validated_module(self, net: Net[Any]) -> nn.Module:
        """Return the module of a network to validate and checkpoint: its EMA if it has one."""
        average = self.averages.get(net.name)
        return net.network if average is None else average.module

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes."""
        return {
            "module": self.module.state_dict(),
            "sessions": {name: session.state_dict() for name, session in self.sessions.items()},
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": None if self.lr_scheduler is None else self.lr_scheduler.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "averages": {name: average.state_dict() for name, average in self.averages.items()},
            "balancer": self.balancer.state_dict(),
            "updates": self.updates,
            "gradient_stats": None if self.gradient_stats is None else self.gradient_stats.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state. Raises ValueError if it is that of another optimizer or schedule."""
        load_state_dict(self.module, state["module"])
        for name, session in self.sessions.items():
            session.load_state_dict(state["sessions"][name])
        options = {option for group in self.optimizer.param_groups for option in group}
        self.optimizer.load_state_dict(state["optimizer"])
        missing = options.difference(*self.optimizer.param_groups)
        if missing:  # a run was forced to resume with another optimizer or schedule
            raise ValueError(f"its optimizer has no {min(missing)!r}, so the optimizer or its schedule is another one")
        if self.lr_scheduler is not None:
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        for name, average in self.averages.items():
            average.load_state_dict(state["averages"][name])
        self.balancer.load_state_dict(state["balancer"])
        self.updates = state["updates"]
        # A resumed run may start or stop recording gradients.
        if self.gradient_stats is not None and state["gradient_stats"] is not None:
            self.gradient_stats.load_state_dict(state["gradient_stats"])
        self.module.progress.fill_(self.progress)

    def _scaled(self, divisor: float, loss: Tensor) -> Tensor:
        mean = loss if divisor == 1 else loss / divisor
        return mean if self.scaler is None else self.scaler.scale(mean)

    def _step_optimizer(self) -> bool:
        """Call the optimizer, by the scaler if there is one. Returns False if the scaler skipped the call."""
        if self.scaler is None:
            self.optimizer.step()
            return True
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= before  # the scale is reduced if a gradient was not finite

    def _step_schedule(self, interval: str, *metric: float) -> None:
        """Advance the LR schedule if it has this interval. metric: the monitored one, after a validation."""
        if self.lr_scheduler is not None and self._lr_interval == interval:
            self.lr_scheduler.step(*metric)


def build_balancer(training: Training, module: DistillationModule) -> Balancer:
    """Return the balancer of a stage. Raises RecipeError if it does not fit the stage, or is not a Balancer."""
    balancer = training.balancing.build(_trained_parameters(module))
    if not isinstance(balancer, Balancer):
        raise RecipeError(
            f"build of {training.balancing!r} must return a Balancer, which is called with losses, weights and a "
            "scale, and has state_dict, load_state_dict, averages_across_ranks and capturable; it returned "
            f"{balancer!r}"
        )
    return balancer


def _trained_parameters(module: DistillationModule) -> TrainedParameters:
    """Return the trainable parameters of a stage. A shared parameter belongs to the first network that has it."""
    seen: set[int] = set()
    return TrainedParameters(
        labels=tuple(term.label for term in module.terms),
        nets=tuple(_unseen(net.network.parameters(), seen) for net in module.students),
        losses=_unseen(module.losses.parameters(), seen),
    )


def optimized_parameters(module: DistillationModule, balancer: Balancer) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters that the optimizer of a stage trains, with their names.

    The names are such as "student.head.weight", "losses.0.projector.weight" and, for a balancer,
    "balance.log_variances".
    """
    named = []
    for path, parameter in module.named_parameters():
        part, index, *rest = path.split(".")
        named.append((".".join([module.students[int(index)].name, *rest]) if part == "nets" else path, parameter))
    if isinstance(balancer, nn.Module):
        named += [(f"balance.{name}", parameter) for name, parameter in balancer.named_parameters()]
    return [(name, parameter) for name, parameter in named if parameter.requires_grad]


def _unseen(parameters: Iterable[nn.Parameter], seen: set[int]) -> tuple[nn.Parameter, ...]:
    unseen = [parameter for parameter in parameters if parameter.requires_grad and id(parameter) not in seen]
    seen.update(id(parameter) for parameter in unseen)
    return tuple(unseen)
