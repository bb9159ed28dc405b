"""A run on disk: each file whole or not at all, and a folder that belongs to one run."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdkit import Predictions, RunFolderError, Scored
from kdkit.runfolder import RunFolder, StageFolder, new_path, write

RUN = {"recipe_sha256": "abc", "options": {"leads": "3"}, "seed": 0, "precision": "fp32", "data": "x", "stages": ["s"]}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", ["text with ü", b"bytes\0"])
def test_a_file_is_written_with_the_folders_above_it(tmp_path, content):
    path = tmp_path / "a" / "b" / "file"
    write(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(path.parent) == ["file"]


def test_a_file_is_replaced_whole(tmp_path):
    write(tmp_path / "file", "a long first text")
    write(tmp_path / "file", "short")
    assert (tmp_path / "file").read_text() == "short"


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
    def fail(*_):
        raise KeyboardInterrupt

    write(tmp_path / "file", "old")
    target = {"fsync": "os.fsync", "replace": "pathlib.Path.replace"}[failing]
    monkeypatch.setattr(target, fail)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_new_run_keeps_what_it_is_and_a_copy_of_its_recipe(tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text("def recipe(): ...\n")
    folder = RunFolder.create(tmp_path / "run", RUN, recipe)
    assert json.loads((folder.path / "run.json").read_text()) == RUN
    assert (folder.path / "recipe.py").read_text() == recipe.read_text()


def test_a_run_without_a_file_has_no_copy(tmp_path):
    assert names(RunFolder.create(tmp_path / "run", RUN, None).path) == ["run.json"]


def test_an_empty_folder_may_become_a_run(tmp_path):
    RunFolder.create(tmp_path, RUN, None)


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path):
    RunFolder.create(tmp_path / "run", RUN, None)
    with pytest.raises(RunFolderError, match="already holds a run; go on with it"):
        RunFolder.create(tmp_path / "run", RUN, None)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="exists and is not a run folder"):
        RunFolder.create(tmp_path, RUN, None)
    assert names(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("path", ["file", "file/run"])
def test_a_path_that_is_no_folder_is_refused(tmp_path, path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError):
        RunFolder.create(tmp_path / path, RUN, None)
    assert (tmp_path / "file").read_text() == "x"


def test_a_run_can_be_gone_on_with(tmp_path):
    RunFolder.create(tmp_path / "run", {**RUN, "device": "cpu"}, None)
    assert RunFolder.reopen(tmp_path / "run", {**RUN, "device": "cuda"}).path == tmp_path / "run"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 1}, "differs in its seed: it had 0, this one has 1"),
        ({"data": "y"}, "differs in its data"),
        ({"options": {"leads": "2"}}, "differs in its options"),
        ({"recipe_sha256": "def"}, "differs in its recipe sha256"),
        ({"stages": ["s", "t"]}, "differs in its stages"),
        ({"precision": "bf16"}, "differs in its precision"),
    ],
)
def test_another_run_cannot_be_gone_on_with(tmp_path, changed, said):
    RunFolder.create(tmp_path / "run", RUN, None)
    with pytest.raises(RunFolderError, match=said):
        RunFolder.reopen(tmp_path / "run", {**RUN, **changed})


def test_a_folder_without_a_run_cannot_be_gone_on_with(tmp_path):
    with pytest.raises(RunFolderError, match=r"there is no run\.json in it"):
        RunFolder.reopen(tmp_path, RUN)


def test_a_run_whose_record_is_broken_cannot_be_gone_on_with(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunFolderError, match="cannot be read"):
        RunFolder.reopen(tmp_path, RUN)


def test_scores_are_kept_by_net_and_name(tmp_path):
    folder = RunFolder.create(tmp_path / "run", RUN, None)
    folder.save_scores("test", {"student": {"macro_f1": Scored(value=0.5, by_class={"a": 0.5}, note="n")}})
    kept = json.loads((folder.path / "scores.json").read_text())
    assert kept["reported_on"] == "test"
    assert kept["scores"]["student"]["macro_f1"] == {"value": 0.5, "by_class": {"a": 0.5}, "note": "n"}


def test_stages_have_folders_in_their_order(tmp_path):
    folder = RunFolder(tmp_path)
    assert [folder.stage(index, name).path.name for index, name in enumerate(["teacher", "student"])] == [
        "1-teacher",
        "2-student",
    ]


def test_weights_come_back_as_they_were(tmp_path):
    stage = StageFolder(tmp_path / "1-net")
    weights = {"w": torch.randn(3, 4).t(), "n": torch.tensor(3), "p": torch.nn.Parameter(torch.ones(2))}
    stage.save_weights("net", weights)
    loaded = stage.load_weights("net")
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)
    assert names(stage.path) == ["weights.safetensors"]


def test_weights_that_share_memory_are_kept_apart(tmp_path):
    shared = torch.ones(4)
    stage = StageFolder(tmp_path / "1-net")
    stage.save_weights("net", {"a": shared, "b": shared})
    assert stage.load_weights("net")["b"].tolist() == [1, 1, 1, 1]


def test_nets_of_one_stage_have_files_of_their_own(tmp_path):
    stage = StageFolder(tmp_path / "1-one+two")
    for name, value in (("one", 1.0), ("two", 2.0)):
        stage.save_weights(name, {"w": torch.tensor(value)})
    assert [stage.load_weights(name)["w"].item() for name in ("one", "two")] == [1, 2]


def test_state_comes_back_until_the_stage_is_finished(tmp_path):
    stage = StageFolder(tmp_path / "1-net")
    assert stage.load_state() is None
    stage.save_state({"updates": 3, "rate": {"count": 1}, "moments": torch.ones(2)})
    assert stage.load_state()["updates"] == 3
    assert not stage.finished
    stage.finish({"kept_epoch": 1})
    assert stage.finished
    assert stage.load_state() is None
    assert json.loads((stage.path / "stage.json").read_text()) == {"kept_epoch": 1}


def test_history_is_a_line_of_json_an_epoch(tmp_path):
    stage = StageFolder(tmp_path / "1-net")
    epochs = [{"epoch": 0, "terms": {"truth": 0.5}, "score": math.inf}, {"epoch": 1}]
    stage.save_history(epochs)
    assert len((stage.path / "history.jsonl").read_text().splitlines()) == 2
    assert stage.load_history() == epochs


@pytest.mark.parametrize("ids", [None, np.array([7, 5])])
def test_predictions_are_plain_arrays_with_ids(tmp_path, ids):
    stage = StageFolder(tmp_path / "1-net")
    said = Predictions(labels=np.array([1, 0]), outputs=np.eye(3)[:2].T[:2], classes=("a", "b"), ids=ids)
    stage.save_predictions("net", "test", said)
    kept = load_file(stage.path / "predictions-net-test.safetensors")
    assert kept["ids"].tolist() == ([0, 1] if ids is None else [7, 5])
    assert kept["labels"].tolist() == [1, 0]
    assert np.array_equal(kept["outputs"].numpy(), said.outputs)


def test_a_new_run_gets_a_path_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = new_path("recipe")
    assert first.parts[0] == "runs"
    assert first.name.startswith("recipe-")
    first.mkdir(parents=True)
    assert not new_path("recipe").exists()
