"""Open a stage for a test, as a run does before its first step."""

from collections.abc import Iterator
from contextlib import contextmanager

from kdkit import Batch, BuildContext, Stage
from kdkit.data.dataset import Data
from kdkit.engine.check.dry_run import dry_run
from kdkit.engine.open_stage import OpenStage, build_context


@contextmanager
def opened(stage: Stage, data_or_context: Data | BuildContext, batch: Batch) -> Iterator[OpenStage]:
    """Open a stage, build its losses in a dry run on `batch`, and yield it. Fails if the dry run finds a problem."""
    with open_and_build(stage, data_or_context, batch) as open_stage:
        yield open_stage


def open_and_build(stage: Stage, data_or_context: Data | BuildContext, batch: Batch) -> OpenStage:
    """Open a stage as `opened` does, and return it; the caller closes it."""
    is_context = isinstance(data_or_context, BuildContext)
    context = data_or_context if is_context else build_context(data_or_context)
    open_stage = OpenStage(stage, context, batch.labels.device)
    problems = dry_run(open_stage, batch).problems
    assert problems == []
    return open_stage
