"""The interface of an exporter: it turns a network into the content of a file, and runs that content."""

import importlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from numpy.typing import NDArray

from kdkit.errors import PluginError, first_line
from kdkit.export.source import ExportSource

Arrays = Mapping[str, NDArray[Any]]
Model = Callable[[Arrays], NDArray[Any]]  # float32, or float64 if the network computes in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """The content of a file without its metadata, and what an exporter adds to the metadata, as values for JSON.

    record: facts for the card only, such as the ids of samples.
    """

    content: bytes
    details: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)


class Exporter(ABC):
    """Writes networks in the format of its name in the registry `exporters`. It is created without arguments.

    suffix: of the file. label: comes before the suffix, such as "-int8", so that the files of one network differ.
    precision: of weights and activations, for tables. notices: what a user must know about the last export; they are
    printed, and in the card.
    tolerance: the largest difference from the network's outputs that rounding explains; None if the format rounds more,
    so that only metrics are compared. dynamic: whether files take batches, and other sizes if the network does;
    otherwise they take one sample of the size of the data.
    """

    suffix: ClassVar[str]
    label: ClassVar[str] = ""
    precision: ClassVar[str] = "fp32"
    tolerance: ClassVar[float | None] = 1e-4
    dynamic: ClassVar[bool] = True
    notices: tuple[str, ...] = ()

    @abstractmethod
    def require(self) -> None:
        """Raise PluginError if a package is missing; called before anything is computed."""

    @abstractmethod
    def export(self, source: ExportSource) -> Exported:
        """Return the network as a file. Raises KdkitError with the reason if the format cannot represent it."""

    def improvements(self, source: ExportSource) -> Iterator[Exported]:
        """Yield other files, if the file of `export` misses the metric gate; none by default.

        They are tried in this order until one passes. If none does, the one that loses least is kept as rejected.
        """
        yield from ()

    @abstractmethod
    def with_metadata(self, content: bytes, metadata: Mapping[str, Any]) -> bytes:
        """Return the content of a file with metadata, which are values for JSON."""

    @abstractmethod
    def open(self, content: bytes) -> Model:
        """Return a function that runs the content of a file on one thread: arrays by name -> outputs."""

    def peak_activation_bytes(self, content: bytes, inputs: Arrays) -> int | None:
        """Return the peak memory of inputs, outputs and intermediate values; None if it is unknown."""
        return None


@contextmanager
def quiet_packages() -> Iterator[None]:
    """Drop log messages of torch, onnxruntime and others below errors, because they are about their own code."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def require_packages(name: str, extra: str, *modules: str) -> None:
    """Raise PluginError with the install command if modules of an exporter cannot be imported."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise PluginError(
                f"exporter {name!r} needs {module}, which cannot be imported ({first_line(error)}): pip install "
                f"'kdkit[{extra}]'"
            ) from error
