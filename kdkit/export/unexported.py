"""A net of a run with the metadata that its export would have, for programs that accept both."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdkit.engine.evaluate import load_net
from kdkit.export.base import Arrays, Model
from kdkit.export.gates import Reference
from kdkit.export.metadata import inputs_of, metadata_of
from kdkit.export.options import ExportOptions
from kdkit.export.source import ExportSource
from kdkit.recipe.recipe import Recipe, as_recipe
from kdkit.utils.modules import eval_mode
from kdkit.utils.paths import user_path


def open_net(
    recipe: Recipe | Callable[[], Recipe], weights: str | Path, *, net: str | None = None
) -> tuple[Model, dict[str, Any]]:
    """Load weights into a net of a recipe, and return a function that runs it on the CPU, and its metadata.

    weights, net: as for `kdkit.export_net`. The net predicts the validation split, to choose thresholds, and the test
    split. Raises RecipeError for a net that does not exist and for weights that do not match.
    """
    recipe = as_recipe(recipe, "predict")
    weights = user_path(weights)
    source = ExportSource(recipe, load_net(recipe, weights, net), ExportOptions())
    # Not `source.shapes`, which would trace the net to find its dynamic sizes.
    inputs = inputs_of(source, [("batch", *tensor.shape[1:]) for tensor in source.example])
    metadata = {**metadata_of(source, Reference(source), weights), "inputs": inputs, "precision": "fp32"}

    def model(arrays: Arrays) -> NDArray[np.float32]:
        tensors = [torch.from_numpy(arrays[name]) for name in source.input_names]
        with eval_mode(source.module), torch.no_grad():
            outputs: NDArray[np.float32] = source.module(*tensors).float().numpy()
        return outputs

    return model, metadata
