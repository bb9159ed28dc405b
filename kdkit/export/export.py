"""Export a network: convert it to a format, test it with its gates, measure it, and write the file and its card."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdkit.engine.evaluate import load_net
from kdkit.errors import PluginError, RecipeError
from kdkit.export.attempt import Attempt
from kdkit.export.base import Arrays, Exporter, Model, quiet_packages
from kdkit.export.card import FOLDER, OUT, write_summary
from kdkit.export.gates import Reference
from kdkit.export.metadata import inputs_of, metadata_of
from kdkit.export.options import ExportOptions, ExportResult
from kdkit.export.output_files import file_stem, output_files
from kdkit.export.source import ExportSource
from kdkit.plugins.manager import registry
from kdkit.recipe.recipe import Recipe, as_recipe
from kdkit.utils.devices import default_modes
from kdkit.utils.files import require_output
from kdkit.utils.modules import eval_mode
from kdkit.utils.paths import user_path
from kdkit.utils.randomness import exclusive_rng_state


@default_modes()
@exclusive_rng_state()
def export_net(
    recipe: Recipe,
    weights: str | Path,
    *,
    to: str | Sequence[str] = "onnx",
    net: str | None = None,
    out: str | Path | None = None,
    options: ExportOptions | None = None,
) -> tuple[ExportResult, ...]:
    """Load weights into a net of a recipe, and write it in one or several formats. Each file must pass its gates.

    weights: the folder of a run, or a file of weights, as for `Net`. to: names in the registry `exporters`. net: its
    name in the recipe; the net trained last if None. out: a file, or a folder for files such as `<net>.onnx`; the
    folder "export" of the run if None.

    Next to each file is its card as JSON, and one Markdown card for all files of these weights. A file that misses a
    gate has ".rejected" in its name; an earlier file of that name gets ".older". Raises RecipeError for an unknown net
    or format, PluginError if a package is missing, and KdkitError if a format cannot represent the network or a file
    cannot be written; then nothing is written.
    """
    options = options or ExportOptions()
    names = list(dict.fromkeys([to] if isinstance(to, str) else to))
    if not names:
        raise RecipeError("an export needs the name of a format, such as to='onnx'")
    factories = registry("exporters")
    exporters: dict[str, Exporter] = {name: factories[name]() for name in names}
    for name, exporter in exporters.items():  # all of them first, so that nothing is written if one fails
        if not isinstance(exporter, Exporter):
            raise PluginError(
                f"plugin {factories.plugin(name)!r} registers an exporter {name!r} that is a "
                f"{type(exporter).__name__}; expected a subclass of kdkit.export.Exporter"
            )
        exporter.require()
    weights = user_path(weights)
    chosen = load_net(recipe, weights, net)
    default = (weights if weights.is_dir() else weights.parent) / FOLDER
    folder, files = output_files(default if out is None else user_path(out), chosen.name, exporters)
    summary = folder / f"{file_stem(chosen.name)}.md"
    require_output(summary, OUT)
    for file in files.values():
        file.require_writable()
    source = ExportSource(recipe, chosen, options)
    reference = Reference(source)
    with quiet_packages():
        # All of them before the first is written, because the last format may not represent the network.
        attempts = {name: Attempt.best_of(exporter, reference, weights) for name, exporter in exporters.items()}
    cards = {name: {"format": name, **attempt.card(source)} for name, attempt in attempts.items()}
    results = tuple(files[name].write(attempt.content, cards[name]) for name, attempt in attempts.items())
    write_summary(summary, results[0].card)
    return results


def open_net(
    recipe: Recipe | Callable[[], Recipe], weights: str | Path, *, net: str | None = None
) -> tuple[Model, dict[str, Any]]:
    """Load weights into a net of a recipe, and return a function that runs it on the CPU, and its metadata.

    For programs that run either a file of `export_net` or the net itself.

    weights, net: as for `kdkit.export_net`. The net predicts the validation split, to choose thresholds, and the test
    split. Raises RecipeError for a net that does not exist and for weights that do not match.
    """
    recipe = as_recipe(recipe, "predict")
    weights = user_path(weights)
    source = ExportSource(recipe, load_net(recipe, weights, net), ExportOptions())
    # Not `source.shapes`, which would trace the net to find its dynamic sizes.
    inputs = inputs_of(source, [("batch", *tensor.shape[1:]) for tensor in source.example])
    metadata = {**metadata_of(Reference(source), weights), "inputs": inputs, "precision": "fp32"}

    def model(arrays: Arrays) -> NDArray[np.float32]:
        tensors = [torch.from_numpy(arrays[name]) for name in source.input_names]
        with eval_mode(source.module), torch.no_grad():
            outputs: NDArray[np.float32] = source.module(*tensors).float().numpy()
        return outputs

    return model, metadata
