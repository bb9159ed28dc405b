"""The tables and ladders of LRH-Net, at their smallest: every row, every file, and a second call."""

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


def call(command: str, *args: object):
    module = importlib.import_module(f"reproductions.lrhnet.{command}")
    result = CliRunner().invoke(module.main, [str(arg) for arg in args])
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
    folder, output = tables
    trained = [line.split()[1] for line in output.splitlines() if line.startswith("[")]
    assert sorted(trained) == sorted(
        ["teacher-12-fold0-seed0", *(f"{row}-3-fold0-seed0" for row in (*ROWS, "assistant"))]
    )
    assert trained.index("assistant-3-fold0-seed0") < trained.index("smlkd-3-fold0-seed0")
    assert all((folder / name / "trial.json").exists() for name in trained)


def test_a_second_call_trains_nothing_and_writes_the_same_tables(tables):
    folder, _ = tables
    before = (folder / "tables.csv").read_text()
    result = call("run_tables", *TINY, "--leads", "3", "--out", folder)
    assert result.exit_code == 0
    states = {line.split()[2].strip(",") for line in result.output.splitlines() if line.startswith("[")}
    assert states == {"skipped"}
    assert (folder / "tables.csv").read_text() == before


@pytest.mark.slow
def test_two_jobs_make_the_same_tables_as_one(tmp_path):
    rows = ("--rows", "teacher,alone,kd", "--leads", "3")
    for jobs in (1, 2):
        assert call("run_tables", *TINY, *rows, "--out", tmp_path / str(jobs), "--jobs", jobs).exit_code == 0
    one, two = ((tmp_path / str(jobs) / "tables.csv").read_text() for jobs in (1, 2))
    assert one == two


def test_the_tables_contain_the_papers_results(tables):
    folder, _ = tables
    table = lines(folder / "tables.csv")
    assert {line["table"] for line in table} == {"Table 1", "Table 2", "Table 3"}
    smlkd = {line["score"]: line for line in table if line["model"] == "+ S-MLKD"}
    assert [float(smlkd[score]["paper"]) for score in ("challenge_metric", "macro_f1", "micro_f1")] == [
        60.39,
        56.38,
        73.44,
    ]
    assert all(math.isfinite(float(line["mean"])) and line["runs"] == "1" for line in table)
    page = (folder / "tables.md").read_text()
    assert "(60.39)" in page
    assert "Simulated records" in page
    assert "24 records for training" in page
    assert "python -m reproductions.lrhnet.run_tables --size tiny --folds 0 --seeds 0 --leads 3" in page
    assert str(folder) not in page


def test_all_rows_of_a_markdown_table_have_the_same_number_of_columns(tables):
    for block in (tables[0] / "tables.md").read_text().split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1


def test_the_latex_has_an_entry_for_every_column(tables):
    text = (tables[0] / "tables.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 3
    rows = [line for line in text.splitlines() if line.startswith(("LRH-Net", "SE-ResNet", "+"))]
    assert {row.count("&") for row in rows} == {3}
    assert all(row.endswith(r"\\") for row in rows)


def test_verdicts_of_one_run_are_over_its_records(tables):
    folder, _ = tables
    verdicts = lines(folder / "verdicts.csv")
    assert {line["over"] for line in verdicts} == {"9 records of one run"}
    assert {line["verdict"] for line in verdicts} <= {"better", "worse", "not distinguishable"}
    assert len(verdicts) == 6 + 5  # all against LRH-Net alone, and all but vanilla KD against vanilla KD
    assert "the interval is over other patients, not over other seeds" in (folder / "tables.md").read_text()


def test_the_plot_is_written_in_both_formats(tables):
    folder, _ = tables
    assert (folder / "figure4.png").read_bytes().startswith(b"\x89PNG")
    assert ET.parse(folder / "figure4.svg").getroot().tag.endswith("svg")


def test_costs_are_those_of_the_networks(tables):
    costs = {line["model"]: line for line in lines(tables[0] / "costs.csv")}
    assert set(costs) == {"SE-ResNet", "1D-CNN", "LRH-Net"}
    assert all(float(line["milliseconds"]) > 0 for line in costs.values())
    assert all(int(line["file_bytes"]) > 4 * int(line["parameters"]) for line in costs.values())
    assert costs["LRH-Net"]["published"] == "83364"


def test_a_refused_trial_is_in_no_table(tables, tmp_path):
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
    assert "differs in its option epochs" in result.output
    assert {line["mean"] for line in lines(tmp_path / "tables.csv")} == {""}


def test_without_matplotlib_nothing_is_trained(tmp_path, monkeypatch):
    from reproductions.lrhnet import plots

    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda _: None)
    result = call("run_tables", *TINY, "--rows", "alone", "--leads", "2", "--out", tmp_path)
    assert result.exit_code != 0
    assert "kdkit[plots]" in result.output
    assert not list(tmp_path.glob("alone*"))


def test_a_dry_run_lists_the_trials_and_runs_none(tmp_path):
    result = call("run_tables", *TINY, "--rows", "smlkd", "--leads", "2", "--out", tmp_path / "none", "--dry-run")
    assert "smlkd-2-fold0-seed0  after teacher-12-fold0-seed0, assistant-2-fold0-seed0" in result.output
    assert "3 of 3 trials to train" in result.output
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("run_tables", "--rows", "kds"), "did you mean 'kd'?"),
        (("run_tables", "--leads", "two"), "values with commas"),
        (("run_ladder", "--ladders", "2-12"), "a ladder goes down"),
        (("run_ladder", "--ladders", "12-5"), "the size of a lead set (1, 2, 3, 4, 6, 12), got 5"),
        (("run_ladder", "--ladders", "all"), "numbers of leads"),
        (("run_ladder", "--ladders", "12-2,3-2", "--leads", "6"), "no rung of 3-2 can teach a student of 6 leads"),
    ],
)
def test_invalid_options_are_refused(tmp_path, args, message):
    result = call(*args, "--out", tmp_path)
    assert result.exit_code != 0
    assert message in result.output


def test_real_records_are_few_and_the_page_says_so(shared, tmp_path):
    data = shared / "ecg" / "cpsc_2018_extra"
    result = call("run_tables", *TINY, "--rows", "alone,kd", "--leads", "2", "--data", data, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "tables.md").read_text()
    assert "**The data is small**" in page
    assert "--data DIR" in page
    assert str(shared) not in page


@pytest.mark.slow
def test_a_ladder_reports_scores_by_rungs_and_the_gap_of_each_disease(tmp_path):
    result = call("run_ladder", *TINY, "--ladders", "12-2,12-3-2", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    trained = [line.split()[1] for line in result.output.splitlines() if line.startswith("[")]
    assert trained.count("rung-12-fold0-seed0") == trained.count("student-2-of-12-fold0-seed0") == 1
    table = lines(tmp_path / "ladder.csv")
    rungs = {name: {line["rungs"] for line in table if line["ladder"] == name} for name in ("12-2", "12-3-2")}
    assert rungs == {"12-2": {"0", "1", "2"}, "12-3-2": {"0", "1", "2", "3"}}
    gaps = lines(tmp_path / "gaps.csv")
    for line in gaps:
        assert float(line["gap_to_top"]) == pytest.approx(float(line["top_rung"]) - float(line["student"]), abs=1e-3)
    assert "Each disease's gap" in (tmp_path / "ladder.md").read_text()
    for stem in ("score-challenge_metric", "score-macro_auprc", "gaps"):
        assert (tmp_path / f"{stem}.png").stat().st_size > 0
        assert ET.parse(tmp_path / f"{stem}.svg").getroot().tag.endswith("svg")


def test_rungs_of_fewer_leads_do_not_teach_a_student():
    from reproductions.lrhnet import grid, lead_ladder

    shared = {"data": None, "size": "tiny", "preset": "corrected", "folds": None, "epochs": None}
    ladders = lead_ladder.Ladders(ladders=[(12, 3, 2)], leads=(3,), runs=[grid.Run(0, 0)], shared=shared)
    assert [trial.name.split("-fold")[0] for trial in ladders.trials()] == [
        "rung-12",
        "rung-12-3",
        "student-3-of-none",
        "student-3-of-12",
        "student-3-of-12-3",
    ]


def test_a_student_without_its_first_rung_has_a_score_but_no_gap():
    from reproductions.lrhnet import grid, lead_ladder

    shared = {"data": None, "size": "tiny", "preset": "corrected", "folds": None, "epochs": None}
    ladders = lead_ladder.Ladders(ladders=[(12, 2)], leads=None, runs=[grid.Run(0, 0)], shared=shared)
    assert list(lead_ladder.gaps(StudyStub({}), ladders, {"student-2-of-none-fold0-seed0"})) == []


class StudyStub:
    """A study with made-up scores by trial."""

    def __init__(self, scores):
        self.scores = scores

    def metrics(self, name):
        return {"net": {"macro_f1": MetricResult(value=self.scores[name])}}


@pytest.mark.parametrize(
    ("scores", "baseline_scores", "verdict"),
    [
        ((0.60, 0.62, 0.61), (0.50, 0.52, 0.512), "better"),
        ((0.50, 0.52, 0.512), (0.60, 0.62, 0.61), "worse"),
        ((0.60, 0.40, 0.50), (0.50, 0.52, 0.51), "not distinguishable"),
    ],
)
def test_runs_are_compared_in_pairs(scores, baseline_scores, verdict):
    from reproductions.lrhnet import comparisons, grid

    runs = [grid.Run(0, seed) for seed in range(3)]
    by_row = (("a", scores), ("b", baseline_scores))
    study = StudyStub({f"{row}{run.seed}": values[run.seed] for row, values in by_row for run in runs})
    nets, baselines = ({run: comparisons.TrainedNet(f"{row}{run.seed}", "net") for run in runs} for row in "ab")
    nets[grid.Run(0, 9)] = comparisons.TrainedNet("a9", "net")  # a run without its pair is left out
    shared = {"data": Path(), "preset": "corrected", "folds": None}
    difference, over = comparisons.difference(study, nets, baselines, "macro_f1", shared)
    assert difference.verdict == verdict
    assert difference.value == pytest.approx(100 * (sum(scores) - sum(baseline_scores)) / 3)
    assert over == "3 runs"


def test_folds_of_one_data_set_widen_the_interval():
    from reproductions.lrhnet import comparisons, grid

    shared = {"data": Path(), "preset": "corrected", "folds": None}
    folds, seeds = [grid.Run(0, 0), grid.Run(1, 0)], [grid.Run(0, 0), grid.Run(0, 1)]
    assert comparisons.overlap(folds, shared) == pytest.approx(1 / 3)
    assert comparisons.overlap(folds, {**shared, "preset": "paper"}) == pytest.approx(1 / 4)
    assert comparisons.overlap(seeds, shared) == 0
    assert comparisons.overlap(folds, {**shared, "data": None}) == 0


def test_the_number_of_folds_in_a_file_determines_the_overlap(shared, tmp_path):
    from reproductions.lrhnet import comparisons, grid

    data, file = shared / "ecg" / "cpsc_2018_extra", tmp_path / "folds.csv"
    make_folds(data, k=4).write(file)
    args = ("--size", "tiny", "--folds", "0,3", "--seeds", "0", "--rows", "alone,pskd", "--leads", "1", "--data", data)
    result = call("run_tables", *args, "--folds-file", file, "--out", tmp_path / "study")
    assert result.exit_code == 0, result.output
    assert {line["over"] for line in lines(tmp_path / "study" / "verdicts.csv")} == {"2 runs"}
    folds = [grid.Run(0, 0), grid.Run(3, 0)]
    assert comparisons.overlap(folds, {"data": data, "preset": "corrected", "folds": file}) == pytest.approx(1 / 2)


def test_the_full_networks_have_the_papers_parameters_and_operations():
    from reproductions.lrhnet import model_costs, recipe

    for model, row in model_costs.ROWS.items():
        for leads in (12, 3, 2):
            net = recipe.network(row, leads, recipe.SIZES["full"], "corrected")
            assert net.parameters == model_costs.PARAMETERS[model][leads]
    student = recipe.network("alone", 12, recipe.SIZES["full"], "corrected").network
    inputs = torch.zeros(1, 12, 4096), torch.zeros(1, 5)
    assert model_costs.multiply_adds(student, inputs) == pytest.approx(0.1e9, rel=0.05)


def test_a_row_is_refused_without_the_teachers_it_needs(tmp_path):
    from reproductions.lrhnet import recipe

    with pytest.raises(RecipeError, match="at least one teacher"):
        recipe.recipe("kd")
    with pytest.raises(RecipeError, match="no teacher"):
        recipe.recipe("alone", teacher_leads=(12,), teachers=(tmp_path,))
    with pytest.raises(RecipeError, match="expected one of --teacher-leads for each of --teachers; got 0 and 1"):
        recipe.recipe("kd", teachers=(tmp_path,))


def test_special_characters_are_escaped_for_latex():
    from reproductions.lrhnet import table_formats

    assert table_formats.escape_latex(r"50 % of a_b & c\d ~ {x}") == (
        r"50 \% of a\_b \& c\textbackslash{}d \textasciitilde{} \{x\}"
    )
