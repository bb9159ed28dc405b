"""The measurements of a run's networks, `measurements.json`: their cost, and the similarity of their layers."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from kdkit.utils.files import exists
from kdkit.utils.read_json import number_or_nan, require_number, require_text
from kdkit.utils.sealed import explain_unreadable_file, read_sealed_json

MEASUREMENTS = "measurements.json"
_MOST_LAYERS = 256  # per network in a file, so that no file leads to a page with millions of cells


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """The seconds of a forward pass for one sample: the median and the 95th percentile over `passes` passes.

    device: the one that the network ran on. threads: of the CPU. precision: "fp32", or that of autocast.
    """

    p50: float
    p95: float
    passes: int
    device: str
    threads: int
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NetCost:
    """The cost of a network. Fields that could not be measured are None, with the reason in `note`.

    multiply_adds: of a forward pass for one sample. weights_bytes: of all parameters and buffers, without masks of
    pruned weights.
    """

    weights_bytes: int | None = None
    multiply_adds: int | None = None
    latency: Latency | None = None
    note: str = ""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Return the cost in a file. Raises ValueError, KeyError or TypeError if it is damaged."""
        latency = fields["latency"]
        return cls(
            weights_bytes=_count(fields["weights_bytes"]),
            multiply_adds=_count(fields["multiply_adds"]),
            latency=None
            if latency is None
            else Latency(
                p50=require_number(latency["p50"]),
                p95=require_number(latency["p95"]),
                passes=int(latency["passes"]),
                device=require_text(latency["device"]),
                threads=int(latency["threads"]),
                precision=require_text(latency["precision"]),
            ),
            note=require_text(fields["note"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSimilarity:
    """The CKA between layers of two networks: a row per student layer, a column per teacher layer; NaN if undefined."""

    student: str
    teacher: str
    student_layers: tuple[str, ...]
    teacher_layers: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Return the similarities in a file. Raises ValueError, KeyError or TypeError if they are damaged."""
        student_layers = tuple(map(require_text, fields["student_layers"]))
        teacher_layers = tuple(map(require_text, fields["teacher_layers"]))
        rows = fields["values"]
        values = tuple(tuple(number_or_nan(value) for value in row) for row in rows)
        if len(values) != len(student_layers) or any(len(row) != len(teacher_layers) for row in values):
            raise ValueError("the numbers of its similarities and of its layers differ")
        if max(len(student_layers), len(teacher_layers)) > _MOST_LAYERS:
            raise ValueError(f"it has a network of more than {_MOST_LAYERS} layers")
        return cls(
            student=require_text(fields["student"]),
            teacher=require_text(fields["teacher"]),
            student_layers=student_layers,
            teacher_layers=teacher_layers,
            values=values,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """The measurements of a run. samples: the number of samples that layers were compared on; 0 for none.

    note: the reason why layers were not compared, or "".
    """

    costs: Mapping[str, NetCost]
    similarities: tuple[LayerSimilarity, ...] = ()
    samples: int = 0
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the measurements as values for JSON, with None for NaN."""
        content = asdict(self)
        for similarity in content["similarities"]:
            similarity["values"] = [
                [None if math.isnan(value) else value for value in row] for row in similarity["values"]
            ]
        return content


def read_measurements(folder: Path) -> Measurements | None:
    """Return the measurements of a run; None if it has none. Raises RunFolderError if they are damaged."""
    file = folder / MEASUREMENTS
    if not exists(file):
        return None
    with explain_unreadable_file(file, "delete it to get a report without latencies and similarities of layers"):
        content = read_sealed_json(file)
        return Measurements(
            costs={net: NetCost.from_json(fields) for net, fields in content["costs"].items()},
            similarities=tuple(LayerSimilarity.from_json(fields) for fields in content["similarities"]),
            samples=int(content["samples"]),
            note=require_text(content["note"]),
        )


def _count(value: Any) -> int | None:
    if value is not None and (type(value) is not int or not 0 <= value < 2**63):
        raise ValueError("a count is not a whole number of at least 0")
    return value
