"""An export and the results of its gates, before it is written: the best one that a format has for a network."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdkit.engine.measurement.multiply_adds import multiply_adds
from kdkit.export.base import Exported, Exporter
from kdkit.export.gates import MetricGate, NumericGate, Reference
from kdkit.export.latency import latency, single_sample
from kdkit.export.metadata import inputs_of, metadata_of
from kdkit.export.source import ExportSource
from kdkit.utils.modules import weights_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An export with its gates. content: of the file, with metadata."""

    exporter: Exporter
    exported: Exported
    content: bytes
    metadata: Mapping[str, Any]
    numeric: NumericGate
    metric: MetricGate

    @classmethod
    def best_of(cls, exporter: Exporter, reference: Reference, weights: Path) -> "Attempt":
        """Return the export of a network, or an improved one if it misses the metric gate."""
        source, metadata = reference.source, metadata_of(reference, weights)
        attempt = cls._judged(exporter.export(source), exporter, reference, metadata)
        other_sizes = attempt.numeric.largest_differences.get("other sizes", 0.0)
        if not attempt.numeric.allows(other_sizes) and not source.fixed_sizes:
            source.fix_sizes()  # the network may behave differently for other sizes, such as by its positions
            attempt = cls._judged(exporter.export(source), exporter, reference, metadata)
        improvements = exporter.improvements(source)
        while not attempt.metric.passed and (improved := next(improvements, None)) is not None:
            candidate = cls._judged(improved, exporter, reference, metadata)
            attempt = candidate if candidate.metric.loss < attempt.metric.loss else attempt
        return attempt

    @classmethod
    def _judged(
        cls, exported: Exported, exporter: Exporter, reference: Reference, metadata: Mapping[str, Any]
    ) -> "Attempt":
        """Return an export with its gates, computed on the content that is written."""
        source = reference.source
        sizes_of_example = [(1, *tensor.shape[1:]) for tensor in source.example]
        metadata = {
            **metadata,
            "inputs": inputs_of(source, source.shapes.values() if exporter.dynamic else sizes_of_example),
            "precision": source.precision if exporter.precision == Exporter.precision else exporter.precision,
            "details": dict(exported.details),
        }
        content = exporter.with_metadata(exported.content, metadata)
        # The gates test these bytes, so that no later step can change what was tested.
        model = exporter.open(content)
        tolerance, options = exporter.tolerance, source.options
        if tolerance is not None and options.tolerance is not None:  # a format that rounds has none
            tolerance = options.tolerance
        return cls(
            exporter=exporter,
            exported=exported,
            content=content,
            metadata=metadata,
            numeric=reference.numeric_gate(model, tolerance, dynamic=exporter.dynamic),
            metric=reference.metric_gate(model, options.points),
        )

    @property
    def passed(self) -> bool:
        """Whether it passed both gates."""
        return self.numeric.passed and self.metric.passed

    def card(self, source: ExportSource) -> dict[str, Any]:
        """Return the card: what the export is, the results of its gates, and its measured cost."""
        exporter, net = self.exporter, source.net
        model, inputs = exporter.open(self.content), single_sample(source)
        arrays = {key: tensor.numpy() for key, tensor in zip(source.input_names, inputs, strict=True)}
        batches = source.batches(source.data.validation, 2, count=2)
        return {
            "precision": self.metadata["precision"],
            "passed": self.passed,
            "notices": [*source.notices, *exporter.notices],
            "bytes": len(self.content),
            "bytes_without_metadata": len(self.exported.content),
            "peak_activation_bytes": exporter.peak_activation_bytes(self.content, arrays),
            "network": {
                "name": net.name,
                "parameters": net.parameters,
                "weights_bytes": weights_bytes(net.network),
                "multiply_adds": next((multiply_adds(net, batch) for batch in batches), None),
                "input_shapes": {key: list(array.shape) for key, array in arrays.items()},
            },
            "latency": latency(source, model),
            "numeric_gate": {"passed": self.numeric.passed, **asdict(self.numeric)},
            "metric_gate": {"passed": self.metric.passed, **asdict(self.metric)},
            "record": dict(self.exported.record),
            "metadata": dict(self.metadata),
        }
