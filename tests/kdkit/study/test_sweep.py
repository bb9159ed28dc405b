"""Tests of Sweep: the grid, the names of trials, the chosen cell, and its comparisons."""

import csv
import json
import math
import re
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Net, Optimizer, Recipe, RecipeError, RunOptions, Stage, Sweep, TorchData, Training, Truth
from kdkit.cli.repeat import recorded_arguments
from kdkit.cli.sweep_table import sweep_table
from kdkit.engine.storage.finished_run import read_metrics
from kdkit.engine.storage.run_folder import RunFolder
from kdkit.errors import RunFolderError, Terminated
from kdkit.metrics import Accuracy
from kdkit.report.runs import read_runs
from kdkit.report.verdict import verdicts_of
from kdkit.study.sweep_results import spread
from tests.helpers.reports import report_page

CPU = RunOptions(device="cpu")


def samples(count: int, seed: int) -> TensorDataset:
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


def recipe(lr: float = 0.3, width: int = 4, name: str = "x", has_test: bool = True, test_seed: int = 2) -> Recipe:
    if width < 0:
        raise ValueError("no width")
    net = Net("net", nn.Linear(4, 3))
    training = Training(epochs=3, batch_size=16, optimizer=Optimizer(torch.optim.SGD, lr=lr))
    test = samples(200, test_seed) if has_test else None
    data = TorchData(samples(64, 0), samples(60, 1), test)
    return Recipe(data=data, schedule=[Stage({net: Truth(nn.CrossEntropyLoss())}, training)])


class UserMetric:
    """A metric without thresholds that is not one of kdkit's."""

    def fit(self, validation):
        return self


def swept(folder, grid, **options):
    """Run a sweep and return its results."""
    sweep = Sweep(recipe, grid, folder=folder, **options)
    assert [result.error for result in sweep.run(CPU)] == [None] * len(sweep.study.trials)
    return sweep.results()


def test_equal_values_have_no_deviation():
    assert spread([0.1] * 3).sd == 0  # that of numpy is not, because the mean is rounded
    assert np.isnan([spread([0.1]).sd, spread([0.1, math.nan]).sd]).all()


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"lrr": [1.0]}, ["no parameter 'lrr'", "did you mean 'lr'"]),
        ({"lr": []}, ["at least one", "lr=[]"]),
        ({"name": "ab"}, ["must have a list of", "name='ab'"]),
        ({"lr": [1, 2, 1.0]}, ["lr=1 twice"]),
        ({"name": ["1", 1]}, ["name=1 twice"]),
        ({"name": [object()]}, ["memory address"]),
        ({"name": [np.zeros(2), np.ones(2)]}, ["value of name", "array (2,)", "sweep a tuple"]),
        ({"name": [torch.zeros(2), torch.ones(2)]}, ["value of name", "array (2,)", "sweep a tuple"]),
    ],
)
def test_a_grid_that_does_not_fit_the_recipe_is_refused(grid, words, tmp_path):
    with pytest.raises(RecipeError) as caught:
        Sweep(recipe, grid, folder=tmp_path)
    assert all(word in str(caught.value) for word in words)


def test_the_name_of_a_trial_does_not_depend_on_the_order_of_a_set(tmp_path):
    sweep = Sweep(recipe, {"name": [{"e", "a", "d", "c", "b"}]}, folder=tmp_path, seeds=1)
    assert sweep.study.trials[0].name == "name=a_b_c_d_e,seed=0"


def test_a_parameter_without_default_needs_a_value(tmp_path):
    def needy(depth, lr=0.1):
        return recipe(lr)

    with pytest.raises(RecipeError, match="needs a value for 'depth'"):
        Sweep(needy, {"lr": [0.1]}, folder=tmp_path)
    assert Sweep(needy, {"depth": [1, 2]}, folder=tmp_path, seeds=1).cells[0].options == {"depth": 1}


@pytest.mark.parametrize("seeds", [0, True, [], [1, 1], [-1], [0.5]])
def test_seeds_are_a_number_or_different_integers(seeds, tmp_path):
    with pytest.raises(RecipeError, match="seeds must be"):
        Sweep(recipe, {}, folder=tmp_path, seeds=seeds)


def test_values_and_seeds_may_be_arrays(tmp_path):
    sweep = Sweep(recipe, {"lr": np.array([0.1, 0.2])}, folder=tmp_path, seeds=torch.arange(2))
    assert sweep.seeds == (0, 1)
    assert [cell.options for cell in sweep.cells] == [{"lr": 0.1}, {"lr": 0.2}]
    assert all(type(cell.options["lr"]) is float for cell in sweep.cells)


def test_trials_are_named_after_their_options_in_the_order_of_the_recipe(tmp_path):
    sweep = Sweep(recipe, {"width": [4, 8], "lr": [0.5, 2.0]}, folder=tmp_path, seeds=(7,))
    assert [cell.label for cell in sweep.cells] == [
        "lr=0.5, width=4", "lr=0.5, width=8", "lr=2, width=4", "lr=2, width=8"
    ]  # fmt: skip
    names = [trial.name for trial in sweep.study.trials]
    assert names == ["lr=0.5,width=4,seed=7", "lr=0.5,width=8,seed=7", "lr=2,width=4,seed=7", "lr=2,width=8,seed=7"]
    assert sweep.study.trials[0].options == {"lr": 0.5, "width": 4}


def test_values_that_are_no_folder_names_stay_apart_and_short(tmp_path):
    texts = ["a/b", "a_b", "a b", "../x", "a..b", "a,b=c", ".", "..", "é" * 300, "y" * 300, "y" * 301, ""]
    sweep = Sweep(recipe, {"name": texts}, folder=tmp_path, seeds=1)
    names = [trial.name for trial in sweep.study.trials]
    assert len(set(names)) == len(texts)
    assert max(len(name.encode()) for name in names) < 100
    assert not any("/" in name for name in names)
    many = {f"option_{index}": [index * 1000] for index in range(40)}
    (trial,) = Sweep(lambda **options: recipe(), many, folder=tmp_path, seeds=1).study.trials
    assert len(trial.name) < 200


def test_every_cell_runs_with_every_seed_once(tmp_path):
    sweep = Sweep(recipe, {"lr": [0.01, 0.3]}, folder=tmp_path, seeds=2)
    assert [(result.trial.seed, result.state) for result in sweep.run(CPU)] == [
        (0, "finished"), (0, "finished"), (1, "finished"), (1, "finished")
    ]  # fmt: skip
    larger = Sweep(recipe, {"lr": [0.01, 0.3, 1.0]}, folder=tmp_path, seeds=2)
    assert [result.state for result in larger.run(CPU)] == ["skipped", "skipped", "finished"] * 2
    other = Sweep(recipe, {"lr": ["0.01", 0.3, 1.0]}, folder=tmp_path, seeds=2)
    with pytest.raises(RunFolderError, match=r"option lr: it was 0.01, and now it is '0.01'"):
        other.run(CPU)


def test_the_best_cell_is_chosen_on_validation_and_compared_on_test(tmp_path):
    results = swept(tmp_path, {"lr": [1e-6, 0.3]}, seeds=3)
    assert (results.best, results.reported_on, results.metric) == (1, "test", "accuracy")
    worse, best = results.cells
    comparison = worse.comparison
    assert best.comparison is None
    assert comparison is not None
    assert comparison.verdict == "better"
    assert (comparison.seeds.pairs, comparison.samples.pairs) == (3, 200)
    differences = [best.metrics["accuracy"][seed] - worse.metrics["accuracy"][seed] for seed in range(3)]
    assert comparison.seeds.value == pytest.approx(sum(differences) / 3)
    assert comparison.samples.value == pytest.approx(sum(differences) / 3)
    assert results.verdicts()[1].startswith("lr=0.3 is better than lr=1e-06: accuracy +")
    spread = best.spread("accuracy")
    assert spread.mean == pytest.approx(sum(best.metrics["accuracy"].values()) / 3)
    assert spread.sd > 0
    assert best.validation != best.metrics["accuracy"]


def test_cells_that_train_alike_cannot_be_distinguished(tmp_path):
    results = swept(tmp_path, {"width": [4, 5, 6]}, seeds=2)
    assert results.level == pytest.approx(1 - 0.05 / 2)  # two comparisons
    assert {cell.comparison.verdict for cell in results.cells[1:]} == {"not distinguishable"}
    assert any("Bonferroni" in note for note in results.notes())


def test_a_cell_is_better_only_if_seeds_and_samples_agree(tmp_path):
    results = swept(tmp_path, {"lr": [1e-6, 0.3]}, seeds=1)
    worse = results.cells[0]
    assert worse.comparison.seeds is None
    assert "2 pairs or more" in worse.comparison.note
    assert worse.comparison.verdict == "better"  # over samples alone, and so of these runs
    assert results.verdicts()[1].startswith("in these runs, lr=0.3 is better than lr=1e-06: accuracy +")
    assert any("one seed cannot tell which options are better" in note for note in results.notes())
    agreeing = swept(tmp_path, {"lr": [1e-6, 0.3]}, seeds=3).cells[0].comparison
    unsure = type(agreeing.seeds)(value=0.1, interval=(-0.1, 0.3), level=0.95, pairs=3)
    assert type(agreeing)(seeds=unsure, samples=agreeing.samples).verdict == "not distinguishable"


def test_each_cell_is_compared_with_the_reference_of_its_other_options(tmp_path):
    sweep = Sweep(recipe, {"lr": [0.3, 1e-6], "width": [4, 5]}, folder=tmp_path, seeds=2, reference={"lr": 1e-6})
    assert all(result.error is None for result in sweep.run(CPU))
    results = sweep.results()
    assert repr(results).startswith("SweepResults, accuracy of net on test:\n  lr=0.3, width=4: 0.")
    assert repr(results).count(" over 2 seeds") == 4
    assert repr(results).count(", best on validation") == 1
    assert [cell.reference for cell in results.cells] == ["lr=1e-06, width=4", "lr=1e-06, width=5", "", ""]
    assert results.level == pytest.approx(1 - 0.05 / 2)  # two comparisons
    first, second, *references = (cell.comparison for cell in results.cells)
    assert references == [None, None]
    values = [results.cells[index].metrics["accuracy"] for index in (0, 2)]
    assert first.seeds.value == pytest.approx(np.mean([values[0][seed] - values[1][seed] for seed in range(2)]))
    assert second.seeds.value > 0
    assert results.verdicts()[1].startswith("lr=0.3, width=4 is not distinguishable from lr=1e-06, width=4: accuracy +")
    assert not any("the best was chosen" in note for note in results.notes())
    content = json.loads(results.as_json())
    assert (content["reference"], content["cells"][2]["this_minus_reference"]) == ("lr=1e-06", None)
    assert content["cells"][0]["this_minus_reference"]["seeds"]["value"] == first.seeds.value
    for seed in range(2):
        (tmp_path / f"lr=1e-06,width=4,seed={seed}" / "trial.json").unlink()
    assert "lr=1e-06, width=4 has no results to compare with" in sweep.results().notes()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"lrs": 0.3}, "the reference has 'lrs', which is not compared; did you mean 'lr'"),
        ({"lr": 0.2}, r"the reference has lr=0.2, but the grid has lr=0.3, 1e-06"),
        ({"width": 4}, "all combinations of the grid have width=4, so none is compared with this reference"),
    ],
)
def test_a_reference_is_among_the_compared_values(reference, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        Sweep(recipe, {"lr": [0.3, 1e-6], "width": [4]}, folder=tmp_path, reference=reference)


def test_cells_with_other_test_samples_are_compared_over_seeds_only(tmp_path):
    comparison = swept(tmp_path, {"test_seed": [2, 3]}, seeds=2).cells[1].comparison
    assert comparison.samples is None
    assert comparison.seeds.pairs == 2
    assert comparison.verdict == "not distinguishable"
    assert "different samples" in comparison.note


def test_folds_are_repetitions_and_none_is_the_best(tmp_path):
    def folded(fold: int = 0, lr: float = 0.3) -> Recipe:
        rows = torch.arange(90)
        parts = (samples(90, 0).tensors, [rows % 3 == (fold + part) % 3 for part in range(3)])
        train, validation, test = (TensorDataset(*(tensor[part] for tensor in parts[0])) for part in parts[1])
        teacher, net = Net("teacher", nn.Linear(4, 3), trained=True), Net("net", nn.Linear(4, 3))
        objective = Truth(nn.CrossEntropyLoss()) + 1e-6 * kdkit.Match(teacher, kdkit.losses.SoftTargets())
        training = Training(epochs=2, batch_size=16, optimizer=Optimizer(torch.optim.SGD, lr=lr))
        return Recipe(data=TorchData(train, validation, test), schedule=[Stage({net: objective}, training)])

    options = {"folder": tmp_path, "seeds": 2, "average_over": "fold"}
    sweep = Sweep(folded, {"lr": [1e-6, 0.3], "fold": [0, 1]}, **options)
    assert all(result.error is None for result in sweep.run(RunOptions(device="cpu", baseline=True)))
    assert [trial.name for trial in sweep.study.trials][:3] == [
        "fold=0,lr=1e-06,seed=0", "fold=0,lr=0.3,seed=0", "fold=1,lr=1e-06,seed=0"
    ]  # fmt: skip
    results = sweep.results()
    worse, best = results.cells
    assert (results.best, best.label, best.options) == (1, "lr=0.3", {"lr": 0.3})
    assert best.repetitions == ((0, 0), (1, 0), (0, 1), (1, 1))
    values = best.metrics["accuracy"]
    assert best.spread("accuracy") == (np.mean([*values.values()]), np.std([*values.values()], ddof=1))
    # 30 test samples for 30 training samples: the variance of the mean is (1 / 4 + 30 / 30) times that of the runs.
    differences = {key: value - worse.metrics["accuracy"][key] for key, value in values.items()}
    error = np.std([*differences.values()], ddof=1) * math.sqrt(1 / 4 + 1)
    assert worse.comparison.seeds.error == pytest.approx(error)
    low, high = worse.comparison.seeds.interval
    assert high - low == pytest.approx(2 * 3.182446 * error, rel=1e-6)  # Student's t with 3 degrees of freedom
    assert (worse.comparison.samples, worse.comparison.includes_samples) == (None, True)
    assert "over 4 runs; test samples differ between runs" in results.verdicts()[1]
    assert any("on which the best was chosen" in note for note in results.notes())
    rows = list(csv.DictReader(results.as_csv().splitlines()))
    assert [(row["lr"], row["fold"], row["seed"]) for row in rows[:3]] == [
        ("1e-06", "0", "0"), ("1e-06", "1", "0"), ("1e-06", "0", "1")
    ]  # fmt: skip
    content = json.loads(results.as_json())
    assert content["cells"][1]["metrics"]["accuracy"]["by_run"]["fold=1,seed=0"] == values[1, 0]

    runs, _ = read_runs([tmp_path])
    assert len(verdicts_of(runs)) == 4
    first, second = verdicts_of(runs, ["fold"])
    assert {first.label, second.label} == {"lr=1e-06, 4 runs", "lr=0.3, 4 runs"}
    assert all("Student's t interval over 4 runs" in verdict.caveat for verdict in (first, second))
    assert all("2.24 times as wide" in verdict.caveat for verdict in (first, second))
    with pytest.raises(RecipeError, match="no run has an option 'folds' to average over; did you mean 'fold'"):
        verdicts_of(runs, ["folds"])
    with pytest.raises(RecipeError, match="the grid has no 'folds' to average over; did you mean 'fold'"):
        Sweep(folded, {"fold": [0, 1]}, folder=tmp_path, average_over=["folds"])


def test_without_a_test_split_the_results_are_those_of_validation(tmp_path):
    results = swept(tmp_path, {"has_test": [False], "lr": [0.01, 0.3]}, seeds=2)
    assert results.reported_on == "validation"
    assert results.cells[0].validation == results.cells[0].metrics["accuracy"]
    assert any("no test split" in note for note in results.notes())
    assert results.cells[0].label == "lr=0.01"  # without the option that does not vary


def test_the_lowest_error_is_the_best(tmp_path):
    class ErrorRate(UserMetric):
        name = "error_rate"
        lower_is_better = True

        def compute(self, test):
            calls.append(test)
            return kdkit.MetricResult(value=1 - Accuracy().compute(test).value)

    calls = []

    def erring(lr=0.3):
        made = recipe(lr)
        return Recipe(data=made.data, schedule=made.schedule, metrics=(Accuracy(), ErrorRate()))

    sweep = Sweep(erring, {"lr": [0.3, 1e-6]}, folder=tmp_path, seeds=2, metric="error_rate")
    assert all(result.error is None for result in sweep.run(CPU))
    calls.clear()
    results = sweep.results()
    assert len(calls) < 1000  # it is computed once per resample, of which there are fewer then
    assert results.best == 0
    assert json.loads(results.as_json())["lower_is_better"]
    assert results.cells[1].comparison.seeds.value < 0
    assert results.cells[1].comparison.samples.verdict == "better"


def test_a_metric_that_depends_on_an_option_is_that_of_each_run(tmp_path):
    class Offset(UserMetric):
        name = "offset"

        def __init__(self, fold):
            self.offset = offsets[fold]

        def compute(self, test):
            return kdkit.MetricResult(value=self.offset + Accuracy().compute(test).value)

    offsets = {0: 10, 1: 20}

    def folds(fold=0, lr=0.3):
        made = recipe(lr)
        return Recipe(data=made.data, schedule=made.schedule, metrics=(Offset(fold),))

    sweep = Sweep(folds, {"fold": [0, 1], "lr": [0.3, 1e-6]}, folder=tmp_path, seeds=1, average_over=("fold",))
    assert all(result.error is None for result in sweep.run(CPU))
    for cell in sweep.results().cells:
        assert [int(value // 10) for value in cell.validation.values()] == [1, 2]
    offsets.pop(1)  # as if the data of a fold was moved
    left_out = sweep.results().left_out
    assert len(left_out) == 2
    assert all(
        "its metric 'offset' depends on the options of recipe(), which fails now: Key" in text for text in left_out
    )


def test_a_metric_that_fails_for_a_resample_costs_one_interval(tmp_path):
    class Fragile(UserMetric):
        name = "fragile"

        def compute(self, test):
            return Accuracy().compute(test)

        def resampled(self, test, counts):
            raise ZeroDivisionError("no positives")

    def fragile(lr=0.3):
        made = recipe(lr)
        return Recipe(data=made.data, schedule=made.schedule, metrics=(Fragile(),))

    sweep = Sweep(fragile, {"lr": [0.3, 1e-6]}, folder=tmp_path, seeds=2)
    assert all(result.error is None for result in sweep.run(CPU))
    comparison = sweep.results().cells[1].comparison
    assert comparison.samples is None
    assert "fragile fails for a resample (ZeroDivisionError: no positives)" in comparison.note


def test_failed_runs_are_left_out(tmp_path):
    sweep = Sweep(recipe, {"width": [-1, 4]}, folder=tmp_path, seeds=2)
    states = [result.state for result in sweep.run(CPU)]
    assert states == ["failed", "finished"] * 2
    results = sweep.results()
    assert results.cells[0].repetitions == ()
    assert results.best == 1
    assert results.cells[0].comparison is None
    assert math.isnan(results.cells[0].spread("accuracy").mean)


class DefinedOnTest(UserMetric):
    """A metric that is undefined on the validation split, such as an AUROC for normal samples alone."""

    name = "on_test"

    def compute(self, test):
        return kdkit.MetricResult(value=Accuracy().compute(test).value if len(test.labels) == 200 else math.nan)


@pytest.mark.parametrize("reference", [None, {"lr": 1e-6}])
def test_no_cell_is_the_best_if_the_metric_is_undefined_on_the_validation_split(reference, tmp_path):
    def make(width=4, lr=0.3):
        made = recipe(lr, width=width)
        return Recipe(data=made.data, schedule=made.schedule, metrics=(Accuracy(), DefinedOnTest()))

    grid = {"width": [-1, 4], "lr": [0.3, 1e-6]}
    sweep = Sweep(make, grid, folder=tmp_path, seeds=2, metric="on_test", reference=reference)
    assert [result.state for result in sweep.run(CPU)].count("failed") == 4
    results = sweep.results()
    assert results.best is None
    assert "best on validation" not in repr(results)
    assert [cell.comparison is not None for cell in results.cells] == [False, False, bool(reference), False]
    assert not any("is the best" in sentence for sentence in results.verdicts())
    (note,) = [note for note in results.notes() if "on_test is undefined on the validation split, so no comb" in note]
    assert ("--reference" in note) is not bool(reference)
    assert json.loads(results.as_json())["best"] is None
    table = "".join(str(cell) for cell in sweep_table(results).columns[0].cells)
    assert "*" not in table
    results.save(tmp_path)
    comparison, _ = report_page(tmp_path, out=tmp_path / "report.html").text.split("Networks", 1)
    assert "so no combination is the best" in comparison
    assert "On the validation split" not in comparison
    assert ("minus that of" in comparison) is bool(reference)


def test_runs_of_a_recipe_that_changed_are_not_among_the_results(tmp_path):
    grid = {"lr": [0.3]}
    swept(tmp_path, grid, seeds=2)
    record = tmp_path / "lr=0.3,seed=0" / "run.json"
    record.write_text(record.read_text().replace('"recipe_sha256": "', '"recipe_sha256": "0'))
    sweep = Sweep(recipe, grid, folder=tmp_path, seeds=2)
    assert [result.state for result in sweep.run(CPU)] == ["failed", "skipped"]
    assert sweep.results().cells[0].repetitions == (1,)


def test_a_wrong_metric_or_net_is_refused_before_anything_runs(tmp_path):
    for names, hint in (({"metric": "acc"}, "no metric 'acc'"), ({"net": "ne"}, "did you mean 'net'")):
        sweep = Sweep(recipe, {"lr": [0.3]}, folder=tmp_path / "runs", **names)
        with pytest.raises(RecipeError, match=hint):
            next(sweep.run(CPU))
    assert not (tmp_path / "runs").exists()


def test_a_cell_whose_recipe_lacks_the_net_or_the_metric_is_named_and_the_others_are_compared(tmp_path):
    def chosen(method: str) -> Recipe:
        made = recipe()
        if method == "alone":
            return made
        net = Net("teacher", nn.Linear(4, 3))
        stage = Stage({net: Truth(nn.CrossEntropyLoss())}, made.stages[0].training)
        return Recipe(data=made.data, schedule=[stage], metrics=(Accuracy(), UserAccuracy()))

    class UserAccuracy(UserMetric):
        name = "user_accuracy"

        def compute(self, test):
            return Accuracy().compute(test)

    grid = {"method": ["alone", "a", "b"]}
    sweep = Sweep(chosen, grid, folder=tmp_path, seeds=1, net="teacher", metric="user_accuracy")
    assert [result.error for result in sweep.run(RunOptions(device="cpu", measure=False))] == [None] * 3
    results = sweep.results()
    assert [cell.repetitions for cell in results.cells] == [(), (0,), (0,)]
    assert results.cells[2].comparison.samples.value == 0
    note = "method=alone has no net 'teacher'"
    assert (note in results.notes(), note in results.as_json()) == (True, True)
    assert json.loads(results.as_json())["net"] == "teacher"
    for method in "ab":
        (tmp_path / f"method={method},seed=0" / "trial.json").unlink()
    with pytest.raises(RecipeError, match=r"alone,seed=0 has no metrics of net 'teacher'; there are: net"):
        sweep.results()


def test_a_run_that_was_killed_in_a_second_evaluation_is_left_out(tmp_path):
    sweep = Sweep(recipe, {}, folder=tmp_path, seeds=2)
    assert all(result.error is None for result in sweep.run(CPU))
    folder = RunFolder(tmp_path / "seed=1")  # resumed alone, after it had finished
    folder.save_metrics("test", read_metrics(folder.path).results, complete=False)
    results = sweep.results()
    assert results.cells[0].repetitions == (0,)
    assert results.left_out[0].startswith(f"the evaluation of the run in {folder.path} is not finished")


def test_a_signal_during_recipe_ends_the_sweep_and_no_trial(tmp_path):
    def signalled(lr: float = 0.3) -> Recipe:
        if lr == 0:
            raise Terminated  # as a run in it does
        return recipe(lr)

    with pytest.raises(Terminated):
        Sweep(signalled, {"lr": [0, 0.3]}, folder=tmp_path, seeds=1).run(CPU)
    sweep = Sweep(signalled, {"lr": [0.3, 0]}, folder=tmp_path, seeds=1)
    results = sweep.run(RunOptions(device="cpu", measure=False))
    assert next(results).state == "finished"
    with pytest.raises(Terminated):
        next(results)


def test_results_need_a_finished_run(tmp_path):
    with pytest.raises(RecipeError, match=r"no run in .* is finished, .*: for result in sweep.run\(\): "):
        Sweep(recipe, {}, folder=tmp_path).results()


def test_results_of_which_every_run_failed_have_the_reason(tmp_path):
    sweep = Sweep(recipe, {"width": [-1, -2]}, folder=tmp_path / "sweep", seeds=1)
    assert [result.state for result in sweep.run(CPU)] == ["failed", "failed"]
    with pytest.raises(RecipeError, match=r"2 failed; the first, width=-1,seed=0: ValueError: no width"):
        sweep.results()


def test_the_advice_to_resume_a_run_depends_on_how_it_was_started(tmp_path):
    [*Sweep(recipe, {}, folder=tmp_path / "runs", seeds=1).run(CPU)]
    trial = shutil.copytree(tmp_path / "runs", tmp_path / "copy") / "seed=0"
    alone = shutil.copytree(trial, tmp_path / "alone" / "run")
    for folder, advice in (
        (trial, "run the Python script that started it again"),
        (alone, f"kdkit.run(..., out='{alone}', resume=Tr"),
    ):
        (folder / "metrics.json").unlink()
        for read in (read_metrics, partial(recorded_arguments, trust=False)):
            with pytest.raises(RunFolderError, match=re.escape(f"to resume it: {advice}")):
                read(folder)


def test_results_of_a_recipe_that_fails_since_are_refused(tmp_path):
    missing = []

    def make(lr: float = 0.3) -> Recipe:
        if missing:
            raise FileNotFoundError("data")
        return recipe(lr)

    [*Sweep(make, {"lr": [0.1, 0.3]}, folder=tmp_path, seeds=1).run(CPU)]
    missing.append(True)
    with pytest.raises(RecipeError, match=r"recipe\(\) fails for every combination of options"):
        Sweep(make, {"lr": [0.1, 0.3]}, folder=tmp_path, seeds=1).results()


def test_the_files_of_a_sweep_have_every_run_and_every_verdict(tmp_path):
    results = swept(tmp_path, {"lr": [1e-6, 0.3]}, seeds=2)
    results.save(str(tmp_path))
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["best"] == {"lr": 0.3}
    assert content["cells"][0]["best_minus_this"]["samples"]["pairs"] == 200
    assert content["cells"][1]["best_minus_this"] is None
    assert content["cells"][1]["metrics"]["accuracy"]["by_seed"]["1"] == results.cells[1].metrics["accuracy"][1]
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [(row["lr"], row["seed"]) for row in rows] == [("1e-06", "0"), ("1e-06", "1"), ("0.3", "0"), ("0.3", "1")]
    assert float(rows[3]["accuracy"]) == results.cells[1].metrics["accuracy"][1]


def test_the_random_state_of_the_caller_stays(tmp_path):
    sweep = Sweep(recipe, {"lr": [0.3]}, folder=tmp_path, seeds=1)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert sweep._compared is not None
    assert torch.equal(torch.rand(1), expected)
