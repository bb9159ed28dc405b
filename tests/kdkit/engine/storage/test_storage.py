"""A run folder: every file is written whole or not at all, and a folder is resumed only by the run it belongs to."""

import contextlib
import hashlib
import json
import math
import os
import re
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kdkit import MetricResult, Predictions
from kdkit.engine.storage.finished_run import read_metrics, read_net_report
from kdkit.engine.storage.predictions import predictions_file, read_predictions
from kdkit.engine.storage.run_files import FORMAT, require_format
from kdkit.engine.storage.run_folder import NoRunFolder, RunFolder, default_path, read_record
from kdkit.engine.storage.stage_folder import EndedEpoch, StageFolder
from kdkit.errors import RunFolderError
from kdkit.utils.files import write
from kdkit.utils.sealed import json_parts, tensor_parts

RECORD = {
    "recipe_sha256": "abc",
    "options": {"leads": "3"},
    "seed": 0,
    "precision": "fp32",
    "data": "x",
    "stages": ["s"],
}
STATE = {"train_state": {"updates": 3, "lr_scheduler": {"count": 1}, "moments": torch.ones(2)}, "position": None}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def json_of(file):
    """Return the JSON object in a sealed file without its checksum."""
    content = json.loads(file.read_text())
    assert re.fullmatch("sha256:[0-9a-f]{64}", content.pop("checksum"))
    return content


def ended(entry, **changes):
    """Return an epoch that has ended, of which nothing but the line of its history is saved."""
    return EndedEpoch(**{"entry": entry, "best_weights": {}, "weights": {}, "kept": range(0), **changes})


def save(stage, step, state=STATE, epoch=None):
    """Save a checkpoint, and wait until it is on the disk."""
    stage.save_checkpoint(step, lambda: state, epoch)
    stage.wait()


@pytest.fixture
def stage(tmp_path):
    """The folder of a stage in a run folder; the thread that writes its checkpoints ends with the test."""
    folder = RunFolder.create(tmp_path / "run", RECORD, None).stage(0, "net")
    yield folder
    with contextlib.suppress(RunFolderError):
        folder.wait()


# Files


@pytest.mark.parametrize("content", ["text with ü", b"bytes\0"])
def test_writing_a_file_creates_the_folders_above_it(tmp_path, content):
    path = tmp_path / "a" / "b" / "file"
    write(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(path.parent) == ["file"]


def test_writing_a_file_again_replaces_all_of_it(tmp_path):
    write(tmp_path / "file", "a long first text")
    write(tmp_path / "file", "short")
    assert (tmp_path / "file").read_text() == "short"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    def fail(*_):
        raise KeyboardInterrupt

    write(tmp_path / "file", "old")
    target = {"fsync": "os.fsync", "replace": "pathlib.Path.replace"}[failing]
    monkeypatch.setattr(target, fail)  # before the new content is on disk, or before it has the name
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


# Creating a run folder


def test_a_new_run_folder_holds_its_record_and_a_copy_of_the_recipe(tmp_path):
    folder = RunFolder.create(tmp_path / "run", RECORD, b"def recipe(): ...\n")
    assert json_of(folder.path / "run.json") == {"format": FORMAT, **RECORD}
    assert (folder.path / "recipe.py").read_text() == "def recipe(): ...\n"


def test_a_run_without_a_recipe_file_has_no_copy_of_it(tmp_path):
    assert names(RunFolder.create(tmp_path / "run", RECORD, None).path) == ["run.json"]


def test_an_empty_folder_can_become_a_run_folder(tmp_path):
    RunFolder.create(tmp_path, RECORD, None)


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    RunFolder.create(tmp_path / "run", RECORD, None)
    with pytest.raises(RunFolderError, match=r"already holds a run; resume it \(--resume, or resume=True\)"):
        RunFolder.create(tmp_path / "run", RECORD, None)


def test_a_folder_that_holds_other_files_is_refused_and_unchanged(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="exists and is not a run folder"):
        RunFolder.create(tmp_path, RECORD, None)
    assert names(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("file", "exists and is not a run folder"),
        ("file/run", "cannot be written"),
        ("file/a/run", "file is a file"),
        ("x" * 300, "cannot be written"),  # file systems allow names of 255 bytes
        ("new/" + "x" * 300, "cannot be written"),
        ("null\0", "cannot be written"),
    ],
)
def test_a_path_that_cannot_become_a_folder_is_refused_before_anything_is_written(tmp_path, path, message):
    (tmp_path / "file").write_text("x")
    for attempt in (
        lambda: RunFolder.create(tmp_path / path, RECORD, None),
        lambda: RunFolder.require_usable(tmp_path / path, resume=False),
    ):
        with pytest.raises(RunFolderError, match=message):
            attempt()
    with pytest.raises(RunFolderError):
        RunFolder.reopen(tmp_path / path, RECORD)
    assert (tmp_path / "file").read_text() == "x"
    assert names(tmp_path) == ["file"]


def test_require_usable_checks_a_folder_and_writes_nothing(tmp_path):
    RunFolder.require_usable(tmp_path / "new" / "run", resume=False)
    with pytest.raises(
        RunFolderError, match=r"there is no run in .*new to resume; to start one, leave out --resume, or resume=True"
    ):
        RunFolder.require_usable(tmp_path / "new", resume=True)
    assert names(tmp_path) == []
    RunFolder.create(tmp_path / "run", RECORD, None)
    RunFolder.require_usable(tmp_path / "run", resume=True)
    with pytest.raises(RunFolderError, match="already holds a run"):
        RunFolder.require_usable(tmp_path / "run", resume=False)
    with pytest.raises(RunFolderError, match="exists and is not a run folder"):
        RunFolder.require_usable(tmp_path, resume=False)


def test_the_default_path_does_not_exist_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = default_path("recipe")
    assert first.parts[0] == "runs"
    assert first.name.startswith("recipe-")
    first.mkdir(parents=True)
    assert not default_path("recipe").exists()  # also within the same second


# Resuming a run


def test_a_run_can_be_resumed_on_another_device(tmp_path):
    RunFolder.create(tmp_path / "run", {**RECORD, "device": "cpu"}, None)
    assert RunFolder.reopen(tmp_path / "run", {**RECORD, "device": "cuda"}).path == tmp_path / "run"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "holds a run that differs in its seed: expected 0, got 1"),
        ({"data": "y"}, "differs in its data: expected 'x', got 'y'"),
        ({"options": {"leads": "2"}}, "differs in its options: "),
        ({"recipe_sha256": "def"}, r"differs in its recipe sha256: .* \(the code of the recipe has changed\)"),
        ({"stages": ["s", "t"]}, "differs in its stages: "),
        ({"precision": "bf16"}, "differs in its precision: "),
        ({"nets": {"student": {"parameters": 3}}}, "differs in its nets: "),
        ({"trainings": ["Training(epochs=3)"]}, "differs in its trainings: "),
        ({"data": "y"}, r"random data that is created outside recipe\(\)"),
    ],
)
def test_a_folder_of_a_different_run_cannot_be_resumed(tmp_path, changes, message):
    RunFolder.create(tmp_path / "run", RECORD, None)
    with pytest.raises(RunFolderError, match=message):
        RunFolder.reopen(tmp_path / "run", {**RECORD, **changes})


def test_other_stages_are_named_without_the_networks_and_trainings_that_follow_from_them(tmp_path):
    RunFolder.create(tmp_path / "run", {**RECORD, "baseline": True, "stages": ["s", "s-alone"], "nets": {"t": 1}}, None)
    with pytest.raises(RunFolderError) as caught:
        RunFolder.reopen(tmp_path / "run", {**RECORD, "baseline": False, "nets": {}, "trainings": ["Training()"]})
    assert "baseline: expected True, got False; and in its stages: expected ['s', 's-alone']" in str(caught.value)
    assert "nets" not in str(caught.value)
    assert "trainings" not in str(caught.value)


@pytest.mark.parametrize("value", [None, 3, "1.0", ["1.0"]])
def test_a_record_with_other_kinds_of_values_differs_and_can_be_forced(value, tmp_path):
    record = {**RECORD, "versions": value, "forced": value, "format": FORMAT}
    RunFolder.create(tmp_path / "run", RECORD, None)
    write(tmp_path / "run" / "run.json", *json_parts(record))
    current = {**RECORD, "versions": {"kdkit": "1"}}
    with pytest.raises(RunFolderError, match=r"version of kdkit: expected None, got '1'"):
        RunFolder.reopen(tmp_path / "run", current)
    RunFolder.reopen(tmp_path / "run", current, force=True)
    assert "version of kdkit" in read_record(tmp_path / "run")["forced"][-1]


def test_a_run_that_is_forced_to_resume_names_the_stages_to_which_the_changes_do_not_apply(tmp_path):
    run = tmp_path / "run"
    RunFolder.create(run, RECORD, None)
    for file in ("2-teacher/stage.json", "2-teacher/checkpoint-4.safetensors", "10-student/checkpoint-4.safetensors"):
        (run / file).parent.mkdir(exist_ok=True)
        (run / file).touch()
    message = r"2-teacher is not trained again; 10-student keeps the optimizer .* to train a stage again, delete its fo"
    with pytest.warns(UserWarning, match=message):
        RunFolder.reopen(run, {**RECORD, "seed": 1}, force=True)
    RunFolder.reopen(run, {**RECORD, "seed": 1}, force=True)  # nothing has changed


@pytest.mark.parametrize(
    ("version", "code", "change"),
    [
        ("1", {"sleep": "b"}, "its files differ"),
        ("2", {"sleep": "b"}, "then '1', now '2'"),
        (None, {}, "then '1', now 'not installed'"),
    ],
)
def test_a_plugin_that_has_changed_since_the_run_began_is_a_warning(tmp_path, version, code, change):
    before = {**RECORD, "plugin_code": {"sleep": "a"}, "versions": {"sleep": "1"}}
    RunFolder.create(tmp_path / "run", before, None)
    RunFolder.reopen(tmp_path / "run", {**before, "plugin_code": {"sleep": "a", "other": "c"}})  # without a warning
    versions = {"sleep": version} if version else {}
    with pytest.warns(UserWarning, match=rf"the package sleep of a plugin has changed since .*run began \({change}\)"):
        RunFolder.reopen(tmp_path / "run", {**before, "plugin_code": code, "versions": versions})


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(RunFolderError, match=r"there is no run\.json in it"):
        RunFolder.reopen(tmp_path, RECORD)


@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b"", b"\xff"])
def test_a_run_with_a_damaged_record_cannot_be_resumed(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"run\.json cannot be read.*choose another folder"):
        RunFolder.reopen(tmp_path, RECORD)
    with pytest.raises(RunFolderError, match=r"run\.json cannot be read"):
        RunFolder.require_usable(tmp_path, resume=True)


def test_a_memory_address_in_a_record_does_not_make_a_different_run(tmp_path):
    training = "Training(lr_schedule=LRSchedule(LambdaLR, lr_lambda=<function falling at 0x{}>))"
    first, second = (
        {"trainings": [training.format(address)], "nets": {"net": {"view": f"<Mine object at 0x{address}>"}}}
        for address in ("7f01ab", "7fff00")
    )
    RunFolder.create(tmp_path / "run", {**RECORD, **first}, None)
    RunFolder.reopen(tmp_path / "run", {**RECORD, **second})


# Metrics


def test_metrics_are_saved_by_net_and_name(tmp_path):
    folder = RunFolder.create(tmp_path / "run", RECORD, None)
    folder.save_metrics("test", {"student": {"macro_f1": MetricResult(value=0.5, by_class={"a": 0.5}, note="n")}})
    saved = json_of(folder.path / "metrics.json")
    assert saved["reported_on"] == "test"
    assert saved["metrics"]["student"]["macro_f1"] == {"value": 0.5, "by_class": {"a": 0.5}, "note": "n"}
    assert [*read_metrics(folder.path).results] == ["student"]


def strict_json(text):
    """Parse standard JSON, which has no NaN and no infinity. Raises ValueError for either."""

    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def test_a_metric_that_is_not_finite_is_saved_as_null(tmp_path):
    folder = RunFolder.create(tmp_path / "run", RECORD, None)
    folder.save_metrics("test", {"student": {"auc": MetricResult(value=math.nan, by_class={"a": math.inf, "b": 0.5})}})
    saved = strict_json((folder.path / "metrics.json").read_text())["metrics"]["student"]["auc"]
    assert saved == {"value": None, "by_class": {"a": None, "b": 0.5}, "note": ""}


# The folder of a stage


def test_stage_folders_are_numbered_in_the_order_of_the_stages(tmp_path):
    folder = RunFolder(tmp_path)
    assert [folder.stage(index, name).path.name for index, name in enumerate(["teacher", "student"])] == [
        "1-teacher",
        "2-student",
    ]


def test_loaded_weights_are_equal_to_the_saved_ones(stage):
    # A transposed view is not contiguous, which safetensors itself refuses.
    weights = {"w": torch.randn(3, 4).t(), "n": torch.tensor(3), "p": torch.nn.Parameter(torch.ones(2))}
    stage.save_weights("net", weights)
    loaded = stage.load_weights("net")
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)
    assert names(stage.path) == ["weights.safetensors"]


def test_weights_that_share_memory_are_saved_twice(stage):
    # safetensors refuses tensors that share memory, such as tied weights.
    shared = torch.ones(4)
    stage.save_weights("net", {"a": shared, "b": shared})
    assert stage.load_weights("net")["b"].tolist() == [1, 1, 1, 1]


def test_each_net_of_a_stage_has_its_weights_file(tmp_path):
    # Only a stage that is named after its one network saves it as weights.safetensors.
    stage = RunFolder.create(tmp_path / "run", RECORD, None).stage(0, "one+two")
    for name, value in (("one", 1.0), ("two", 2.0)):
        stage.save_weights(name, {"w": torch.tensor(value)})
    assert [stage.load_weights(name)["w"].item() for name in ("one", "two")] == [1, 2]


def test_a_checkpoint_can_be_loaded_until_the_stage_is_finished(stage):
    assert stage.load_checkpoint() is None
    save(stage, 4, epoch=ended({"epoch": 0}))
    state, history, notice = stage.load_checkpoint()
    assert state["train_state"]["updates"] == 3
    assert state["train_state"]["moments"].tolist() == [1, 1]
    assert history == [{"epoch": 0}]
    assert notice is None
    assert not stage.finished
    stage.finish({"best_epoch": 1, "value": math.nan})
    assert stage.finished
    assert names(stage.path) == ["history.jsonl", "stage.json"]
    digest = hashlib.sha256((stage.path / "history.jsonl").read_bytes()).hexdigest()
    summary = {"format": FORMAT, "history": {"epochs": 1, "sha256": digest}, "best_epoch": 1, "value": None}
    assert json_of(stage.path / "stage.json") == summary
    strict_json((stage.path / "stage.json").read_text())
    assert stage.load_finished() == (summary, [{"epoch": 0}])


def test_a_checkpoint_is_a_copy_of_the_state_as_it_was_saved(stage):
    moments = torch.zeros(1000)
    stage.save_checkpoint(1, lambda: {"moments": moments})
    moments += 1  # while a thread may be writing
    stage.wait()
    assert not stage.load_checkpoint()[0]["moments"].any()


def test_the_last_two_checkpoints_are_kept(stage):
    for step in (5, 9, 10, 11):
        save(stage, step, {"step": step})
    assert names(stage.path) == ["checkpoint-10.safetensors", "checkpoint-11.safetensors"]
    assert stage.load_checkpoint()[0] == {"step": 11}  # 9 is less than 11, as a number


def test_checkpoints_from_before_a_forced_change_of_the_batch_size_do_not_replace_later_ones(stage):
    for step in (100, 200, 15, 20):  # from 200 on with a tenth of the batches per epoch
        save(stage, step, {"step": step})
        assert stage.load_checkpoint()[0] == {"step": step}
    assert names(stage.path) == ["checkpoint-15.safetensors", "checkpoint-20.safetensors"]


def test_a_run_waits_for_a_checkpoint_that_an_ended_run_of_this_process_is_still_writing(stage, monkeypatch):
    """Two interrupts end a run without waiting; in a notebook, the next cell may resume it."""
    save(stage, 1)
    may_write, fsync = threading.Event(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: may_write.wait(30) and fsync(handle))
    stage.save_checkpoint(2, lambda: {**STATE, "position": 7})
    threading.Timer(0.1, may_write.set).start()
    assert StageFolder(stage.path).load_checkpoint()[0]["position"] == 7


def test_a_stage_whose_run_folder_is_gone_creates_no_part_of_it_again(stage):
    save(stage, 1)
    stage.path.parent.rename(stage.path.parent.with_name("renamed"))
    for write_file in (lambda: save(stage, 2), lambda: stage.save_weights("net", {}), lambda: stage.finish({})):
        with pytest.raises(RunFolderError, match="no longer exists: it was deleted or renamed while the run was"):
            write_file()
    assert not stage.path.parent.exists()


def test_a_rank_that_does_not_write_leaves_no_file(tmp_path):
    stage = StageFolder(tmp_path / "1-net", writes=False)
    save(stage, 1, epoch=ended({"epoch": 0}))
    stage.save_weights("net", {"w": torch.ones(1)})
    stage.finish({})
    assert names(tmp_path) == []


def test_a_run_without_a_folder_gathers_no_state_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, no_json = NoRunFolder(), np.float32(0.5)
    run.save_metrics("test", {"student": {"mine": MetricResult(value=0.5)}})
    stage = run.stage(0, "net")
    stage.save_checkpoint(1, lambda: pytest.fail("a state may take long to gather"), ended({"epoch": 0}))
    stage.finish({"value": no_json})
    assert (stage.load_checkpoint(), stage.finished) == (None, False)
    assert names(tmp_path) == []


def test_metrics_are_not_saved_in_a_run_folder_that_is_gone(tmp_path):
    folder = RunFolder.create(tmp_path / "run", RECORD, None)
    (tmp_path / "run").rename(tmp_path / "renamed")
    with pytest.raises(RunFolderError, match="no longer exists: it was deleted or renamed while the run was"):
        folder.save_metrics("test", {})
    assert names(tmp_path) == ["renamed"]


def test_the_history_has_a_line_of_json_per_epoch(stage):
    epochs = [{"epoch": 0, "terms": {"truth": 0.5}, "accuracy": 0.25}, {"epoch": 1}]
    for step, epoch in enumerate(epochs):
        save(stage, step, epoch=ended(epoch))
    assert [json.loads(line) for line in (stage.path / "history.jsonl").read_text().splitlines()] == epochs
    assert stage.load_checkpoint()[1] == epochs


def test_a_value_that_is_not_finite_is_null_in_the_history_and_loaded_as_nan(stage):
    save(stage, 1, epoch=ended({"epoch": 0, "accuracy": math.nan, "terms": {"truth": math.inf}}))
    assert strict_json((stage.path / "history.jsonl").read_text()) == {
        "epoch": 0,
        "accuracy": None,
        "terms": {"truth": None},
    }
    (epoch,) = stage.load_checkpoint()[1]
    assert math.isnan(epoch["accuracy"])
    assert math.isnan(epoch["terms"]["truth"])


def test_lines_of_the_history_that_a_checkpoint_does_not_have_are_deleted_with_it(stage):
    """A run that is killed between the two files of an epoch repeats the epoch."""
    save(stage, 1, epoch=ended({"epoch": 0}))
    line = (stage.path / "history.jsonl").read_bytes()
    for later in (b'{"epoch": 1}\n', b'{"epo', b"\0\0\0\0"):  # whole, cut short, or as some file systems leave it
        (stage.path / "history.jsonl").write_bytes(line + later)
        assert stage.load_checkpoint()[1] == [{"epoch": 0}]
        assert (stage.path / "history.jsonl").read_bytes() == line
    again = StageFolder(stage.path)  # as in a new process
    assert again.load_checkpoint()[1] == [{"epoch": 0}]
    save(again, 2, epoch=ended({"epoch": 1}))
    again.wait()
    assert stage.load_checkpoint()[1] == [{"epoch": 0}, {"epoch": 1}]


def test_files_from_before_the_first_checkpoint_are_deleted(stage):
    save(stage, 1, epoch=ended({"epoch": 0}, weights={"net": {"w": torch.ones(1)}}, kept=range(1)))
    (stage.path / "checkpoint-1.safetensors").unlink()
    assert names(stage.path) == ["epoch-0.safetensors", "history.jsonl"]
    assert stage.load_checkpoint() is None
    assert names(stage.path) == []


@pytest.mark.parametrize("ids", [None, np.array([7, 5])])
def test_predictions_are_saved_as_plain_arrays_with_ids_if_the_data_has_them(stage, ids):
    predictions = Predictions(labels=np.array([1, 0]), outputs=np.eye(3)[:2].T[:2], classes=("a", "b"), ids=ids)
    stage.save_predictions("net", "test", predictions)
    saved = load_file(stage.path / "predictions-net-test.safetensors")
    assert ("ids" in saved) == (ids is not None)
    assert ids is None or saved["ids"].tolist() == [7, 5]
    assert saved["labels"].tolist() == [1, 0]
    assert np.array_equal(saved["outputs"].numpy(), predictions.outputs)
    loaded = read_predictions(predictions_file(stage.path, "net", "test"))
    assert np.array_equal(loaded.outputs, predictions.outputs)
    assert loaded.classes == ("a", "b")


# Damaged files


@pytest.fixture
def saved(stage):
    """The folder of a stage with every file that a resumed run reads."""
    save(stage, 1, {"w": torch.ones(30)}, ended({"epoch": 0}, best_weights={"net": {"w": torch.ones(3)}}))
    predictions = Predictions(labels=np.array([1, 0]), outputs=np.eye(2), classes=("a", "b"))
    stage.save_predictions("net", "test", predictions)
    return stage


READERS = {
    "checkpoint-1.safetensors": StageFolder.load_checkpoint,
    "weights.safetensors": lambda stage: stage.load_weights("net"),
    "history.jsonl": StageFolder.load_checkpoint,
    "stage.json": StageFolder.load_finished,
    "predictions-net-test.safetensors": lambda stage: read_predictions(predictions_file(stage.path, "net", "test")),
}


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "garbage", "foreign"])
@pytest.mark.parametrize("name", READERS)
def test_the_error_of_a_damaged_file_names_it_and_the_remedy(saved, name, damage):
    if name == "stage.json":
        saved.finish({"best_epoch": 0})
    file = saved.path / name
    if damage == "missing":
        file.unlink()
    elif damage == "foreign" and file.suffix == ".safetensors":
        save_file({"w": torch.ones(3)}, file)  # of another program
    else:
        content = file.read_bytes()
        damaged = {"empty": b"", "truncated": content[: len(content) // 2]}
        file.write_bytes(damaged.get(damage, b"[1, 2]\n"))
    if (name, damage) == ("checkpoint-1.safetensors", "missing"):  # the stage has not started
        assert saved.load_checkpoint() is None
        return
    with pytest.raises(RunFolderError) as caught:
        READERS[name](saved)
    remedies = (f"delete the folder {saved.path} to train this stage again", "--out FOLDER, or out=FOLDER")
    if name.startswith("predictions"):  # of a stage that is trained
        remedies = ("restore it from a copy, or run the recipe again",)
    for part in (str(file), *remedies):
        assert part in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "flipped", "foreign"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_is_named(saved, damage):
    save(saved, 2, {"w": torch.zeros(30)}, ended({"epoch": 1}))
    file = saved.path / "checkpoint-2.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    damaged = {"truncated": content[:50], "garbage": b"[1, 2]\n", "flipped": content}
    file.write_bytes(damaged.get(damage, b""))
    if damage == "foreign":
        save_file({"w": torch.ones(3)}, file)
    state, history, notice = saved.load_checkpoint()
    assert state["w"].tolist() == [1] * 30
    assert history == [{"epoch": 0}]  # the epoch after it is trained again
    assert re.fullmatch(
        r"checkpoint-2\.safetensors is damaged \(.+\), so the run resumes from checkpoint-1\.safetensors", notice
    )


def test_all_checkpoints_that_are_damaged_are_an_error_that_names_the_oldest(saved):
    save(saved, 2)
    for step in (1, 2):
        (saved.path / f"checkpoint-{step}.safetensors").write_bytes(b"x")
    with pytest.raises(RunFolderError, match=r"checkpoint-1\.safetensors cannot be read"):
        saved.load_checkpoint()


@pytest.mark.parametrize(
    "encoded",
    [{"nonsense": 1}, {"tensor": "x"}, {}, {"dict": 3}, {"tuple": 1}, {"float": []}],
)
def test_a_checkpoint_with_another_content_is_refused(saved, encoded):
    file = saved.path / "checkpoint-1.safetensors"
    facts = {"format": FORMAT, "history": {"epochs": 0, "sha256": hashlib.sha256().hexdigest()}, "state": encoded}
    write(file, *tensor_parts({"w": torch.ones(1)}, facts))
    with pytest.raises(RunFolderError, match=r"checkpoint-1\.safetensors cannot be read"):
        saved.load_checkpoint()


# Files of the first format, which had no "format" key


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def old_run(tmp_path):
    """A run folder as the first format had it: a record without a format, metrics, and a checkpoint of a stage."""
    run = tmp_path / "old"
    (run / "1-net").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps(RECORD))
    (run / "metrics.json").write_text(json.dumps({"reported_on": "test", "scores": {"net": {}}}))
    save_file({"labels": torch.tensor([1, 0])}, run / "1-net" / "predictions-net-validation.safetensors")
    torch.save({"work": {}, "history": [], "kept": {}}, run / "1-net" / "state.pt")
    return run


def old_format_message(file, version=1):
    """Return the whole sentence, as a test compares it to the word."""
    return (
        f"{file} has format {version}, but this version of kdkit reads format {FORMAT}; start the run again in another "
        "folder (--out FOLDER, or out=FOLDER)"
    )


@pytest.mark.parametrize(
    "read",
    [
        lambda run: RunFolder.reopen(run, RECORD),
        lambda run: RunFolder.require_usable(run, resume=True),
        read_metrics,
        lambda run: read_net_report(run, "net"),
    ],
    ids=["reopen", "require_usable", "read_metrics", "read_net_report"],
)
def test_a_run_folder_of_the_first_format_is_refused_and_unchanged(old_run, read):
    before = contents(old_run)
    with pytest.raises(RunFolderError) as caught:
        read(old_run)
    assert str(caught.value) == old_format_message(old_run / "run.json")
    assert contents(old_run) == before


def test_a_checkpoint_of_another_format_is_refused_by_its_number_and_not_as_damaged(saved):
    file = saved.path / "checkpoint-1.safetensors"
    write(file, *tensor_parts({}, {"format": FORMAT + 1, "anything": 1}))
    before = contents(saved.path)
    with pytest.raises(RunFolderError) as caught:
        saved.load_checkpoint()
    assert str(caught.value) == old_format_message(file, FORMAT + 1)
    assert contents(saved.path) == before


@pytest.mark.parametrize("version", [0, 1, FORMAT + 1, None, str(FORMAT)])
def test_every_other_format_is_refused_by_its_number(tmp_path, version):
    with pytest.raises(RunFolderError) as caught:
        require_format({"format": version}, tmp_path / "run.json")
    assert str(caught.value) == old_format_message(tmp_path / "run.json", version)
    require_format({"format": FORMAT}, tmp_path / "run.json")


RECIPE = '''
"""A recipe that leaves a file when it is called."""

from pathlib import Path

from tests.helpers.tiny import one_stage, plain_goal, tiny_net


def recipe():
    Path("called").touch()
    return one_stage(tiny_net("net"), plain_goal())
'''


def test_resuming_a_run_of_the_first_format_exits_with_2_and_changes_nothing(old_run, kdkit_here, tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE)
    before = contents(tmp_path)
    result = kdkit_here("run", "recipe.py", "--out", str(old_run), "--resume", "--device", "cpu")
    assert result.code == 2
    assert old_format_message(old_run / "run.json") in " ".join(result.err.split())
    # No file is changed or added, and the recipe, which may load data for minutes, is not called.
    assert contents(tmp_path) == before


def test_resuming_a_stage_of_another_format_exits_with_2_and_changes_nothing(kdkit_here, tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE)
    assert kdkit_here("run", "recipe.py", "--out", "run", "--device", "cpu").code == 0
    # The record is of the current format, but the stage is not finished and its checkpoint is of another.
    stage = tmp_path / "run" / "1-net"
    (stage / "stage.json").unlink()
    write(stage / "checkpoint-1.safetensors", *tensor_parts({}, {"format": FORMAT - 1}))
    before = contents(tmp_path)
    result = kdkit_here("run", "recipe.py", "--out", "run", "--resume", "--device", "cpu")
    assert result.code == 2
    assert old_format_message("run/1-net/checkpoint-1.safetensors", FORMAT - 1) in " ".join(result.err.split())
    assert contents(tmp_path) == before


def test_the_class_table_of_a_run_of_the_first_format_exits_with_2(old_run, kdkit_here):
    result = kdkit_here("classes", old_run)
    assert result.code == 2
    assert old_format_message(old_run / "run.json") in " ".join(result.err.split())
