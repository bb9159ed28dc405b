"""Reports of a finished run refuse files that are missing, damaged or foreign, and name the file and the reason."""

import json

import numpy as np
import pytest
import torch

import kdkit
from kdkit import MetricResult, Predictions, Study, Trial
from kdkit.engine.storage.finished_run import read_class_table, read_metrics, read_net_report
from kdkit.engine.storage.predictions import read_predictions
from kdkit.engine.storage.run_files import FORMAT
from kdkit.engine.storage.run_folder import RunFolder
from kdkit.errors import RunFolderError
from kdkit.utils.sealed import UNSEALED, seal, tensor_parts
from tests.helpers.tiny import one_stage, plain_goal, tiny_net

CLASSES = ("a", "b", "c")
LOGITS = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
INDICES = np.arange(30) % 3
SEVERAL = (LOGITS > 0.3).astype(np.float32)


def predictions(labels=INDICES, outputs=LOGITS, **options):
    return Predictions(labels=labels, outputs=outputs, classes=CLASSES, **options)


@pytest.fixture
def run(tmp_path):
    """A finished run with a test split."""
    folder = RunFolder.create(tmp_path / "run", {"positives": {"a": 7}}, None)
    for split in ("validation", "test"):
        folder.stage(0, "net").save_predictions("net", split, predictions())
    folder.save_metrics("test", {"net": {"f1": MetricResult(value=0.5, by_class={"a": 0.5}, note="n")}})
    return folder.path


def file_of(run, split="test"):
    return run / "1-net" / f"predictions-net-{split}.safetensors"


def test_missing_test_predictions_are_not_taken_for_a_run_without_a_test_split(run, kdkit_here):
    assert kdkit_here("classes", run, "--resamples", 2).code == 0
    file_of(run).unlink()
    for options in ((), ("--net", "net")):
        result = kdkit_here("classes", run, "--resamples", 2, *options)
        assert result.code == 2
        assert f"{file_of(run)} is missing; restore it from a copy, or run the recipe again" in result.err
        assert result.out == ""


def test_a_run_without_a_test_split_is_reported_on_the_validation_split(tmp_path, kdkit_here):
    folder = RunFolder.create(tmp_path / "run", {}, None)
    folder.stage(0, "net").save_predictions("net", "validation", predictions(SEVERAL))
    folder.save_metrics("validation", {"net": {}})
    result = kdkit_here("classes", folder.path, "--resamples", 2)
    assert result.code == 0
    assert "there is no test split" in result.out


def test_stored_predictions_are_those_of_both_splits(run):
    file_of(run).unlink()
    RunFolder(run).stage(0, "net").save_predictions("net", "test", predictions(outputs=-LOGITS, ids=INDICES))
    validation, test = kdkit.stored_predictions(str(run), "net")
    assert (validation.outputs == LOGITS).all()
    assert (test.outputs == -LOGITS).all()
    assert test.ids.tolist() == INDICES.tolist()
    with pytest.raises(RunFolderError, match=r"holds no predictions of 'nets'; did you mean 'net'\?"):
        kdkit.stored_predictions(run, "nets")


@pytest.mark.parametrize(("processes", "command"), [(1, "kdkit"), (2, "torchrun --nproc-per-node=2 -m kdkit")])
def test_the_command_that_resumes_a_run_starts_as_many_processes_and_quotes_its_folder(processes, command, tmp_path):
    folder = RunFolder.create(tmp_path / "my run", {"command": {}, "processes": processes}, None).path
    with pytest.raises(RunFolderError, match=rf"; to resume it: {command} run --resume '{folder}'$"):
        read_metrics(folder)


def test_a_net_whose_evaluation_was_interrupted_is_refused(run):
    RunFolder(run).stage(1, "late").save_predictions("late", "validation", predictions())
    with pytest.raises(RunFolderError, match="holds no metrics of 'late'; resume the run"):
        read_net_report(run, "late")


def test_unreadable_predictions_are_not_called_missing(run):
    file_of(run).unlink()
    file_of(run).mkdir()
    with pytest.raises(RunFolderError, match=r"predictions-net-test\.safetensors cannot be read: it is not a file"):
        read_net_report(run, "net")


def test_predictions_without_permission_are_not_called_missing(run, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")  # tests may run as a user who may read everything

    monkeypatch.setattr("kdkit.engine.storage.predictions.read_tensors", refuse)
    with pytest.raises(RunFolderError, match=r"cannot be read: \[Errno 13\] Permission denied"):
        read_net_report(run, "net")


def changed(array, index, value):
    array = array.copy()
    array[index] = value
    return array


WRONG = {
    "an index beyond the classes": (
        {"labels": changed(INDICES, 4, 3)},
        "a label of sample 4 is 3, but must be from 0 to 2",
    ),
    "a negative index": ({"labels": changed(INDICES, 4, -1)}, "a label of sample 4 is -1, but must be from 0 to 2"),
    "whole numbers by class": ({"labels": changed(SEVERAL, (5, 1), 2).astype(int)}, "a label of sample 5 is 2"),
    "an infinite label": ({"labels": changed(SEVERAL, (5, 1), np.inf)}, "a label is infinite"),
    "an output that is not a number": ({"outputs": changed(LOGITS, (6, 0), np.nan)}, "the outputs of sample 6 are not"),
    "an infinite output": ({"outputs": changed(LOGITS, (6, 0), np.inf)}, "the outputs of sample 6 are not finite"),
    "outputs of fewer classes": ({"outputs": LOGITS[:, :2]}, r"outputs \(30, 2\) for 3 classes"),
    "outputs without classes": ({"outputs": LOGITS[:, 0]}, r"outputs \(30,\) for 3 classes"),
    "outputs with positions": ({"outputs": LOGITS[..., None]}, r"outputs \(30, 3, 1\) for 3 classes"),
    "labels of fewer classes": ({"labels": SEVERAL[:, :2] > 0}, r"labels \(30, 2\) and outputs .* for 3 classes"),
    "fewer labels": ({"labels": INDICES[:29]}, "got 29 labels, 30 outputs"),
    "whole outputs": ({"outputs": LOGITS.astype(int)}, "outputs are int64, but logits must be floats"),
    "ids that are floats": ({"ids": INDICES.astype(float)}, r"ids are float64 of shape \(30,\)"),
    "ids of two dimensions": ({"ids": INDICES[:, None]}, r"ids have the shape \(30, 1\)"),
    "fewer groups": ({"groups": INDICES[:3]}, "3 groups"),
    "no samples": ({"labels": INDICES[:0], "outputs": LOGITS[:0]}, "it has no samples"),
    "an unknown array": ({"weights": LOGITS}, "predictions have no 'weights'"),
    "positions beyond the classes": (
        {"labels": changed(np.zeros((30, 4), np.int8), (3, 2), 3), "outputs": np.zeros((30, 4), np.int8), "maps": True},
        "a label of sample 3 is 3, but must be from -1 to 2",
    ),
    "decisions beyond the classes": (
        {"labels": np.zeros((30, 4), np.int8), "outputs": changed(np.zeros((30, 4), np.int8), (3, 2), 9), "maps": True},
        "a decision of sample 3 is 9, but must be from 0 to 2",
    ),
    "decisions of another shape": (
        {"labels": np.zeros((30, 4), np.int8), "outputs": np.zeros((30, 5), np.int8), "maps": True},
        "it has decisions",
    ),
}


def write(file, arrays, classes=CLASSES):
    """Write predictions with a valid checksum."""
    arrays = {"labels": INDICES, "outputs": LOGITS, **arrays}
    facts = {"format": FORMAT, "classes": classes, "per_position": arrays.pop("maps", False)}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    file.write_bytes(b"".join(tensor_parts(tensors, facts)))


@pytest.mark.parametrize("case", WRONG)
def test_predictions_that_no_run_writes_are_refused_by_file_and_reason(run, kdkit_here, case):
    arrays, reason = WRONG[case]
    write(file_of(run), arrays)
    with pytest.raises(RunFolderError, match=rf"predictions-net-test\.safetensors cannot be read: .*{reason}"):
        read_net_report(run, "net")
    result = kdkit_here("classes", run, "--resamples", 2)
    assert result.code == 2
    assert result.err.startswith(f"error: {file_of(run)} cannot be read: ")


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        ([1, 2, 3], "not a list of names"),
        ([], "not a list of names"),
        ("abc", "not a list of names"),
        (["a", "a", "b"], "two classes have the same name"),
        (["a", "b"], r"outputs \(30, 3\) for 2 classes"),
    ],
)
def test_names_of_classes_that_do_not_match_are_refused(run, classes, reason):
    write(file_of(run), {}, classes)
    with pytest.raises(RunFolderError, match=reason):
        read_net_report(run, "net")


def test_splits_of_other_classes_are_refused(run):
    write(file_of(run), {}, ("a", "b", "d"))
    with pytest.raises(RunFolderError, match=r"-test\.safetensors does not have the classes of the validation split"):
        read_net_report(run, "net")


VALID = {
    "indices": {},
    "several": {"labels": SEVERAL},
    "unknown": {"labels": changed(SEVERAL, (5, 1), np.nan)},
    "numbers": {"labels": LOGITS * 7},
    "packed numbers": {"labels": np.zeros((30, 4, 5), np.float32), "outputs": np.zeros((30, 9, 6), np.float32)},
    "maps": {"labels": np.full((30, 4), -1, np.int8), "outputs": np.zeros((30, 4), np.int8), "maps": True},
    "several maps": {"labels": np.zeros((30, 3, 4), np.int8), "outputs": np.zeros((30, 3, 4), bool), "maps": True},
}


@pytest.mark.parametrize("case", VALID)
def test_predictions_of_every_task_are_read(tmp_path, case):
    write(tmp_path / "file.safetensors", VALID[case])
    assert len(read_predictions(tmp_path / "file.safetensors")) == 30


def test_one_number_per_sample_is_read(tmp_path):
    write(tmp_path / "file.safetensors", {"labels": LOGITS[:, 0], "outputs": LOGITS[:, :1]}, ["0"])
    assert len(read_predictions(tmp_path / "file.safetensors")) == 30


def test_labels_that_have_no_table_of_classes_name_the_net_and_the_folder(run):
    for split in ("validation", "test"):
        write(file_of(run, split), VALID["numbers"])
    with pytest.raises(RunFolderError, match=rf"predictions of 'net' in {run} have no table of classes: .* in row"):
        read_class_table(run, "net", resamples=2)


def test_numbers_from_0_to_1_are_not_taken_for_classes(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {"task": "regression"}, None)
    folder.stage(0, "net").save_predictions("net", "validation", predictions(SEVERAL / 2))
    folder.save_metrics("validation", {"net": {}})
    with pytest.raises(RunFolderError, match=r"run has no table of classes: its labels are numbers \(regression\)"):
        read_class_table(folder.path, "net", resamples=2)


METRICS = {"reported_on": "test", "metrics": {"net": {"f1": {"value": 0.5, "by_class": {"a": 0.5}, "note": ""}}}}
DAMAGED = {
    "": "Expecting value",
    "[]": "it has no checksum",
    "null": "it has no checksum",
    "{}": "it has no checksum",
    '{"metrics": {}}': "it has no 'reported_on'",
    '{"reported_on": "train", "metrics": {}}': "'train', which is not a split",
    '{"reported_on": "test"}': "it has no 'metrics'",
    '{"reported_on": "test", "metrics": 3}': "expected an object, got a int",
    json.dumps(METRICS).replace("0.5", "NaN"): "NaN is not a finite number",
    json.dumps(METRICS).replace("0.5", "1e999"): "1e999 is not a finite number",
    json.dumps(METRICS).replace("0.5", "9" * 400): "a number is too large",
    json.dumps(METRICS).replace("0.5", "9" * 5000): "Exceeds the limit",
    json.dumps(METRICS).replace("0.5", "true"): "expected a number, got a bool",
    json.dumps(METRICS).replace('""', "3"): "expected a string, got a int",
    '{"metrics": {}, ' + json.dumps(METRICS)[1:]: "it has the key 'metrics' twice",
    "[" * 100_000: "nested too deeply",
    '{"metrics": ' + "[" * 100 + "]" * 100 + "}": "nested too deeply",
    "[" + "[]," * 1_600_000 + "[]]": "more than 3000000 values",
}


@pytest.mark.parametrize(("text", "reason"), DAMAGED.items(), ids=range(len(DAMAGED)))
def test_damaged_metrics_are_refused_by_file_and_reason(run, text, reason, kdkit_here):
    if text.startswith("{") and text != "{}":  # with a valid checksum, so that the content is the reason
        text = b"".join(seal(f'{{"checksum": "{UNSEALED}", {text[1:]}'.encode())).decode()
    (run / "metrics.json").write_text(text)
    with pytest.raises(RunFolderError, match=rf"metrics\.json cannot be read: .*({reason})"):
        read_metrics(run)
    assert kdkit_here("classes", run).code == 2


def test_the_format_of_a_finished_trial_is_checked(run, tmp_path):
    def recipe():
        return one_stage(tiny_net("net"), plain_goal())

    study = Study(tmp_path, [Trial(name="run", recipe=recipe)])
    assert study.metrics("run")["net"]["f1"].value == 0.5
    (run / "trial.json").write_text("{}")
    record = run / "run.json"
    for text, reason in (
        (json.dumps({"format": 1}), "has format 1"),
        ("[" * 10**5, "nested too deeply"),
        ("3", "a int"),
    ):
        record.write_text(text)
        for read in (lambda: study.metrics("run"), lambda: study.predictions("run", "net")):
            with pytest.raises(RunFolderError, match=reason):
                read()
        (result,) = study.run()
        assert result.state == "failed"
        assert isinstance(result.error, RunFolderError)
        assert reason in str(result.error)


def test_embeddings_of_pairs_with_a_number_per_pair_are_read(tmp_path):
    arrays = {"labels": LOGITS[:, :1], "outputs": LOGITS[:, :2, None].repeat(5, 2)}
    write(tmp_path / "file.safetensors", arrays, ["0"])
    assert read_predictions(tmp_path / "file.safetensors").outputs.shape == (30, 2, 5)
