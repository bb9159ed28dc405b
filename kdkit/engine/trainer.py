"""The one loop: a stage, epoch by epoch and batch by batch. Ask the teachers, learn, judge, keep the best."""

import contextlib
import copy
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdkit.data.loading import Batches, batches, training_order
from kdkit.engine.callbacks import Callbacks
from kdkit.engine.check.dry_run import Rehearsal
from kdkit.engine.check.plan import Plan
from kdkit.engine.distributed import DistributedModule, weight_of
from kdkit.engine.meters import RunningMeans
from kdkit.engine.open_stage import tiny_batch
from kdkit.engine.options import RunOptions
from kdkit.engine.predict import Predictor
from kdkit.engine.storage.stage_folder import StageFolder
from kdkit.engine.teacher_caching import TeacherCaching
from kdkit.engine.train_state import TrainState
from kdkit.errors import CheckError, DataError, KdkitError
from kdkit.metrics import Metric, is_better, without_interval
from kdkit.plugins.events import EpochEnded, Figures, StageStarted, StepEnded
from kdkit.recipe.recipe import Recipe, Stage
from kdkit.teachers import run_teachers
from kdkit.utils import collectives
from kdkit.utils.randomness import derive_seed, seed_everything

History = list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What every stage of a run shares."""

    recipe: Recipe
    plan: Plan
    options: RunOptions
    device: torch.device
    predictor: Predictor
    callbacks: Callbacks
    recording: TeacherCaching


@dataclass(slots=True)
class BestCheckpoint:
    """The epoch that is kept so far, and the weights that it left."""

    epoch: int = -1
    value: float = -math.inf
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)


class StageTrainer:
    """One stage at work. `folder` is where it is kept, None for nowhere."""

    def __init__(self, place: RunContext, index: int, stage: Stage, folder: StageFolder | None) -> None:
        self.place = place
        self.stage = stage
        self.training = stage.training
        self.index = index
        self.folder = folder
        self.seed = derive_seed(place.options.seed, index)
        self.kept = BestCheckpoint()
        self.history: History = []
        self.notices: list[str] = []

    def train(self) -> History:
        """Train to the last epoch, leave the kept weights in the nets, and return a line of history per epoch."""
        if self.folder is not None and self.folder.finished:
            self.kept.weights = {net.name: self.folder.load_weights(net.name) for net in self.stage.objectives}
            self.history = self.folder.load_history()
        else:
            self._learn()
        for net in self.stage.objectives:
            net.network.load_state_dict(self.kept.weights[net.name])
            net.network.eval()
            net.trained = True
        if self.folder is not None and not self.folder.finished:
            self.folder.finish({"kept_epoch": self.kept.epoch, "score": self.kept.value, "epochs": len(self.history)})
        return self.history

    def _learn(self) -> None:
        seed_everything(self.seed)
        with self._opened() as (rehearsal, work):
            self._go_on(work)
            first = len(self.history)
            self.place.callbacks.tell(
                "stage_started",
                StageStarted(
                    index=self.index,
                    name=self.stage.name,
                    epoch=first,
                    epochs=self.training.epochs,
                    batches=len(self._batches(first)),
                    notices=tuple(self.notices),
                ),
            )
            lesson = DistributedModule(
                work.lesson, averages=work.balancer.averages_across_ranks, compiled=self.place.options.compile
            )
            for epoch in range(first, self.training.epochs):
                self._seed(epoch)
                began = time.perf_counter()
                terms = self._epoch(epoch, lesson, rehearsal, work)
                self._judge(epoch, terms, work, time.perf_counter() - began)
                self._save(work)

    def _seed(self, epoch: int) -> None:
        """Begin an epoch as it begins after an interruption; each process drops out what it draws itself."""
        number = collectives.rank()
        seed_everything(derive_seed(self.seed, epoch, number) if number else derive_seed(self.seed, epoch))

    def _epoch(self, epoch: int, lesson: DistributedModule, rehearsal: Rehearsal, work: TrainState) -> dict[str, float]:
        """Learn from every batch once, and return the mean of each term."""
        place, accumulate_steps = self.place, self.training.accumulate_steps
        loader = self._batches(epoch)
        last = len(loader) - 1
        means = RunningMeans()
        watched = place.callbacks.watch("step_ended")
        precision = place.options.autocast(place.device)
        work.lesson.train()
        for index, batch in enumerate(loader):
            batch = batch.to(place.device)
            group, ends = index - index % accumulate_steps, (index + 1) % accumulate_steps == 0 or index == last
            weight, samples = self._share(index, len(batch))
            with lesson.update(ends=ends):
                with precision:
                    teacher_outputs = run_teachers(rehearsal.sessions, batch)
                    terms = lesson(batch, teacher_outputs)
                if index > last:
                    raise DataError(f"the training data promised {last + 1} batches an epoch, and gave more")
                work.backward(terms, min(accumulate_steps, last + 1 - group), weight)
            if ends:
                work.step()
            work.observe(batch)
            values = {label: term.detach() for label, term in terms.items()}
            means.add(values, samples)
            if watched:
                event = StepEnded(stage=self.stage.name, epoch=epoch, batch=index, terms=Figures(values))
                place.callbacks.tell("step_ended", event)
        if means.steps <= last:
            raise DataError(f"the training data promised {last + 1} batches an epoch, and gave {means.steps}")
        work.on_epoch_end()
        learned = means.values(place.device)
        self._require_finite(learned, epoch)
        return learned

    def _judge(self, epoch: int, terms: Mapping[str, float], work: TrainState, seconds: float) -> None:
        """Score the nets on the selection split, keep them if they are the best so far, and tell watchers."""
        score = self._score()
        values = []
        for net in self.stage.objectives:
            said = self.place.predictor.predict(
                net,
                self.place.recipe.data.validation,
                batch_size=self.training.batch_size,
                module=work.module(net.name),
                workers=self.training.workers,
            )
            values.append(score.fit(said).compute(said).value)
        work.lesson.open_taps.clear()
        value = collectives.broadcast(sum(values) / len(values))
        best = self.kept.epoch < 0 or self.training.keep == "last" or is_better(score, value, self.kept.value)
        if best:
            weights = {net.name: _copied(work.module(net.name).state_dict()) for net in self.stage.objectives}
            self.kept = BestCheckpoint(epoch, value, weights)
        line = {"epoch": epoch, "terms": dict(terms), score.name: value, "kept": best, "seconds": round(seconds, 3)}
        gradients = work.gradients()
        self.history.append(line if gradients is None else {**line, "gradients": gradients})
        self.place.callbacks.tell(
            "epoch_ended",
            EpochEnded(
                stage=self.stage.name,
                epoch=epoch,
                terms=terms,
                weights=dict(work.weights()),
                monitor=score.name,
                monitor_value=value,
                best=best,
                seconds=seconds,
                learning_rate=work.lr,
                gradients=copy.deepcopy(gradients),  # what watchers do to it must not reach the history
            ),
        )

    def _score(self) -> Metric:
        metrics = {score.name: score for score in self.place.recipe.metrics}
        return without_interval(
            metrics[self.training.monitor] if self.training.monitor is not None else self.place.recipe.metrics[0]
        )

    def _batches(self, epoch: int) -> Batches:
        data, size = self.place.recipe.data, self.training.batch_size
        draw = None if data.draws is None else epoch % data.draws
        order = training_order(data.train, size, self.seed, epoch)
        return batches(
            data.train,
            size,
            order=order,
            draw=draw,
            workers=self.training.workers,
            pin=self.place.device.type == "cuda",
            shard=(collectives.rank(), collectives.world_size()),
        )

    def _share(self, index: int, mine: int) -> tuple[float, float]:
        """Return what this process's part of a batch counts for, and the samples that its terms stand for."""
        if not collectives.is_distributed():
            return 1.0, mine
        whole = min(self.training.batch_size, len(self.place.recipe.data.train) - index * self.training.batch_size)
        weight = weight_of(mine, whole)
        return weight, whole * weight / collectives.world_size()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Rehearsal, TrainState]]:
        """Open the stage: averages first, then taps and losses, then the optimizer; close it whatever happens."""
        ema = self.training.ema
        averages = {} if ema is None else {net.name: ema.build(net.network) for net in self.stage.objectives}
        batch = tiny_batch(self.place.recipe.data, self.training.batch_size).to(self.place.device)
        rehearsal = Rehearsal(self.stage, self.place.plan.facts, batch, self.place.options.precision)
        try:
            if rehearsal.problems or rehearsal.lesson is None:
                raise CheckError(f"stage {self.stage.name!r}: {problem}" for problem in rehearsal.problems)
            self.notices = self.place.recording.begin(self.stage, rehearsal.sessions, rehearsal.lesson, batch)
            scaler = self.place.options.precision == "fp16"
            work = TrainState(
                self.training,
                rehearsal.lesson,
                rehearsal.sessions,
                averages,
                batches=len(self._batches(0)),
                scaler=scaler,
            )
            work.look_at_gradients(self.place.options.gradients)
            yield rehearsal, work
        finally:
            rehearsal.close()

    def _go_on(self, work: TrainState) -> None:
        """Take up the stage where its folder says it was left."""
        state = self.folder.load_state() if self.folder is not None else None
        if state is None or self.folder is None:
            return
        with self.folder.reading(self.folder.state):
            work.load_state_dict(state["work"])
        self.history = state["history"]
        weights = {net.name: self.folder.load_weights(net.name) for net in self.stage.objectives}
        self.kept = BestCheckpoint(state["kept"]["epoch"], state["kept"]["score"], weights)

    def _save(self, work: TrainState) -> None:
        if self.folder is None:
            return
        if self.history[-1]["kept"]:
            for name, weights in self.kept.weights.items():
                self.folder.save_weights(name, weights)
        self.folder.save_history(self.history)
        kept = {"epoch": self.kept.epoch, "score": self.kept.value}
        self.folder.save_state({"work": work.state_dict(), "history": self.history, "kept": kept})

    def _require_finite(self, means: Mapping[str, float], epoch: int) -> None:
        broken = [label for label, mean in means.items() if not math.isfinite(mean)]
        if broken:
            raise KdkitError(
                f"stage {self.stage.name!r}: {', '.join(map(repr, broken))} stopped being a finite number in epoch "
                f"{epoch + 1}; a lower learning rate, Training(clip=...), or another precision may help"
            )


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu().clone() for key, value in state.items()}
