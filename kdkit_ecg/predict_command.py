"""The command `kdkit predict`."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import click

from kdkit import DataError
from kdkit.utils.files import exists, is_file, require_output, write_output
from kdkit.utils.paths import UserPath
from kdkit.utils.printable import echo
from kdkit_ecg.utils.record_files import CSV_SUFFIX, RECORD_SUFFIXES, SIGNAL_SUFFIXES, UNREAD_FORMATS, kind_of

# The implementation is imported when the command runs: numpy would slow down `kdkit --help`.

# Suffixes of records and networks: a wrong order of arguments must not overwrite a recording.
_REPLACED_NEVER = {*RECORD_SUFFIXES, *SIGNAL_SUFFIXES, *UNREAD_FORMATS, ".onnx", ".pt2"} - {CSV_SUFFIX}
_CSV_START = b"record,refused,predicted,"  # starts a file that this command wrote and may replace
_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json"}


@click.command(short_help="Predict the classes of ECG records.")
@click.argument("model", type=UserPath())
@click.argument("records", metavar="RECORD...", nargs=-1, required=True, type=UserPath())
@click.option(
    "--out",
    type=UserPath(dir_okay=False),
    metavar="FILE",
    help="File to write instead of printing; .csv, .json and .jsonl choose its format.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv"]),
    show_default="by --out, or table",
    help="Format of the output; json has a line for each record.",
)
@click.option(
    "--windows",
    "combine",
    type=click.Choice(["mean", "max", "centre"]),
    default="mean",
    show_default=True,
    help="How to combine the windows of a long record; centre takes the middle window alone.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="HZ",
    help="Sampling rate of files of numbers (.npy, .npz, .csv, .hdf5) in Hz; required for them.",
)
@click.option("--leads", metavar="NAME,...", help="Leads of files of numbers in their order, such as I,II,V1.")
@click.option(
    "--unit",
    metavar="mV|uV|nV|V|NU",
    help="Unit of files of numbers, required unless the net scales leads itself; NU: standard deviations.",
)
@click.option(
    "--signals",
    show_default="tracings",
    metavar="NAME",
    help="Dataset of HDF5 files that has the signals.",
)
@click.option(
    "--jobs", type=click.IntRange(1, 256), metavar="N", show_default="by the usable cores", help="Number of processes."
)
@click.option(
    "--net",
    metavar="NAME",
    show_default="the net trained last",
    help="Name of the net in the recipe, if MODEL is a run.",
)
@click.option(
    "--trust",
    is_flag=True,
    help="Execute the recipe file of a run folder even if it has changed or was not recorded by you.",
)
@click.pass_context
def predict(ctx: click.Context, /, model: Path, records: tuple[Path, ...], **options: Any) -> int:
    """Predict classes or numbers of ECG records with MODEL: an export of kdkit (.onnx, .pt2), or the folder of a run.

        kdkit predict student.onnx records --out predictions.csv
        kdkit predict runs/first ecg.csv --rate 500 --leads I,II,V1 --unit mV

    RECORD is a WFDB record, a DICOM, XML (GE MUSE, HL7 aECG) or EDF file, an array (.npy, .npz, .csv, .hdf5, with
    --rate and --leads), or a folder, which is searched. Records may have any rate and order of leads. A record that is
    refused gets a row with the reason, and the exit code is then 1.
    """
    from kdkit.utils.console import Status
    from kdkit.utils.reprs import describe_count
    from kdkit_ecg.predict.output import csv_lines, json_lines, table_lines

    out: Path | None = options["out"]
    if out is not None:
        _require_no_input(out, (model, *records))
        require_output(out)
    if options["rate"] is None and (options["leads"] or options["unit"] or options["signals"]):
        raise click.UsageError("--leads, --unit and --signals describe files of numbers, which need --rate too")
    form = options["form"] or _FORMATS.get(out.suffix.lower() if out else "", "table")
    count, refused, arrays = 0, 0, None

    def counted(predictions: Iterable[Any]) -> Iterator[Any]:
        nonlocal count, refused
        for prediction in predictions:
            count += 1
            refused += prediction.reason is not None
            yield prediction

    with Status() as status:
        status.show("opening the network", terminal_only=True)
        predictor = _predictor(ctx, model, options)
        if options["rate"] is not None:
            leads = [name.strip() for name in options["leads"].split(",")] if options["leads"] else []
            array_options = {name: options[name] for name in ("rate", "unit", "signals") if options[name] is not None}
            arrays = predictor.array_format(leads=leads, **array_options)
        status.show("predicting", terminal_only=True)
        predictions = predictor.predict_all(records, arrays=arrays, processes=options["jobs"])
        first = next(predictions, None)
    if first is None:
        names = " and ".join(map(str, records))
        raise DataError(
            f"no record in {names}; expected WFDB, DICOM, XML or EDF files, or files of numbers with --rate"
        )
    predictions = counted(chain([first], predictions))
    if form == "table":
        lines = table_lines(predictions, predictor)
    else:
        lines = json_lines(predictions) if form == "json" else csv_lines(predictions, predictor)
    if out is None:
        for line in lines:
            echo(line)
        return int(refused > 0)
    text = "".join(f"{line}\n" for line in lines)
    write_output(out, text)
    counts = f"{describe_count(count, 'record')}: {count - refused:,} predicted, {refused:,} refused"
    echo(f"{counts}; saved to {out}", err=True)
    return int(refused > 0)


def _require_no_input(out: Path, inputs: Sequence[Path]) -> None:
    """Raise UsageError if the output would replace a record, its signal, or a network."""
    is_input = kind_of(out) in _REPLACED_NEVER or any(
        exists(out) and exists(path) and out.samefile(path) for path in inputs
    )
    if is_input:
        raise click.UsageError(f"--out {out} has the name of a record or of a network; choose a .csv or .json file")
    # A record in one of the folders, or their table of labels, may be a CSV file too.
    if out.suffix.lower() == ".csv" and is_file(out):
        with out.open("rb") as file:
            start = file.read(len(_CSV_START))
        if start not in (b"", _CSV_START):
            raise click.UsageError(f"--out {out} exists, and has no predictions; choose another name, or delete it")


def _predictor(ctx: click.Context, model: Path, options: dict[str, Any]) -> Any:
    """Open a file or the folder of a run."""
    from kdkit_ecg.predict import Predictor

    if model.stem.endswith(".rejected"):
        echo(f"warning: {model} has missed a gate of its export; its card has the figures", err=True)
    if model.stem.endswith(".older"):
        echo(f"warning: {model} is from an earlier export than the rejected file next to it", err=True)
    if not model.is_dir():
        if options["net"] is not None or options["trust"]:
            raise click.UsageError(f"--net and --trust are for the folder of a run, but {model} is not one")
        return Predictor(model, combine=options["combine"])
    exported = sorted(str(file) for file in model.iterdir() if file.suffix.lower() in (".onnx", ".pt2"))
    if exported and not (model / "run.json").is_file():
        raise DataError(f"{model} is a folder of exported files, not a run; give one of them: {', '.join(exported)}")
    from kdkit.cli.repeat import recorded_recipe
    from kdkit.utils.randomness import seed_everything

    file, arguments, seed = recorded_recipe(model, ctx, trust=options["trust"])
    seed_everything(seed)  # as in the run, because recipe() may split the data
    return Predictor.from_run(file.make(arguments), model, net=options["net"], combine=options["combine"])
