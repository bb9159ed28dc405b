"""A stage that is ready to run, with a session for each teacher and the module that is trained."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Self

import torch

from kdkit.data.batch import Batch
from kdkit.data.dataset import Data, LoaderSplit, Split, split_name
from kdkit.data.label_check import LabelCheck
from kdkit.data.loading import batches
from kdkit.data.reading import ReadBatches, no_batch
from kdkit.engine.stage.module import DistillationModule
from kdkit.losses.base import BuildContext
from kdkit.recipe.recipe import Stage
from kdkit.teachers.base import TeacherOutput, TeacherSession
from kdkit.teachers.frozen import open_teacher
from kdkit.utils.devices import Precision, autocast


class OpenStage:
    """The teachers and the module of a running stage. Close it, or use it as a context manager.

    Closing removes all taps and restores the mode of the teachers. precision: of its forward passes, see `autocast`.
    Raises RecipeError if a teacher cannot be opened or a term does not fit its networks.
    """

    module: DistillationModule

    def __init__(
        self, stage: Stage, context: BuildContext, device: torch.device, precision: Precision = "fp32"
    ) -> None:
        self.stage, self.device = stage, device
        self.precision: Precision = precision
        self.context = replace(context, batch_size=stage.training.batch_size)
        self.sessions: dict[str, TeacherSession] = {}
        try:
            for teacher, taps in stage.teachers.items():
                self.sessions[teacher.name] = open_teacher(teacher, taps, self.context)
            self.module = DistillationModule(stage, self.context)
            self.module.to(device)  # after the assignment: if this fails, `close` must remove its taps
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def teacher_outputs(
        self, batch: Batch, sessions: Mapping[str, TeacherSession] | None = None
    ) -> dict[str, TeacherOutput]:
        """Return the outputs of teachers for a batch by name, without gradients, computed or read from the cache.

        sessions: of these teachers; None for all.
        """
        sessions = self.sessions if sessions is None else sessions
        with torch.no_grad(), self.autocast():
            return {name: session(batch) for name, session in sessions.items()}

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context for forward passes."""
        return autocast(self.precision, self.device)

    def close(self) -> None:
        """Remove all taps and restore the mode of the teachers."""
        module = getattr(self, "module", None)  # missing if a teacher could not be opened
        if module is not None:
            module.close()
        # In reverse order: user-defined teachers may share a module, and each restores the state that it found.
        for session in reversed(self.sessions.values()):
            session.close()


def build_context(data: Data) -> BuildContext:
    """Return the properties of the data that losses and teachers may depend on."""
    train = data.train
    # A user-defined DataLoader yields batches without sample ids, and a batch_transform may mix samples.
    has_ids = not isinstance(train, LoaderSplit) and data.batch_transform is None
    return BuildContext(
        classes=tuple(data.classes),
        task=data.task,
        samples=len(train) if has_ids else None,
        ids=has_ids,
        has_unknown=data.has_unknown,
        position_dims=data.position_dims,
        ignored_labels=tuple(data.ignored_labels),
        has_labels=data.has_labels,
        has_weights=data.has_weights,
    )


def tiny_batch(data: Data, batch_size: int, split: Split | LoaderSplit | None = None) -> Batch:
    """Return four samples of a split for a dry run, or the first batch of a user-defined DataLoader.

    split: by default that of training.
    Returns a single sample if the batch size is 1 or the split has only one sample. If the split has two or three
    samples, the last one is repeated, because some relations between samples are constant for two.
    """
    split = data.train if split is None else split
    check = LabelCheck.of_data(data, split)
    if isinstance(split, LoaderSplit):
        first = ReadBatches(batches(split, 4 if batch_size > 1 else 1), check).take(1)
        if not first:
            raise no_batch("training" if split is data.train else split_name(data, split))
        return first[0]
    rows = torch.arange(4 if batch_size > 1 and len(split) > 1 else 1).clamp(max=len(split) - 1)
    return ReadBatches(batches(split, len(rows), order=rows), check).take(1)[0]
