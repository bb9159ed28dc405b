"""The options of an export, and its result."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdkit.errors import RecipeError
from kdkit.utils.validation import is_number, validate_counts


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """The options of `kdkit.export_net`.

    points: how much worse each metric of an export may be than the network's, in hundredths; for a regression, relative
    to its value. tolerance: the largest difference of outputs; None for the default of the format.
    calibration: the number of training samples used to choose the ranges of quantized values. finish_epochs: epochs of
    training for a quantized network that misses the metric gate; 0 for none.
    seed: for the choice of samples and for random inputs. timing_seconds: duration of the timed passes of each export.
    """

    points: float = 0.5
    tolerance: float | None = None
    calibration: int = 256
    finish_epochs: int = 3
    seed: int = 0
    timing_seconds: float = 3.0

    def __post_init__(self) -> None:
        for name in ("points", "tolerance", "timing_seconds"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and value >= 0):
                raise RecipeError(f"{name} of an export must be a number of at least 0; got {value!r}")
        validate_counts(self, "calibration")
        validate_counts(self, "finish_epochs", "seed", least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """An export. path: of its file. passed: whether it passed its gates; otherwise the file is named "rejected".

    card: the gates, sizes and times, as values for JSON; see `kdkit.export.card`.
    """

    format: str
    path: Path
    passed: bool
    card: Mapping[str, Any] = field(repr=False)
