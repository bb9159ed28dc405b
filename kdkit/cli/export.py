"""The command `kdkit export`."""

from pathlib import Path
from typing import Any

import click

from kdkit.cli.options import PATH, TRUST, net_option
from kdkit.utils.printable import echo

_INPUTS = {"real": "real inputs", "random": "random inputs", "other sizes": "inputs of other sizes"}
_FORMATS = ("onnx", "onnx-int8", "pt2", "executorch", "litert")


@click.command(
    short_help="Export a trained net for deployment, and check the file.",
    context_settings={"ignore_unknown_options": True},  # they are options of the recipe
)
@click.argument("folder", type=PATH, metavar="RUN")
@click.argument("recipe_options", nargs=-1, type=click.UNPROCESSED, metavar="[RECIPE OPTIONS]...")
@click.option(
    "--to",
    "formats",
    multiple=True,
    default=("onnx",),
    show_default=True,
    metavar="NAME",
    help=f"Format: {', '.join(_FORMATS)}, or an exporter of a plugin; may be repeated.",
    # Without exporters of plugins, because loading plugins imports torch.
    shell_complete=lambda _ctx, _param, incomplete: [name for name in _FORMATS if name.startswith(incomplete)],
)
@click.option("--out", type=PATH, show_default="RUN/export", help="File to write, or folder of several files.")
@net_option()
@click.option(
    "--points",
    default=0.5,
    show_default=True,
    metavar="POINTS",
    help="How much worse each metric on the test split may be, in points (hundredths).",
)
@click.option(
    "--tolerance",
    type=float,
    metavar="NUMBER",
    show_default="depends on the format",
    help="Largest allowed difference between outputs of the file and of the net.",
)
@click.option(
    "--calibration",
    default=256,
    show_default=True,
    metavar="N",
    help="Number of training samples used to choose the ranges of int8 values.",
)
@click.option(
    "--finish-epochs",
    default=3,
    show_default=True,
    metavar="N",
    help="Epochs of training on outputs of the net, for an int8 net that misses its gate; 0: none.",
)
@TRUST
@click.pass_context
def export(ctx: click.Context, /, **options: Any) -> int:
    """Export a net of the finished run in RUN for deployment, and check the file.

        kdkit export runs/first
        kdkit export runs/first --to onnx-int8 --points 1
        kdkit export runs/first --data elsewhere

    RECIPE OPTIONS are options of the recipe, and override the recorded ones, such as the path of data that has moved.

    The file must pass two gates: its outputs equal those of the net within --tolerance, and its metrics on the test
    split are at most --points worse. If it misses one, its name contains "rejected", and the exit code is 1. A card
    next to each file lists sizes, times and scores.
    """
    from kdkit.cli.repeat import recorded_recipe
    from kdkit.export.card import FOLDER, summary_rows
    from kdkit.export.export import export_net
    from kdkit.export.options import ExportOptions
    from kdkit.recipe.recipe import nets_of
    from kdkit.utils.console import Status
    from kdkit.utils.files import require_output_folder
    from kdkit.utils.randomness import seed_everything

    settings = ExportOptions(
        points=options["points"],
        tolerance=options["tolerance"],
        calibration=options["calibration"],
        finish_epochs=options["finish_epochs"],
    )
    folder: Path = options["folder"]
    if str(folder).startswith("-"):
        raise click.UsageError(
            f"RUN comes before {folder}, which is no option of this command: kdkit export RUN {folder}"
        )
    # Checked before the recipe, which may prepare data for a long time, determines the names of the files.
    require_output_folder(options["out"] or folder / FOLDER, "--out PATH")
    file, arguments, seed = recorded_recipe(folder, ctx, options["recipe_options"], trust=options["trust"])
    with Status() as status:
        status.show("preparing the data and the networks")
        seed_everything(seed)  # as in the run, because recipe() may split the data
        recipe = file.make(arguments)
        status.show(f"exporting to {', '.join(options['formats'])}")
        results = export_net(
            recipe, folder, to=options["formats"], net=options["net"], out=options["out"], options=settings
        )
    for net in nets_of(recipe.stages):
        if net.weights_note:  # for example, that a stage is not finished
            echo(f"note: {net.weights_note}", err=True)
    titles, *rows = summary_rows([result.card for result in results])
    for result, row in zip(results, rows, strict=True):
        echo(f"{result.path}: {'passed its gates' if result.passed else 'MISSED A GATE'}")
        for title, cell in [*zip(titles, row, strict=True)][3:]:
            echo(f"  {title}: {cell}")
        for line in failures(result.card):
            echo(f"  {line}")
        for notice in result.card["notices"]:
            echo(f"  note: {notice}")
    return int(not all(result.passed for result in results))


def failures(card: Any) -> list[str]:
    """Return a line for each value of a card that misses a gate, with the expected and the actual value."""
    numeric, metric = card["numeric_gate"], card["metric_gate"]
    lines = []
    if not numeric["passed"]:
        lines += [
            f"outputs for {_INPUTS[kind]} differ by {value:.3g}, expected at most {numeric['tolerance']:g}"
            for kind, value in numeric["largest_differences"].items()
            if not value <= numeric["tolerance"]
        ]
    lines += [
        f"{name} is {score['export']:.4g}, but {score['network']:.4g} for the net: {score['points_lost']:.2f} points "
        f"worse, expected at most {metric['points']:g}"
        for name, score in metric["scores"].items()
        if not score["points_lost"] <= metric["points"]
    ]
    return lines
