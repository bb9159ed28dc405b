"""The monitor of a stage: the validation metric that chooses the best epoch."""

import math
from collections.abc import Callable, Mapping, Sequence

from kdkit.engine.predict import Predictor
from kdkit.engine.run_context import RunContext
from kdkit.engine.stage.train_state import TrainState
from kdkit.engine.training.stage_progress import BestCheckpoint
from kdkit.metrics.base import is_better, lower_is_better
from kdkit.metrics.bootstrap import without_interval
from kdkit.recipe.recipe import Stage, monitored_metric
from kdkit.utils import collectives
from kdkit.utils.randomness import seed_everything
from kdkit.utils.seeds import SeedPurpose, derive_seed


class Monitor:
    """Computes the monitored metric of a stage after each epoch, and decides which epoch is the best."""

    def __init__(self, ctx: RunContext, stage: Stage, seed: int) -> None:
        self.ctx = ctx
        self.stage = stage
        self.training = stage.training
        self.seed = seed
        # A confidence interval takes a thousand times as long as the metric, and does not change which epoch is best.
        self.metric = without_interval(monitored_metric(ctx.recipe, stage))
        self.higher_is_better = not lower_is_better(self.metric)
        self.predictor = Predictor(ctx.recipe.data, ctx.device_data, ctx.options.precision, [self.metric])

    def validate(self, state: TrainState, epoch: int, between_batches: Callable[[], None]) -> Mapping[str, float]:
        """Return the metric on the validation split for each network in training, by name.

        between_batches: called before each batch; it may raise an exception.
        """
        # If data or networks draw random numbers, a validation that is repeated after a resume draws the same ones.
        seed_everything(derive_seed(self.seed, epoch, SeedPurpose.VALIDATION, 0))
        values = {}
        validation = self.ctx.recipe.data.validation
        for net in self.stage.objectives:
            with self.ctx.explain_out_of_memory(self.stage, validation, trains=False):
                predictions = self.predictor.predict(
                    net,
                    validation,
                    batch_size=self.training.batch_size,
                    module=state.validated_module(net),
                    workers=self.training.workers,
                    between_batches=between_batches,
                )
            # Thresholds are fitted and evaluated on the same split, because only the order of epochs matters here.
            values[net.name] = self.metric.fit(predictions).compute(predictions).value
        # Ranks have the same predictions, but must agree bit for bit on which epoch is best.
        return collectives.broadcast(values)

    def is_best(self, value: float, best: BestCheckpoint, earlier: Sequence[float]) -> bool:
        """Whether an epoch with this value, the mean over the networks, replaces the best one so far.

        earlier: the values of the epochs before it.
        """
        # While the metric is undefined or constant, no epoch is better than another, and the last one is kept.
        keeps_any = self.training.keep == "last" or math.isnan(best.value) or all(value == other for other in earlier)
        return keeps_any or is_better(self.metric, value, best.value)
