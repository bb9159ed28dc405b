"""The commands `kdkit check` and `kdkit evaluate`."""

from typing import Any

import click

from kdkit.cli.options import PATH, PRECISION, SEED, TEACHER_CACHE, device_option, net_option
from kdkit.cli.recipe_command import RecipeCommand, file_of, recipe_options
from kdkit.utils.printable import echo


@click.command(cls=RecipeCommand, short_help="Show the plan of a recipe, and every problem.")
@click.argument("file", type=click.Path())
@click.option("--svg", type=PATH, metavar="FILE", help="Also draw the plan as a picture, in this file.")
@click.option(
    "--pairs", is_flag=True, help="Also suggest layers of students and teachers to pair, from up to 128 samples."
)
@device_option("cpu")
@PRECISION
@SEED
@TEACHER_CACHE
@click.pass_context
def check(ctx: click.Context, /, **options: Any) -> None:
    """Show the plan of the recipe in FILE, its cost, and every problem, without training.

        kdkit check recipe.py
        kdkit check recipe.py --svg plan.svg

    Every net runs on a few samples. The plan shows which net learns from which teacher, shapes, parameters, projectors,
    multiply-adds, the time of an epoch, cached teacher outputs, and on CUDA the memory of a step. The exit code is 2 if
    there is a problem. `kdkit check FILE --help` also lists the options of the recipe.
    """
    from kdkit.cli.pairs_table import show_pairs
    from kdkit.cli.plan import show_plan
    from kdkit.cli.plan_svg import draw_plan
    from kdkit.engine.check.check import check as check_recipe
    from kdkit.engine.measurement.layer_pairs import pair_advice
    from kdkit.engine.options import RunOptions
    from kdkit.engine.storage.run_folder import default_path
    from kdkit.utils.console import Status, make_console, print_note
    from kdkit.utils.files import require_output, write_output
    from kdkit.utils.randomness import seed_everything

    file, svg = file_of(ctx), options["svg"]
    if svg is not None:
        require_output(svg, "--svg FILE")
    settings = RunOptions(
        out=default_path(file.path.stem),  # the teacher cache is next to it
        device=options["device"],
        precision=options["precision"],
        seed=options["seed"],
        teacher_cache=options["teacher_cache"],
    )
    device = settings.torch_device()
    seed_everything(settings.seed)  # recipe() gets the same random numbers as in a run
    with Status() as status:
        status.show("preparing the data and the networks")
        recipe = file.make(recipe_options(file, options))
        status.show("checking the recipe")
        plan = check_recipe(recipe, device, precision=settings.precision, estimate=settings).with_seed(settings.seed)
    console = make_console()
    console.width = min(console.width, 100)
    if not plan.problems:  # the problems may be in the data
        summary = str(recipe.data.summary).splitlines()
        for line in (*summary, *recipe.data.notices):
            print_note(console, line)
    show_plan(plan, console, device)
    if svg is not None:
        write_output(svg, draw_plan(plan, file.path.stem), option="--svg FILE")
        echo(f"saved to {svg}")
    plan.require()
    if options["pairs"]:
        with Status() as status:
            status.show("comparing layers")
            advice = pair_advice(recipe, device, settings.precision)
        for pairs in advice:
            show_pairs(pairs, console)
        if not advice:
            console.print("no student has a network as its teacher, so there are no layers to pair")


@click.command(cls=RecipeCommand, short_help="Print the metrics of trained weights.")
@click.argument("file", type=click.Path())
@click.option("--weights", type=PATH, required=True, help="File of weights, or run folder.")
@net_option()
@click.option(
    "--thresholds",
    type=click.Choice(["validation", "run"]),
    default="validation",
    show_default=True,
    help="Fit thresholds on the validation split, or take those of the run, for later data.",
)
@device_option("auto")
@PRECISION
@click.pass_context
def evaluate(ctx: click.Context, /, **options: Any) -> None:
    """Print the metrics of trained weights on the data of the recipe in FILE, without training.

        kdkit evaluate recipe.py --weights runs/first
        kdkit evaluate recipe.py --weights model.safetensors --net teacher
        kdkit evaluate recipe.py --weights runs/first --thresholds run

    Thresholds are fitted on the validation split, or are those of the run. Metrics are computed on the test split if
    there is one. If recipe() splits the data at random, it does so with the seed of the run that wrote the weights.
    """
    from kdkit.data.dataset import Split, reported_split
    from kdkit.engine.check.notices import overlap_notices
    from kdkit.engine.display.tables import results_table
    from kdkit.engine.evaluate import evaluate as evaluate_weights
    from kdkit.engine.evaluate import run_of
    from kdkit.engine.options import RunOptions
    from kdkit.engine.run_record import option_texts
    from kdkit.engine.storage.run_folder import read_record
    from kdkit.recipe.recipe import nets_of
    from kdkit.utils.console import Status, make_console, print_note
    from kdkit.utils.randomness import seed_everything
    from kdkit.utils.read_json import mapping
    from kdkit.utils.reprs import distinct_notes

    file = file_of(ctx)
    settings = RunOptions(device=options["device"], precision=options["precision"])
    weights, thresholds = options["weights"], options["thresholds"]
    run = run_of(weights)
    record = {} if run is None else read_record(run)
    seed_everything(int(record.get("seed", settings.seed)))  # as in the run, because recipe() may split the data
    with Status() as status:
        status.show("preparing the data and the networks")
        arguments = recipe_options(file, options)
        recipe = file.make(arguments)
        status.show("computing the metrics")
        results = evaluate_weights(recipe, weights, net=options["net"], thresholds=thresholds, options=settings)
    data = recipe.data
    name, split = reported_split(data)
    count = f", {len(split):,} samples" if isinstance(split, Split) else ""
    console = make_console()
    console.print(results_table(results, f"{weights} on {name}{count}"))
    notes = [
        *str(data.summary).splitlines(),
        *data.notices,
        *distinct_notes(result.note for result in results.values()),
    ]
    before = mapping(record, "options")
    changed = [f"{key}={before[key]}" for key, text in option_texts(arguments).items() if before.get(key, text) != text]
    if changed:
        notes.append(f"options of the run that wrote the weights were {', '.join(changed)}")
    if record and record.get("data") != data.fingerprint:  # such as another fold
        evaluated = options["net"] or list(recipe.stages[-1].objectives)[-1].name
        is_known = any(net.name == evaluated and len(net.loaded.training_names) for net in nets_of(recipe.stages))
        risk = "" if is_known else "; it may have trained on this split"
        notes += [f"the run that wrote the weights had other data or splits{risk}", *overlap_notices(recipe)]
        if data.task == "multilabel" and thresholds == "validation":
            notes.append("thresholds are fitted on the validation split of this data; --thresholds run takes the run's")
    for note in notes:
        print_note(console, note)
