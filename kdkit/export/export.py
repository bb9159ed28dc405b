"""Export a network: write it in a format, let it pass its gates, measure it, and write its card."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdkit.engine.check.multiply_adds import multiply_adds
from kdkit.engine.evaluate import load_net
from kdkit.errors import KdkitError, RecipeError
from kdkit.export.base import Exported, Exporter, quiet_packages
from kdkit.export.card import FOLDER, card_markdown, read_cards
from kdkit.export.gates import MetricGate, NumericGate, Reference
from kdkit.export.latency import latency, single_sample
from kdkit.export.metadata import inputs_of, metadata_of
from kdkit.export.options import ExportOptions, ExportResult
from kdkit.export.source import ExportSource
from kdkit.plugins.manager import registry
from kdkit.recipe.recipe import Recipe
from kdkit.utils.files import output_errors, require_output, to_json, write_output

REJECTED = ".rejected"
_OUT = "--out PATH"  # the option by which the place of files is chosen


def export_net(
    recipe: Recipe,
    weights: str | Path,
    *,
    to: str | Sequence[str] = "onnx",
    net: str | None = None,
    out: str | Path | None = None,
    options: ExportOptions | None = None,
) -> tuple[ExportResult, ...]:
    """Load weights into a net of a recipe, and write it in one or several formats, which have to pass their gates.

    weights: the folder of a run, or a file of weights, as for `Net`. to: names in the registry `exporters`. net: its
    name in the recipe; the one that is trained last if None. out: a file, or a folder for files `<net>.onnx` and
    so on; the folder "export" of the run if None.

    Next to each file are its card as JSON and, of all files of these weights, as Markdown. A file that misses a gate
    has ".rejected" in its name. Raises RecipeError for an unknown net or format, PluginError if a package is missing,
    and KdkitError if the network has no form in a format; nothing is written then.
    """
    options = options or ExportOptions()
    names = list(dict.fromkeys([to] if isinstance(to, str) else to))
    if not names:
        raise RecipeError("an export needs the name of a format, such as to='onnx'")
    factories = registry("exporters")
    exporters: dict[str, Exporter] = {name: factories[name]() for name in names}
    for exporter in exporters.values():  # all of them before any work, so that nothing is written if one fails
        exporter.require()
    weights = Path(weights)
    chosen = load_net(recipe, weights, net)
    chosen.device = None  # exports are compared on the CPU, also with a net that a run keeps on another device
    chosen.move_to(torch.device("cpu"))
    default = (weights if weights.is_dir() else weights.parent) / FOLDER
    folder, files = _targets(default if out is None else Path(out), chosen.name, exporters)
    summary = folder / f"{chosen.name.replace(' ', '-')}.md"
    for path in [summary, *(output for file in files.values() for output in (file, _rejected(file), _card_of(file)))]:
        require_output(path, _OUT)
    source = ExportSource(recipe, chosen, options)
    reference = Reference(source)
    with quiet_packages():
        # All of them before the first is written, since the last format may have no form of the network.
        attempts = {
            name: _Attempt.best_of(source, reference, exporter, weights) for name, exporter in exporters.items()
        }
    results = tuple(_write(files[name], name, attempt, source) for name, attempt in attempts.items())
    _write_markdown(summary, results[0].card)
    return results


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """An export that was judged. content: of its file, with metadata."""

    exporter: Exporter
    exported: Exported
    content: bytes
    metadata: Mapping[str, Any]
    numeric: NumericGate
    metric: MetricGate

    @property
    def passed(self) -> bool:
        """Whether it has passed both gates."""
        return self.numeric.passed and self.metric.passed

    @classmethod
    def best_of(cls, source: ExportSource, reference: Reference, exporter: Exporter, weights: Path) -> "_Attempt":
        """Return the export of a network, or an improved one if that misses the gate of its metrics."""
        attempt = cls._judged(exporter.export(source), source, reference, exporter, weights)
        others, limit = attempt.numeric.differences.get("other sizes", 0.0), attempt.numeric.tolerance
        # `not <=` also of NaN
        if limit is not None and not others <= limit and not source.fixed_sizes:
            source.fix_sizes()  # the network may compute something else for other sizes, such as by its positions
            attempt = cls._judged(exporter.export(source), source, reference, exporter, weights)
        improvements = exporter.improvements(source)
        while not attempt.metric.passed and (improved := next(improvements, None)) is not None:
            other = cls._judged(improved, source, reference, exporter, weights)
            attempt = other if other.metric.loss < attempt.metric.loss else attempt
        return attempt

    @classmethod
    def _judged(
        cls, exported: Exported, source: ExportSource, reference: Reference, exporter: Exporter, weights: Path
    ) -> "_Attempt":
        """Return an export with its gates, computed by the content that is written."""
        metadata = {
            **metadata_of(source, reference, weights),
            "inputs": inputs_of(source, dynamic=exporter.dynamic),
            "precision": exporter.precision,
            "details": dict(exported.details),
        }
        content = exporter.with_metadata(exported.content, metadata)
        # The gates judge these bytes, so that no later step can change what was judged.
        model = exporter.open(content)
        options = source.options
        tolerance = options.tolerance if exporter.tolerance is not None else None
        return cls(
            exporter=exporter,
            exported=exported,
            content=content,
            metadata=metadata,
            numeric=reference.numeric_gate(
                model, exporter.tolerance if tolerance is None else tolerance, dynamic=exporter.dynamic
            ),
            metric=reference.metric_gate(model, options.points),
        )


def _targets(out: Path, net: str, exporters: Mapping[str, Exporter]) -> tuple[Path, dict[str, Path]]:
    """Return the folder of all files, and the file of each format."""
    if len(exporters) == 1:
        ((name, exporter),) = exporters.items()
        if out.suffix == exporter.suffix:
            return out.parent, {name: out}
    if out.is_file() or out.suffix in {factory().suffix for factory in registry("exporters").values()}:
        wanted = f"have the suffix {exporter.suffix}" if len(exporters) == 1 else "be a folder for the files"
        raise KdkitError(f"{out} names a file, but an export to {', '.join(exporters)} must {wanted}; change --out")
    stem = net.replace(" ", "-")
    return out, {name: out / f"{stem}{exporter.label}{exporter.suffix}" for name, exporter in exporters.items()}


def _write(path: Path, name: str, attempt: _Attempt, source: ExportSource) -> ExportResult:
    """Write the file of an export and its card."""
    if not attempt.passed:
        path = _rejected(path)
    card = _card(path, name, attempt, source)
    write_output(path, attempt.content, option=_OUT)
    write_output(_card_of(path), to_json(card, indent=1) + "\n", option=_OUT)
    if attempt.passed:  # an earlier one that was rejected would be mistaken for a fault of this one
        with output_errors(path, _OUT):
            _rejected(path).unlink(missing_ok=True)
            _card_of(_rejected(path)).unlink(missing_ok=True)
    return ExportResult(format=name, path=path, passed=attempt.passed, card=card)


def _rejected(path: Path) -> Path:
    """Return the path of a file in place of another one, if it misses a gate."""
    return path.with_name(f"{path.stem}{REJECTED}{path.suffix}")


def _card_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _write_markdown(path: Path, written: Mapping[str, Any]) -> None:
    """Write the cards of all files with the net and the weights of a card that was written."""
    net, run = written["network"]["name"], written["metadata"]["run"]
    cards = [
        card
        for card in read_cards(path.parent)
        # Files of other weights may be in this folder, and have scores and times of their own.
        if card["network"]["name"] == net
        and card["metadata"].get("run", {}).get("weights_sha256") == run["weights_sha256"]
    ]
    write_output(path, card_markdown(cards), option=_OUT)


def _card(path: Path, name: str, attempt: _Attempt, source: ExportSource) -> dict[str, Any]:
    """Return the card of an export: what it is, how it was judged, and what it costs."""
    exporter, net = attempt.exporter, source.net
    model = exporter.open(attempt.content)
    inputs = single_sample(source)
    arrays = {key: tensor.numpy() for key, tensor in zip(source.input_names, inputs, strict=True)}
    operations = next((multiply_adds(net, batch) for batch in source.batches(source.data.validation, 2, count=2)), None)
    tensors = {id(tensor): tensor for tensor in (*net.network.parameters(), *net.network.buffers())}
    return {
        "format": name,
        "file": path.name,
        "sha256": hashlib.sha256(attempt.content).hexdigest(),
        "precision": exporter.precision,
        "passed": attempt.passed,
        "bytes": len(attempt.content),
        "bytes_without_metadata": len(attempt.exported.content),
        "peak_activation_bytes": exporter.peak_activation_bytes(attempt.content, arrays),
        "network": {
            "name": net.name,
            "parameters": net.parameters,
            "weights_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
            "multiply_adds": operations,
            "input_shapes": {key: list(array.shape) for key, array in arrays.items()},
        },
        "latency": latency(source, model),
        "numeric_gate": {
            "passed": attempt.numeric.passed,
            "tolerance": attempt.numeric.tolerance,
            "largest_differences": dict(attempt.numeric.differences),
        },
        "metric_gate": {
            "passed": attempt.metric.passed,
            "points": attempt.metric.points,
            "split": attempt.metric.split,
            "samples": attempt.metric.samples,
            "scores": {
                score.metric: {"network": score.network, "export": score.export, "points_lost": score.points}
                for score in attempt.metric.scores
            },
        },
        "record": dict(attempt.exported.record),
        "metadata": dict(attempt.metadata),
    }
