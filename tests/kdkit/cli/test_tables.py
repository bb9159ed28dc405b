"""Tests of what commands print: the width of lists and tables, and JSON."""

import json
import re
from dataclasses import replace

import pytest

from kdkit.cli.per_class import table_of
from kdkit.cli.sweep_table import distillation_table
from kdkit.engine.display.tables import describe_difference, results_table
from kdkit.metrics.base import MetricResult
from kdkit.metrics.comparison import Comparison
from kdkit.metrics.paired import Difference
from kdkit.metrics.per_class import FIGURES, ClassRow
from kdkit.plugins.events import BaselineDifference
from kdkit.study.sweep_results import CellResults, SweepResults
from kdkit.utils.console import PrintableConsole, make_console


@pytest.mark.parametrize("columns", ["80", "100", "300"])
def test_a_piped_list_has_a_line_for_each_entry_of_at_most_100_columns(columns, kdkit_process):
    listed = kdkit_process("list", COLUMNS=columns)
    assert listed.code == 0, listed.err
    lines = listed.out.splitlines()
    assert max(map(len, lines)) <= 100
    assert not [line for line in lines if line != line.rstrip()]
    names = [line.split()[0] for line in lines if line]
    everything = json.loads(kdkit_process("list", "--json").out)
    expected = [[kind, *(entry["name"] for entry in entries)] for kind, entries in everything.items()]
    assert names == [name for kind in expected for name in kind]


def test_the_json_of_a_list_has_whole_descriptions_and_what_a_file_registers(kdkit_here, tmp_path):
    description = "long words " * 30 + "end."
    (tmp_path / "mine.py").write_text(
        f"import kdkit\n\ndef my_loss(student, target):\n    '''{description}'''\n\n"
        "@kdkit.hookimpl\ndef register_losses(register):\n    register('my_loss', my_loss)\n\n"
        "def recipe(): ...\n"
    )
    losses = json.loads(kdkit_here("list", "mine.py", "--json").out)["losses"]
    (entry,) = [entry for entry in losses if entry["name"] == "my_loss"]
    assert entry == {"name": "my_loss", "plugin": "mine.py", "description": description}
    line = next(line for line in kdkit_here("list", "mine.py").out.splitlines() if line.startswith("my_loss"))
    assert line.endswith(" ...")


# of samples at thresholds by F1 or by sensitivity, and of pixels
@pytest.mark.parametrize("missing", [{"iou", "specificity"}, {"iou", "f1"}, {"auroc", "auprc", "specificity"}])
@pytest.mark.parametrize("width", [20, 40, 80, 100, 120, 160])
def test_no_number_of_a_table_of_classes_is_cut(width, missing, capsys):
    figures = [name for name in FIGURES if name not in missing]
    values = dict.fromkeys(figures, 0.987), dict.fromkeys(figures, (0.876, 1.0))
    counts = {"train": 12345, "validation": 1234, "test": 2345}
    name = "left anterior fascicular block"
    row = ClassRow(name=name, positives=counts, threshold=0.3, figures=values[0], intervals=values[1])
    PrintableConsole(width=width, highlight=False).print(table_of((row,), "student, on test", width))
    out = capsys.readouterr().out
    # A terminal that is too small wraps the lines, which loses nothing.
    assert max(map(len, out.splitlines())) <= (width if width >= 80 else 120)
    assert "…" not in out
    assert len(re.findall(r"0\.99", out)) == len(figures)
    assert len(re.findall(r"0?\.88-1\.00", out)) == len(figures)
    for number in ("12,345", "1,234", "2,345"):
        assert number in out
    for word in name.split():
        assert word in out


def test_no_name_of_a_table_of_differences_is_cut_at_120_columns(capsys):
    differences = [
        Difference(value=-0.0104, interval=(-0.1042, 0.0938), level=0.99, pairs=pairs, lower_is_better=False)
        for pairs in (3, 597)
    ]
    values, options = {seed: 0.1042 for seed in range(3)}, {"method": "attention_transfer"}
    cell = CellResults(
        label="method=attention_transfer",
        options=options,
        metrics={"macro_auprc": values},
        validation=values,
        alone={"macro_auprc": values},
        distillation=Comparison(seeds=differences[0], samples=differences[1]),
    )
    results = SweepResults(cells=(cell,), metric="macro_auprc", best=0, reported_on="test", level=0.99)
    PrintableConsole(width=120, highlight=False).print(distillation_table(results))
    out = capsys.readouterr().out
    assert "…" not in out
    assert "distinguishable" in out
    cells = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert "".join(cells) == "method=attention_transfer"


@pytest.mark.parametrize(
    ("metric", "expected"), [("mae", "mae 0.0002 against 0.0003 alone, -0.0001 ("), ("brier", "alone, -0.01 points (")]
)
def test_an_error_in_a_unit_is_not_compared_in_points(metric, expected):
    names = {"student": "student", "baseline": "student-alone", "metric": metric, "lower_is_better": True}
    difference = BaselineDifference(**names, value=-1e-4, interval=(-2e-4, 1e-4), level=0.95, verdict="better")
    values = {"student": {metric: MetricResult(value=2e-4)}, "student-alone": {metric: MetricResult(value=3e-4)}}
    assert expected in describe_difference(difference, values)


def test_an_interval_that_is_undefined_is_left_out(capsys):
    nan = (float("nan"), float("nan"))
    result = MetricResult(value=0.5, interval=nan)
    names = {"student": "student", "baseline": "student-alone", "metric": "accuracy", "lower_is_better": False}
    difference = BaselineDifference(**names, value=0.0, interval=nan, level=0.95, verdict="not distinguishable")
    text = describe_difference(difference, {net: {"accuracy": result} for net in ("student", "student-alone")})
    assert text.endswith(" (no interval): not distinguishable in this run")
    row = ClassRow(name="a", positives={}, threshold=None, figures={"recall": 0.5}, intervals={"recall": nan})
    samples = Difference(value=0.1, interval=nan, level=0.95, pairs=1, lower_is_better=False)
    values = {"accuracy": {0: 0.5}}
    compared = CellResults(
        label="",
        options={},
        metrics=values,
        validation=values["accuracy"],
        alone=values,
        distillation=Comparison(seeds=None, samples=samples),
    )
    results = SweepResults(cells=(compared,), metric="accuracy", best=0, reported_on="test", level=0.95)
    tables = (results_table({"accuracy": result}, "student"), table_of((row,), "student, on test", 80))
    for table in (*tables, distillation_table(results)):
        PrintableConsole(width=80).print(table)
    out = capsys.readouterr().out
    assert out.count("0.5") >= 2
    assert "nan" not in out


def test_combinations_with_a_run_without_a_value_are_named_because_they_cannot_be_the_best():
    nan = float("nan")
    cells = tuple(
        CellResults(label=f"width={width}", options={"width": width}, metrics={"r2": values}, validation=values)
        for width, values in ((4, {0: 0.5, 1: 0.6}), (8, {0: 0.9, 1: nan}))
    )
    results = SweepResults(cells=cells, metric="r2", best=0, reported_on="test", level=0.95)
    assert "r2 is undefined on the validation split in a run of 'width=8', so the best is chosen" in results.notes()[0]
    assert not any("undefined" in note for note in replace(results, cells=cells[:1]).notes())


def test_a_console_without_a_terminal_prints_no_spaces_at_the_end_of_lines(capsys):
    console = make_console()
    console.print("a  \nb", justify="left")
    console.print("no end", end=" ")
    console.print("of a line")
    assert capsys.readouterr().out == "a\nb\nno end of a line\n"
