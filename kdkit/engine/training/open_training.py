"""Open a stage for training: its teachers and module, the teacher cache, and the state that training updates."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from kdkit.engine.check.dry_run import dry_run
from kdkit.engine.run_context import RunContext
from kdkit.engine.stage.batch_transform import transformed
from kdkit.engine.stage.open_stage import OpenStage, tiny_batch
from kdkit.engine.stage.train_state import TrainState
from kdkit.errors import CheckError, KdkitError
from kdkit.recipe.recipe import Stage


@contextmanager
def opened_for_training(
    ctx: RunContext, stage: Stage, *, batches: int, higher_is_better: bool
) -> Iterator[tuple[OpenStage, TrainState, list[str]]]:
    """Open a stage and create its state. Yields both, with notices. The stage is closed at the end, even on an error.

    batches: per epoch. higher_is_better: for the monitored metric, which a learning rate schedule may follow.
    Raises CheckError if the stage cannot be opened, or if its dry run has problems.
    """
    # Before the taps are opened, because a copy of a module has their hooks.
    ema = stage.training.ema
    averages = {} if ema is None else {net.name: ema.build(net) for net in stage.objectives}
    data, precision = ctx.recipe.data, ctx.options.precision
    batch = transformed(data, tiny_batch(data, stage.training.batch_size).to(ctx.device))
    try:
        open_stage = OpenStage(stage, ctx.plan.context, ctx.device)
    except KdkitError as error:
        raise CheckError([f"stage {stage.name!r}: {error}"]) from error
    with open_stage:
        problems = dry_run(open_stage, batch, precision).problems
        if problems:
            raise CheckError(f"stage {stage.name!r}: {problem}" for problem in problems)
        notices = ctx.teacher_caching.cache_sessions(open_stage, batch)
        schedule = stage.training.lr_schedule
        if schedule is not None:
            schedule = schedule.for_metric(higher_is_better=higher_is_better)
        # After the dry run, because the optimizer takes the parameters of the losses that it builds.
        state = TrainState(
            replace(stage.training, lr_schedule=schedule),
            open_stage.module,
            open_stage.sessions,
            averages,
            batches=batches,
            scaler=precision == "fp16",
        )
        state.track_gradients(ctx.options.gradients)
        yield open_stage, state, notices
