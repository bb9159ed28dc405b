"""The section of a report that compares the combinations of a sweep."""

import json
import shutil

import pytest
from torch import nn
from torch.optim import Adam

from kdkit import Optimizer, Recipe, RunOptions, Stage, Sweep, TorchData, Training, Truth
from kdkit.errors import RunFolderError
from kdkit.report.formats import signed
from kdkit.study.sweep_results import CellResults, SweepResults
from tests.helpers.reports import Page, report_page
from tests.helpers.tiny import samples, tiny_net

GRID = {"lr": [0.0001, 0.1]}


def recipe(lr: float = 0.1) -> Recipe:
    training = Training(epochs=2, batch_size=8, optimizer=Optimizer(Adam, lr=lr))
    data = TorchData(samples("multiclass", 32), samples("multiclass", 30, seed=1), samples("multiclass", 60, seed=2))
    return Recipe(data=data, schedule=[Stage({tiny_net("net"): Truth(nn.CrossEntropyLoss())}, training)])


def swept(folder, grid, **options) -> SweepResults:
    sweep = Sweep(recipe, grid, folder=folder, **options)
    trials = [*sweep.run(RunOptions(device="cpu", measure=False))]
    assert [trial.error for trial in trials] == [None] * len(trials)
    results = sweep.results()
    results.save(folder)
    return results


def line(page: Page, cell: CellResults) -> str:
    """Return the row of a combination in the table, which ends the section."""
    section = page.text[: page.text.index("Networks Metrics on")]
    return section[section.rindex(cell.label) + len(cell.label) :].partition("lr=")[0]


def row_of(comparison) -> str:
    """Return the difference, its intervals, and the verdict, as in the row of a table."""
    parts = [part.interval for part in (comparison.seeds, comparison.samples, comparison.total)]
    bounds = [" to ".join(signed(bound, points=True) for bound in part) for part in parts]
    return " ".join([signed(comparison.total.value, points=True), *bounds, comparison.verdict])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """The folder of a sweep, and its results."""
    folder = tmp_path_factory.mktemp("sweep")
    return folder, swept(folder, GRID, seeds=3)


def test_a_report_of_a_sweep_compares_the_best_combination_with_the_others(sweep, tmp_path):
    folder, results = sweep
    page = report_page(folder, out=tmp_path / "report.html")
    best = results.cells[results.best]
    other = next(cell for cell in results.cells if cell is not best)
    assert f"Accuracy of net on the test split. On the validation split, {best.label} is the best." in page.text
    assert f"Accuracy of {best.label} minus that of the others" in page.text
    assert row_of(other.comparison) in line(page, other)
    assert "best on validation" in line(page, best)
    assert other.comparison.total.value != 0


def test_with_a_reference_each_combination_is_compared_with_it(sweep, tmp_path):
    folder, _ = sweep
    results = swept(folder, GRID, seeds=2, reference={"lr": 0.0001})
    page = report_page(folder, out=tmp_path / "report.html")
    reference, compared = results.cells
    assert "Accuracy minus that of lr=0.0001" in page.text
    assert "the reference" in line(page, reference)
    assert row_of(compared.comparison) in line(page, compared)
    # The folder still has the runs of the third seed.
    assert "the folder has 6 runs, of which the last sweep compared 4" in page.text


def test_errors_of_combinations_are_not_in_points(sweep, tmp_path):
    folder = shutil.copytree(sweep[0], tmp_path / "copy")
    results = json.loads((folder / "results.json").read_text())
    for lower in (False, True):
        (folder / "results.json").write_text(json.dumps({**results, "lower_is_better": lower}))
        axis = f"difference{'' if lower else ' in points'}, {100 * results['level']:.4g} %"
        assert axis in report_page(folder, out=tmp_path / "report.html").text


def test_a_sweep_of_one_combination_and_a_run_have_no_comparison(sweep, tmp_path):
    folder, _ = sweep
    swept(tmp_path / "one", {"lr": [0.1]}, seeds=1)
    for path in (tmp_path / "one", folder / "lr=0.1,seed=0"):
        page = report_page(path, out=tmp_path / "report.html")
        assert "combinations" not in [section.get("class") for section in page.all("section")]


@pytest.mark.parametrize(
    "content",
    [b"{}", b'{"cells": [{}, {}]}', b'{"cells": [1, {"options": 2}, {"best_minus_this": 3, "seeds": 1}], "notes": 4}'],
)
def test_results_of_another_form_do_not_fail(sweep, tmp_path, content):
    folder, _ = sweep
    (folder / "results.json").write_bytes(content)
    report_page(folder, out=tmp_path / "report.html")


def test_results_that_cannot_be_read_are_named(sweep, tmp_path):
    folder, _ = sweep
    (folder / "results.json").write_bytes(b"{")
    with pytest.raises(RunFolderError, match=r"results\.json cannot be read: .*; run the sweep again, or delete"):
        report_page(folder, out=tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
