"""Compute the metrics of trained weights on the data of a recipe, without training."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdkit.data.device_data import DeviceData
from kdkit.engine.distributed.process_group import rank_device
from kdkit.engine.failures.out_of_memory import explain_out_of_memory
from kdkit.engine.options import RunOptions
from kdkit.engine.predict import Predictor, compute_metrics
from kdkit.errors import RecipeError, did_you_mean
from kdkit.metrics.base import MetricResult
from kdkit.nets.net import Net, conflict_of_classes
from kdkit.nets.weights import load_weights
from kdkit.recipe.recipe import Recipe, as_recipe, nets_of
from kdkit.utils.devices import default_modes
from kdkit.utils.randomness import exclusive_rng_state, seed_everything
from kdkit.utils.seeds import SeedPurpose, derive_seed
from kdkit.utils.user_paths import user_path


@default_modes()
@exclusive_rng_state()
def evaluate(
    recipe: Recipe | Callable[[], Recipe],
    weights: str | Path,
    *,
    net: str | None = None,
    options: RunOptions | None = None,
) -> Mapping[str, MetricResult]:
    """Load weights into a net of a recipe, and return its metrics by name.

    recipe: a Recipe, or a function that returns one, as for `run`.
    weights: a file of weights, or the folder of a run, as for `Net`. net: the name of the net in the recipe; None for
    the one that is trained last. options: only device, precision and seed are used; None for the defaults. The seed is
    that of the run, because the recipe may split the data at random.
    Thresholds are fitted on the validation split. Metrics are computed on the test split, or on the validation split if
    there is none. Raises RecipeError if there is no such net, or if the weights do not fit.
    """
    options = options or RunOptions()
    if not isinstance(recipe, Recipe):
        seed_everything(options.seed)  # as in a run
    recipe = as_recipe(recipe, "evaluate")
    chosen = load_net(recipe, user_path(weights), net)
    device = rank_device(options.torch_device())
    chosen.move_to(device)
    data = recipe.data
    loader = DeviceData(device, share=0.0, draws=data.draws, passes=1)
    predictor = Predictor(data, loader, options.precision, recipe.metrics)
    batch_size = recipe.stages[-1].training.batch_size
    # If data or the network draw random numbers, they are those of the run.
    seed_everything(derive_seed(options.seed, nets_of(recipe.stages).index(chosen), SeedPurpose.EVALUATION, 0))
    with explain_out_of_memory(recipe.stages[-1], data.validation, options, device, trains=False):
        predictions = predictor.predict_splits(chosen, batch_size=batch_size)
    return compute_metrics(recipe.metrics, *predictions)


def load_net(recipe: Recipe, weights: Path, name: str | None) -> Net[Any]:
    """Load weights into a net of a recipe, and return the net. name: None for the one that is trained last.

    Raises RecipeError if there is no such net, or if the weights or the classes of their run do not fit.
    """
    nets = {candidate.name: candidate for candidate in nets_of(recipe.stages)}
    name = list(recipe.stages[-1].objectives)[-1].name if name is None else name
    if name not in nets:
        raise RecipeError(f"the recipe has no net {name!r}; {did_you_mean(name, nets)}")
    chosen = nets[name]
    loaded = load_weights(chosen.network, weights, name)
    chosen.weights_note, chosen.weights_classes = loaded.note, loaded.classes
    conflict = conflict_of_classes(chosen, recipe.data.classes)
    if conflict:
        raise RecipeError(
            f"{conflict}; give the data the classes of the run, in their order, or pass them as Net(..., classes=[...])"
        )
    return chosen
