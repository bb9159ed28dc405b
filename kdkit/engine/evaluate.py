"""Compute the metrics of trained weights on the data of a recipe, without training."""

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from kdkit.data.dataset import reported_split
from kdkit.data.device_data import DeviceData
from kdkit.engine.distributed.process_group import rank_device
from kdkit.engine.failures.out_of_memory import explain_out_of_memory
from kdkit.engine.options import RunOptions
from kdkit.engine.predict import Predictor, add_note, compute_metrics, note_on_classes
from kdkit.engine.storage.finished_run import read_metrics, read_net_report
from kdkit.engine.storage.run_files import RECORD
from kdkit.errors import RecipeError, did_you_mean
from kdkit.metrics.base import MetricResult, Predictions
from kdkit.nets.net import NAME_CLASSES, Net, conflict_of_classes, conflict_of_inputs
from kdkit.nets.weights import find_weights, load_weights, names_in_run
from kdkit.recipe.recipe import Recipe, as_recipe, nets_of
from kdkit.utils.devices import default_modes
from kdkit.utils.files import is_file
from kdkit.utils.paths import user_path
from kdkit.utils.randomness import exclusive_rng_state, seed_everything
from kdkit.utils.reprs import describe_names
from kdkit.utils.seeds import SeedPurpose, derive_seed
from kdkit.utils.validation import validate_choice


@default_modes()
@exclusive_rng_state()
def evaluate(
    recipe: Recipe | Callable[[], Recipe],
    weights: str | Path,
    *,
    net: str | None = None,
    thresholds: Literal["validation", "run"] = "validation",
    options: RunOptions | None = None,
) -> Mapping[str, MetricResult]:
    """Load weights into a net of a recipe, and return its metrics by name.

    recipe: a Recipe, or a function that returns one, as for `run`.
    weights: a file of weights, or the folder of a run, as for `Net`. net: the name of the net in the recipe; None for
    the one that is trained last. options: only device, precision and seed are used; None for the defaults. The seed is
    that of the run, because the recipe may split the data at random.
    thresholds: "validation" fits them on the validation split of this data. "run" takes those of the run in `weights`,
    by the predictions for its validation split, and needs no validation split here: for later data.
    Metrics are computed on the test split, or on the validation split if there is none. Raises RecipeError if there is
    no such net, or if the weights do not fit, and RunFolderError if there is no run, or it is not finished.
    """
    options = options or RunOptions()
    validate_choice("thresholds", thresholds, Literal["validation", "run"])
    if not isinstance(recipe, Recipe):
        seed_everything(options.seed)  # as in a run
    recipe = as_recipe(recipe, "evaluate")
    weights = user_path(weights)
    chosen = load_net(recipe, weights, net)
    of_run = _validation_of_run(weights, chosen) if thresholds == "run" else None
    device = rank_device(options.torch_device())
    chosen.move_to(device)
    data = recipe.data
    loader = DeviceData(device, share=0.0, draws=data.draws, passes=1)
    predictor = Predictor(data, loader, options.precision, recipe.metrics)
    batch_size = recipe.stages[-1].training.batch_size
    # If data or the network draw random numbers, they are those of the run.
    seed_everything(derive_seed(options.seed, nets_of(recipe.stages).index(chosen), SeedPurpose.EVALUATION, 0))
    _, split = reported_split(data)
    with explain_out_of_memory(recipe.stages[-1], split, options, device, trains=False):
        if of_run is None:
            validation, predictions = predictor.predict_splits(chosen, batch_size=batch_size)
        else:
            validation, predictions = of_run, predictor.predict(chosen, split, batch_size=batch_size)
    if predictions.classes != validation.classes:
        raise RecipeError(
            f"the thresholds of the run are for the classes {describe_names(validation.classes)}, but the predictions "
            f"for the data have {describe_names(predictions.classes)}; give the data the classes of the run"
        )
    results = compute_metrics(recipe.metrics, validation, predictions)
    if note := note_on_classes(chosen, data, predictions):
        add_note(results, note)
    return results


def _validation_of_run(weights: Path, net: Net[Any]) -> Predictions:
    """Return the predictions of a net for the validation split of the run with these weights."""
    run = run_of(weights)
    if run is None:
        raise RecipeError(f"thresholds of the run need weights in the folder of a run, but {weights} is not in one")
    evaluated = read_metrics(run).results
    names = names_in_run(find_weights(weights, net.name, None).path)  # the net may have another name here
    name = next((name for name in names if name in evaluated), net.name)
    return read_net_report(run, name).validation


def run_of(weights: Path) -> Path | None:
    """Return the folder of the run with these weights, which may be a folder or a file in it; None for other files."""
    with suppress(OSError):  # such as a name that is too long, which is explained when the weights are read
        folders = (weights, *weights.absolute().parents[:2])
        return next((folder for folder in folders if is_file(folder / RECORD)), None)
    return None


def load_net(recipe: Recipe, weights: Path, name: str | None) -> Net[Any]:
    """Load weights into a net of a recipe, and return the net. name: None for the one that is trained last.

    Raises RecipeError if there is no such net, or if the weights or the classes of their run do not fit.
    """
    nets = {candidate.name: candidate for candidate in nets_of(recipe.stages)}
    name = list(recipe.stages[-1].objectives)[-1].name if name is None else name
    if name not in nets:
        raise RecipeError(f"the recipe has no net {name!r}; {did_you_mean(name, nets)}")
    chosen = nets[name]
    chosen.loaded = load_weights(chosen.network, weights, name)
    conflict = conflict_of_classes(chosen, recipe.data.classes)
    if conflict:
        raise RecipeError(f"{conflict}; {NAME_CLASSES}, or give the data the classes of the run")
    difference = conflict_of_inputs(chosen, recipe.data.preparation)
    if difference:
        warnings.warn(difference, stacklevel=5)  # of the caller of `evaluate`, which has two decorators
    return chosen
