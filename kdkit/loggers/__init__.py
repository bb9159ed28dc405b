"""Loggers: callbacks that write the values of a run to files or to experiment trackers."""

from kdkit.loggers.base import Logger
from kdkit.loggers.files import CsvLogger, JsonlLogger
from kdkit.loggers.services import MlflowLogger, TrackioLogger, WandbLogger
from kdkit.loggers.tensorboard import TensorBoardLogger

__all__ = [
    "CsvLogger",
    "JsonlLogger",
    "Logger",
    "MlflowLogger",
    "TensorBoardLogger",
    "TrackioLogger",
    "WandbLogger",
]
