"""The tables and the ladders of LRH-Net, as small as they can be: every row, each file, and what a second call does."""

import csv
import importlib
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from kdkit import MetricResult, RecipeError
from kdkit_ecg import make_folds

TINY = ("--size", "tiny", "--folds", "0", "--seeds", "0")
ROWS = ("teacher", "cnn1d", "alone", "kd", "fitnet", "pskd", "cross_layer", "smlkd", "pmlkd")

pytest.importorskip("matplotlib")


def call(script: str, *args: object):
    result = CliRunner().invoke(
        importlib.import_module(f"reproductions.lrhnet.{script}").main, [str(each) for each in args]
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """All rows at three leads, once."""
    folder = tmp_path_factory.mktemp("study")
    result = call("run_tables", *TINY, "--leads", "3", "--out", folder)
    assert result.exit_code == 0, result.output
    return folder, result.output


def lines(file: Path) -> list[dict[str, str]]:
    with file.open() as open_file:
        return list(csv.DictReader(open_file))


def test_every_row_is_trained_and_a_teacher_once(tables):
    folder, said = tables
    told = [line.split()[1] for line in said.splitlines() if line.startswith("[")]
    assert sorted(told) == sorted(["teacher-12-fold0-seed0", *(f"{row}-3-fold0-seed0" for row in (*ROWS, "assistant"))])
    assert told.index("assistant-3-fold0-seed0") < told.index("smlkd-3-fold0-seed0")
    assert all((folder / name / "trial.json").exists() for name in told)


def test_a_second_call_trains_nothing_and_tells_the_same(tables):
    folder, _ = tables
    before = (folder / "tables.csv").read_text()
    result = call("run_tables", *TINY, "--leads", "3", "--out", folder)
    assert result.exit_code == 0
    states = {line.split()[2].strip(",") for line in result.output.splitlines() if line.startswith("[")}
    assert states == {"skipped"}
    assert (folder / "tables.csv").read_text() == before


def test_two_jobs_make_the_same_tables_as_one(tmp_path):
    rows = ("--rows", "teacher,alone,kd", "--leads", "3")
    for jobs in (1, 2):
        assert call("run_tables", *TINY, *rows, "--out", tmp_path / str(jobs), "--jobs", jobs).exit_code == 0
    one, two = ((tmp_path / str(jobs) / "tables.csv").read_text() for jobs in (1, 2))
    assert one == two


def test_the_tables_stand_beside_the_papers_figures(tables):
    folder, _ = tables
    found = lines(folder / "tables.csv")
    assert {line["table"] for line in found} == {"Table 1", "Table 2", "Table 3"}
    smlkd = {line["score"]: line for line in found if line["model"] == "+ S-MLKD"}
    assert [float(smlkd[score]["paper"]) for score in ("challenge_metric", "macro_f1", "micro_f1")] == [
        60.39,
        56.38,
        73.44,
    ]
    assert all(math.isfinite(float(line["mean"])) and line["runs"] == "1" for line in found)
    page = (folder / "tables.md").read_text()
    assert "(60.39)" in page
    assert "Simulated records" in page
    assert "24 records to learn from" in page
    assert "python -m reproductions.lrhnet.run_tables --size tiny --folds 0 --seeds 0 --leads 3" in page
    assert str(folder) not in page


def test_each_markdown_table_has_as_many_cells_in_every_row(tables):
    for block in (tables[0] / "tables.md").read_text().split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1


def test_the_latex_has_a_cell_for_every_column(tables):
    text = (tables[0] / "tables.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 3
    rows = [line for line in text.splitlines() if line.startswith(("LRH-Net", "SE-ResNet", "+"))]
    assert {row.count("&") for row in rows} == {3}
    assert all(row.endswith(r"\\") for row in rows)


def test_verdicts_over_one_run_rest_on_its_records_and_say_so(tables):
    folder, _ = tables
    found = lines(folder / "verdicts.csv")
    assert {line["over"] for line in found} == {"9 records of one run"}
    assert {line["verdict"] for line in found} <= {"better", "worse", "not distinguishable"}
    assert len(found) == 6 + 5  # all against LRH-Net alone, and all but itself against vanilla KD
    assert "not of other seeds" in (folder / "tables.md").read_text()


def test_the_plot_is_there_in_both_forms(tables):
    folder, _ = tables
    assert (folder / "figure4.png").read_bytes().startswith(b"\x89PNG")
    assert ET.parse(folder / "figure4.svg").getroot().tag.endswith("svg")


def test_costs_are_those_of_the_nets(tables):
    found = {line["model"]: line for line in lines(tables[0] / "costs.csv")}
    assert set(found) == {"SE-ResNet", "1D-CNN", "LRH-Net"}
    assert all(float(line["milliseconds"]) > 0 for line in found.values())
    assert all(int(line["file_bytes"]) > 4 * int(line["parameters"]) for line in found.values())
    assert found["LRH-Net"]["published"] == "83364"


def test_what_is_refused_stands_in_no_table(tables, tmp_path):
    folder, _ = tables
    result = call(
        "run_tables",
        *TINY,
        "--leads",
        "3",
        "--rows",
        "alone",
        "--epochs",
        "2",
        "--out",
        folder,
        "--report",
        tmp_path,
    )
    assert result.exit_code == 1
    assert "differs in its options" in result.output
    assert {line["mean"] for line in lines(tmp_path / "tables.csv")} == {""}


def test_without_matplotlib_nothing_is_trained(tmp_path, monkeypatch):
    from reproductions.lrhnet import plots

    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda _: None)
    result = call("run_tables", *TINY, "--rows", "alone", "--leads", "2", "--out", tmp_path)
    assert result.exit_code != 0
    assert "kdkit[plots]" in result.output
    assert not list(tmp_path.glob("alone*"))


def test_a_dry_run_lists_the_cells_and_runs_none(tmp_path):
    result = call("run_tables", *TINY, "--rows", "smlkd", "--leads", "2", "--out", tmp_path / "none", "--dry-run")
    assert "smlkd-2-fold0-seed0  after teacher-12-fold0-seed0, assistant-2-fold0-seed0" in result.output
    assert "3 of 3 cells to train" in result.output
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("run_tables", "--rows", "kds"), "did you mean 'kd'?"),
        (("run_tables", "--leads", "two"), "values with commas"),
        (("run_ladder", "--ladders", "2-12"), "a ladder goes down"),
        (("run_ladder", "--ladders", "12-5"), "none of 5"),
        (("run_ladder", "--ladders", "all"), "numbers of leads"),
    ],
)
def test_what_cannot_be_asked_for_is_said(tmp_path, args, said):
    result = call(*args, "--out", tmp_path)
    assert result.exit_code != 0
    assert said in result.output


def test_real_records_are_few_and_the_page_says_so(shared, tmp_path):
    data = shared / "ecg" / "cpsc_2018_extra"
    result = call("run_tables", *TINY, "--rows", "alone,kd", "--leads", "2", "--data", data, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "tables.md").read_text()
    assert "**The data is small**" in page
    assert "--data DIR" in page
    assert str(shared) not in page


def test_a_ladder_tells_scores_by_rungs_and_the_gap_of_each_disease(tmp_path):
    result = call("run_ladder", *TINY, "--ladders", "12-2,12-3-2", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    told = [line.split()[1] for line in result.output.splitlines() if line.startswith("[")]
    assert told.count("rung-12-fold0-seed0") == told.count("student-2-of-12-fold0-seed0") == 1
    found = lines(tmp_path / "ladder.csv")
    rungs = {name: {line["rungs"] for line in found if line["ladder"] == name} for name in ("12-2", "12-3-2")}
    assert rungs == {"12-2": {"0", "1", "2"}, "12-3-2": {"0", "1", "2", "3"}}
    gaps = lines(tmp_path / "gaps.csv")
    for line in gaps:
        assert float(line["gap_to_top"]) == pytest.approx(float(line["top_rung"]) - float(line["student"]), abs=1e-3)
    assert "Each disease's gap" in (tmp_path / "ladder.md").read_text()
    for stem in ("score-challenge_metric", "score-macro_auprc", "gaps"):
        assert (tmp_path / f"{stem}.png").stat().st_size > 0
        assert ET.parse(tmp_path / f"{stem}.svg").getroot().tag.endswith("svg")


def test_rungs_of_fewer_leads_do_not_teach_a_student():
    from reproductions.lrhnet import grid as plan
    from reproductions.lrhnet import lead_ladder as ladder

    shared = {"data": None, "size": "tiny", "preset": "corrected", "folds": None, "epochs": None}
    ladders = ladder.Ladders(ladders=[(12, 3, 2)], leads=(3,), runs=[plan.Run(0, 0)], shared=shared)
    assert [trial.name.split("-fold")[0] for trial in ladders.trials()] == [
        "rung-12",
        "rung-12-3",
        "student-3-of-none",
        "student-3-of-12",
        "student-3-of-12-3",
    ]


class Told:
    """What is asked of a study, with made-up figures by cell."""

    def __init__(self, figures):
        self.figures = figures

    def metrics(self, name):
        return {"net": {"macro_f1": MetricResult(value=self.figures[name])}}


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ((0.60, 0.62, 0.61), (0.50, 0.52, 0.512), "better"),
        ((0.50, 0.52, 0.512), (0.60, 0.62, 0.61), "worse"),
        ((0.60, 0.40, 0.50), (0.50, 0.52, 0.51), "not distinguishable"),
    ],
)
def test_runs_are_compared_in_pairs(ours, theirs, verdict):
    from reproductions.lrhnet import comparisons as pairs
    from reproductions.lrhnet import grid as plan

    runs = [plan.Run(0, seed) for seed in range(3)]
    study = Told({f"{who}{at.seed}": values[at.seed] for who, values in (("a", ours), ("b", theirs)) for at in runs})
    one, other = ({at: pairs.Place(f"{who}{at.seed}", "net") for at in runs} for who in "ab")
    del other[runs[0]], one[runs[0]]  # what is not there on both sides is left out
    one[runs[0]], other[runs[0]] = pairs.Place("a0", "net"), pairs.Place("b0", "net")
    shared = {"data": Path(), "preset": "corrected", "folds": None}
    difference, over = pairs.difference(study, one, other, "macro_f1", shared)
    assert difference.verdict == verdict
    assert difference.value == pytest.approx(100 * (sum(ours) - sum(theirs)) / 3)
    assert over == "3 runs"


def test_folds_of_one_data_set_widen_the_interval():
    from reproductions.lrhnet import comparisons as pairs
    from reproductions.lrhnet import grid as plan

    shared = {"data": Path(), "preset": "corrected", "folds": None}
    folds, seeds = [plan.Run(0, 0), plan.Run(1, 0)], [plan.Run(0, 0), plan.Run(0, 1)]
    assert pairs.overlap(folds, shared) == pytest.approx(1 / 3)
    assert pairs.overlap(folds, {**shared, "preset": "paper"}) == pytest.approx(1 / 4)
    assert pairs.overlap(seeds, shared) == 0
    assert pairs.overlap(folds, {**shared, "data": None}) == 0


def test_a_file_of_folds_is_used_and_says_how_much_folds_share(shared, tmp_path):
    from reproductions.lrhnet import comparisons as pairs
    from reproductions.lrhnet import grid as plan

    data, file = shared / "ecg" / "cpsc_2018_extra", tmp_path / "folds.csv"
    make_folds(data, k=4).write(file)
    args = ("--size", "tiny", "--folds", "0,3", "--seeds", "0", "--rows", "alone,pskd", "--leads", "1", "--data", data)
    result = call("run_tables", *args, "--folds-file", file, "--out", tmp_path / "study")
    assert result.exit_code == 0, result.output
    assert {line["over"] for line in lines(tmp_path / "study" / "verdicts.csv")} == {"2 runs"}
    folds = [plan.Run(0, 0), plan.Run(3, 0)]
    assert pairs.overlap(folds, {"data": data, "preset": "corrected", "folds": file}) == pytest.approx(1 / 2)


def test_the_full_nets_have_the_papers_parameters_and_operations():
    from reproductions.lrhnet import model_costs as costs
    from reproductions.lrhnet import recipe as trial

    for model, row in costs.KINDS.items():
        for leads in (12, 3, 2):
            net = trial.network(row, leads, trial.SIZES["full"], "corrected")
            assert net.parameters == costs.PARAMETERS[model][leads]
    student = trial.network("alone", 12, trial.SIZES["full"], "corrected").network
    given = torch.zeros(1, 12, 4096), torch.zeros(1, 5)
    assert costs.multiply_adds(student, given) == pytest.approx(0.1e9, rel=0.05)


def test_a_row_is_refused_without_the_teachers_it_needs(tmp_path):
    from reproductions.lrhnet import recipe as trial

    with pytest.raises(RecipeError, match="one teacher or more"):
        trial.recipe("kd")
    with pytest.raises(RecipeError, match="no teacher"):
        trial.recipe("alone", rungs=(12,), teachers=(tmp_path,))
    with pytest.raises(RecipeError, match="its rung"):
        trial.recipe("kd", teachers=(tmp_path,))


def test_special_characters_are_escaped_for_latex():
    from reproductions.lrhnet import table_formats as layout

    assert layout.escaped(r"50 % of a_b & c\d ~ {x}") == (
        r"50 \% of a\_b \& c\textbackslash{}d \textasciitilde{} \{x\}"
    )
