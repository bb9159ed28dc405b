"""Log to event files that TensorBoard shows."""

from pathlib import Path
from typing import Any

from kdkit.errors import RunFolderError
from kdkit.loggers.base import Logger, Values, hyperparameters, require_package
from kdkit.plugins.events import RunStarted
from kdkit.utils.paths import user_path


class TensorBoardLogger(Logger):
    """Write scalars and hyperparameters for TensorBoard: `tensorboard --logdir runs` shows all runs.

    folder: the folder of the event files; `tensorboard` in the run folder if None.
    Raises PluginError if the package tensorboard is missing.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        require_package("tensorboard", "tensorboard")
        self.folder = None if folder is None else user_path(folder).absolute()  # recipe() may change the folder
        self._writer: Any = None

    def prepare(self, run: RunStarted) -> None:
        """Raise RunFolderError if there is no folder for the files."""
        if self.folder is None and run.folder is None:
            raise RunFolderError(
                "a TensorBoardLogger writes to the run folder, but this run has none; pass out=FOLDER, or a folder to "
                "the logger"
            )

    def start(self, run: RunStarted, step: int) -> None:
        """Open a new file, whose first event hides the steps of earlier files that are logged again."""
        from torch.utils.tensorboard import SummaryWriter  # late: it imports tensorboard
        from torch.utils.tensorboard.summary import hparams

        self._writer = SummaryWriter(
            str(self.folder or Path(run.folder or "", "tensorboard")),
            purge_step=step + 1 if run.resumed else None,
        )
        # The first summary is dropped, because it would fix the metrics; without it, all scalars are metrics.
        _, settings, self._end = hparams(hyperparameters(run), {})  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._writer.file_writer.add_summary(settings)
        self._writer.flush()

    def log(self, step: int, values: Values, *, stage: str | None, epoch: int | None) -> None:
        """Write the values as scalars."""
        # The metrics at the end have their own step, which a run that is resumed after it hides and repeats.
        step += stage is None
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a killed run has logged everything up to its checkpoint

    def close(self, *, failed: bool) -> None:
        """Mark the run as ended, unless it may be resumed, and close the file."""
        if not failed:
            self._writer.file_writer.add_summary(self._end)
        self._writer.close()
