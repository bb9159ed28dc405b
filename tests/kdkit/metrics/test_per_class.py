"""Tests of the table of a net class by class."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score, roc_auc_score

from kdkit import Predictions
from kdkit.cli.per_class import table_of
from kdkit.engine.storage.finished_run import read_metrics, read_net_report
from kdkit.engine.storage.run_folder import RunFolder
from kdkit.errors import RunFolderError
from kdkit.metrics import FixedThresholds, MacroF1, MeanIoU, MinimumSensitivity
from kdkit.metrics.per_class import FIGURES, NetReport, class_table

CLASSES = ("a", "b", "c")


def predictions(seed, rows=120):
    random = np.random.default_rng(seed)
    labels = (random.random((rows, 3)) < (0.2, 0.5, 0.7)).astype(np.float32)
    labels[:, 2] *= seed == 0  # the test split has no positives of c
    return Predictions(
        labels=labels,
        outputs=(2 * labels - 1 + random.normal(0, 1, labels.shape)).astype(np.float32),
        classes=CLASSES,
        ids=np.arange(rows),
        groups=np.arange(rows) // 2,
    )


@pytest.fixture(scope="module")
def reported():
    return NetReport(validation=predictions(0), test=predictions(1), train={"a": 7, "b": 8, "c": 0})


@pytest.fixture(scope="module")
def rows(reported):
    return class_table(reported, resamples=50)


def test_every_class_has_a_row_with_its_positives_in_each_split(rows, reported):
    assert [row.name for row in rows] == list(CLASSES)
    for column, row in enumerate(rows):
        assert row.positives["train"] == reported.train[row.name]
        assert row.positives["validation"] == reported.validation.labels[:, column].sum()
        assert row.positives["test"] == reported.test.labels[:, column].sum()


@pytest.mark.parametrize("labels", ["several classes", "one class"])
def test_rows_of_some_classes_are_those_of_the_whole_table(labels, reported):
    if labels == "one class":
        splits = [replace(part, labels=part.outputs.argmax(1) % 2) for part in (reported.validation, reported.test)]
        reported = NetReport(validation=splits[0], test=splits[1], train=None)
    table = class_table(reported, resamples=10)
    assert all(row.figures for row in table[:2])
    assert class_table(reported, resamples=10, classes={"b", "c"}) == table[1:]


def test_figures_are_those_of_scikit_learn_at_thresholds_of_the_validation_split(rows, reported):
    thresholds = MacroF1().fit(reported.validation).thresholds
    for column, row in enumerate(rows[:2]):
        truth, outputs = reported.test.labels[:, column], reported.test.outputs[:, column]
        assert row.threshold == thresholds[column]
        predicted = outputs >= row.threshold
        expected = {
            "precision": precision_score(truth, predicted),
            "recall": recall_score(truth, predicted),
            "f1": f1_score(truth, predicted),
            "auroc": roc_auc_score(truth, outputs),
            "auprc": average_precision_score(truth, outputs),
        }
        assert dict(row.figures) == pytest.approx(expected)
        for name, (low, high) in row.intervals.items():
            assert low < row.figures[name] < high


def test_a_class_without_positives_has_a_row_without_figures(rows):
    assert rows[2].positives == {"train": 0, "validation": 75, "test": 0}
    assert rows[2].figures == {}


def test_test_labels_do_not_change_thresholds(reported):
    permuted = Predictions(
        labels=np.random.default_rng(5).permutation(reported.test.labels),
        outputs=reported.test.outputs,
        classes=CLASSES,
    )
    table = class_table(NetReport(validation=reported.validation, test=permuted, train=None), resamples=2)
    assert [row.threshold for row in table] == [row.threshold for row in class_table(reported, resamples=2)]
    assert table[0].figures != class_table(reported, resamples=2)[0].figures


def test_another_rule_may_choose_the_thresholds(reported):
    table = class_table(reported, thresholds_by=FixedThresholds(1.5), resamples=2)
    assert [row.threshold for row in table] == [1.5] * 3


def test_thresholds_for_a_sensitivity_have_a_specificity_instead_of_f1(reported):
    unknown = replace(reported.test, labels=np.where(np.arange(120)[:, None] < 20, np.nan, reported.test.labels))
    for test, first in ((reported.test, 0), (unknown, 20)):
        report = replace(reported, test=test)
        table = class_table(report, thresholds_by=MinimumSensitivity(0.9), resamples=2)
        truth, outputs = reported.test.labels[first:, 0] > 0, reported.test.outputs[first:, 0]
        assert table[0].figures["specificity"] == pytest.approx((outputs < table[0].threshold)[~truth].mean())
        assert table[0].figures["recall"] == pytest.approx((outputs >= table[0].threshold)[truth].mean())
        assert "f1" not in table[0].figures


def test_multiclass_has_no_thresholds():
    labels = np.arange(30) % 3
    perfect = Predictions(labels=labels, outputs=np.eye(3)[labels], classes=CLASSES)
    table = class_table(NetReport(validation=perfect, test=None, train=None), resamples=2)
    assert all(row.threshold is None and row.figures["f1"] == 1 for row in table)
    report = NetReport(validation=perfect, test=None, train=None)
    by_sensitivity = class_table(report, thresholds_by=MinimumSensitivity(), resamples=2)
    assert all(row.threshold is None and row.figures["specificity"] == 1 for row in by_sensitivity)
    assert table[0].positives == {"train": None, "validation": 10, "test": None}


def test_classes_of_positions_have_the_intersection_over_union_instead_of_ranks():
    labels, decisions = np.array([[0, 0, 1, 1], [1, 2, -1, -1]]), np.array([[0, 1, 1, 1], [1, 2, 0, 0]])
    pixels = Predictions(labels=labels, outputs=decisions, classes=CLASSES, per_position=True)
    table = class_table(NetReport(validation=pixels, test=None, train=None), resamples=2)
    expected = MeanIoU().compute(pixels).by_class
    assert {row.name: row.figures["iou"] for row in table} == pytest.approx(dict(expected))
    assert table[0].figures["iou"] == 1 / 2
    headings = [str(column.header) for column in table_of(table, "net", width=200).columns]
    assert headings[5:] == ["precision", "recall", "f1", "iou"]


def test_the_predictions_of_a_net_are_read_from_its_run_folder(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {"positives": {"a": 7}}, None)
    for stage, seed in ((1, 0), (9, 1), (10, 0)):  # the last stage of a net counts, and 10 is after 9
        folder.stage(stage, "net").save_predictions("net", "validation", predictions(seed))
    folder.stage(10, "net").save_predictions("net", "test", predictions(1))
    folder.save_metrics("test", {"net": {}})
    assert [*read_metrics(folder.path).results] == ["net"]
    report = read_net_report(folder.path, "net")
    assert report.train == {"a": 7}
    for loaded, saved in ((report.validation, predictions(0)), (report.test, predictions(1))):
        assert loaded.classes == CLASSES
        for name in ("labels", "outputs", "ids", "groups"):
            assert np.array_equal(getattr(loaded, name), getattr(saved, name))


def test_the_classes_of_a_run_that_is_not_evaluated_yet_have_a_note(tmp_path, kdkit_here):
    folder = RunFolder.create(tmp_path / "run", {}, None)
    folder.stage(0, "net").save_predictions("net", "validation", predictions(0))
    for complete in (False, True):
        folder.save_metrics("validation", {"net": {}}, complete=complete)
        printed = kdkit_here("classes", folder.path, "--resamples", "2").out
        assert "net, on validation" in printed
        assert ("the evaluation of this run is not finished" in printed) is not complete


def test_a_run_folder_without_the_predictions_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run"):
        read_metrics(tmp_path)
    stage = tmp_path / "runs" / "first" / "2-student"
    stage.mkdir(parents=True)
    (stage.parent / "run.json").touch()
    with pytest.raises(RunFolderError, match=r"it is a part of the run .*first$"):
        read_metrics(stage)
    with pytest.raises(RunFolderError, match=r"there is no folder .*frist; did you mean 'first'?"):
        read_metrics(tmp_path / "runs" / "frist")
    with pytest.raises(RunFolderError, match="holds no run"):
        read_net_report(tmp_path, "net")
    folder = RunFolder.create(tmp_path / "run", {}, None)
    folder.stage(0, "net").save_predictions("net", "validation", predictions(0))
    with pytest.raises(RunFolderError, match="did you mean 'net'"):
        read_net_report(folder.path, "nett")


def test_a_damaged_file_of_predictions_is_named(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {}, None)
    folder.stage(0, "net").save_predictions("net", "validation", predictions(0))
    folder.save_metrics("validation", {"net": {}})
    (file,) = folder.path.glob("*/*.safetensors")
    file.write_bytes(b"{}")
    with pytest.raises(RunFolderError, match="predictions-net-validation"):
        read_net_report(folder.path, "net")


def test_the_printed_table_shows_a_dash_for_undefined_figures(rows):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table_of(rows, "net, on test", width=200))
    lines = {line.split()[1]: line for line in capture.get().splitlines() if line.startswith("│")}
    assert set(lines) == set(CLASSES)
    assert f"{rows[0].figures['auroc']:.2f} (" in lines["a"]
    assert lines["c"].count(" - ") == len(rows[0].figures) == len(FIGURES) - 2  # no IoU and no specificity


def test_a_threshold_is_shown_as_a_probability_and_infinity_as_never():
    labels = np.zeros((4, 2))
    labels[:2, 0] = 1
    outputs = np.array([[2.0, 0], [2.0, 0], [-2.0, 0], [-2.0, 0]])
    two_classes = Predictions(labels=labels, outputs=outputs, classes=("present", "never"))
    rows = class_table(NetReport(validation=two_classes, test=None, train=None), resamples=2)
    assert [row.threshold for row in rows] == [0.0, math.inf]
    column = table_of(rows, "t", width=120).columns[4]
    assert list(column.cells) == ["0.500", "never"]


def test_positives_of_a_run_are_saved_as_json(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {"positives": {"a": 7}}, None)
    assert json.loads((folder.path / "run.json").read_text())["positives"] == {"a": 7}
