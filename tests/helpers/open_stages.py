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
    is_context = isinstance(data_or_context, BuildContext)
    context = data_or_context if is_context else build_context(data_or_context)
    with OpenStage(stage, context, batch.labels.device) as open_stage:
        assert dry_run(open_stage, batch).problems == []
        yield open_stage
