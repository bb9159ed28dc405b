"""A run on disk: each file whole or not at all, and a folder that belongs to one run."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdkit import MetricResult, Predictions
from kdkit.engine.storage.run_folder import RunFolder, default_path
from kdkit.engine.storage.stage_folder import StageFolder
from kdkit.errors import RunFolderError
from kdkit.utils.files import write

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


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("file", "exists and is not a run folder"),
        ("file/run", "cannot be written"),
        ("file/a/run", "file is a file"),
        ("x" * 300, "cannot be written"),
        ("new/" + "x" * 300, "cannot be written"),
        ("null\0", "cannot be written"),
    ],
)
def test_a_path_that_cannot_become_a_folder_is_refused_and_nothing_is_written(tmp_path, path, said):
    (tmp_path / "file").write_text("x")
    for attempt in (
        lambda: RunFolder.create(tmp_path / path, RUN, None),
        lambda: RunFolder.require_usable(tmp_path / path, resume=False),
    ):
        with pytest.raises(RunFolderError, match=said):
            attempt()
    with pytest.raises(RunFolderError):
        RunFolder.reopen(tmp_path / path, RUN)
    assert (tmp_path / "file").read_text() == "x"
    assert names(tmp_path) == ["file"]


def test_whether_a_folder_can_be_used_is_known_before_anything_is_written(tmp_path):
    RunFolder.require_usable(tmp_path / "new" / "run", resume=False)
    with pytest.raises(RunFolderError, match="holds no run to go on with"):
        RunFolder.require_usable(tmp_path / "new", resume=True)
    assert names(tmp_path) == []
    RunFolder.create(tmp_path / "run", RUN, None)
    RunFolder.require_usable(tmp_path / "run", resume=True)
    with pytest.raises(RunFolderError, match="already holds a run"):
        RunFolder.require_usable(tmp_path / "run", resume=False)
    with pytest.raises(RunFolderError, match="exists and is not a run folder"):
        RunFolder.require_usable(tmp_path, resume=False)


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
        ({"nets": {"student": {"parameters": 3}}}, "differs in its nets"),
        ({"trainings": ["Training(epochs=3)"]}, "differs in its trainings"),
        ({"data": "y"}, r"data that is made at random outside recipe\(\)"),
    ],
)
def test_another_run_cannot_be_gone_on_with(tmp_path, changed, said):
    RunFolder.create(tmp_path / "run", RUN, None)
    with pytest.raises(RunFolderError, match=said):
        RunFolder.reopen(tmp_path / "run", {**RUN, **changed})


def test_a_folder_without_a_run_cannot_be_gone_on_with(tmp_path):
    with pytest.raises(RunFolderError, match=r"there is no run\.json in it"):
        RunFolder.reopen(tmp_path, RUN)


@pytest.mark.parametrize("record", [b"{", b"[]", b"null", b"", b"\xff"])
def test_a_run_whose_record_is_broken_cannot_be_gone_on_with(tmp_path, record):
    (tmp_path / "run.json").write_bytes(record)
    with pytest.raises(RunFolderError, match=r"run\.json cannot be read.*choose another folder"):
        RunFolder.reopen(tmp_path, RUN)
    with pytest.raises(RunFolderError, match=r"run\.json cannot be read"):
        RunFolder.require_usable(tmp_path, resume=True)


def test_where_a_function_lies_in_memory_makes_no_other_run(tmp_path):
    told = "Training(learning_rate=LRSchedule(LambdaLR, lr_lambda=<function falling at 0x{}>))"
    one, other = (
        {"trainings": [told.format(at)], "nets": {"net": {"view": f"<Mine object at 0x{at}>"}}}
        for at in ("7f01ab", "7fff00")
    )
    RunFolder.create(tmp_path / "run", {**RUN, **one}, None)
    RunFolder.reopen(tmp_path / "run", {**RUN, **other})


def test_scores_are_kept_by_net_and_name(tmp_path):
    folder = RunFolder.create(tmp_path / "run", RUN, None)
    folder.save_metrics("test", {"student": {"macro_f1": MetricResult(value=0.5, by_class={"a": 0.5}, note="n")}})
    kept = json.loads((folder.path / "metrics.json").read_text())
    assert kept["reported_on"] == "test"
    assert kept["metrics"]["student"]["macro_f1"] == {"value": 0.5, "by_class": {"a": 0.5}, "note": "n"}


def strict(text):
    """Read JSON as the standard has it, without NaN and infinities."""

    def refuse(word):
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def test_a_score_that_is_no_number_is_null(tmp_path):
    folder = RunFolder.create(tmp_path / "run", RUN, None)
    folder.save_metrics("test", {"student": {"auc": MetricResult(value=math.nan, by_class={"a": math.inf, "b": 0.5})}})
    kept = strict((folder.path / "metrics.json").read_text())["metrics"]["student"]["auc"]
    assert kept == {"value": None, "by_class": {"a": None, "b": 0.5}, "note": ""}


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
    stage.save_state({**STATE, "work": {"updates": 3, "rate": {"count": 1}, "moments": torch.ones(2)}})
    assert stage.load_state()["work"]["updates"] == 3
    assert not stage.finished
    stage.finish({"kept_epoch": 1, "score": math.nan})
    assert stage.finished
    assert stage.load_state() is None
    assert strict((stage.path / "stage.json").read_text()) == {"kept_epoch": 1, "score": None}


def test_history_is_a_line_of_json_an_epoch(tmp_path):
    stage = StageFolder(tmp_path / "1-net")
    epochs = [{"epoch": 0, "terms": {"truth": 0.5}, "score": 0.25}, {"epoch": 1}]
    stage.save_history(epochs)
    assert len((stage.path / "history.jsonl").read_text().splitlines()) == 2
    assert stage.load_history() == epochs


def test_a_figure_that_is_no_number_is_null_in_the_history_and_read_as_nan(tmp_path):
    stage = StageFolder(tmp_path / "1-net")
    stage.save_history([{"epoch": 0, "score": math.nan, "terms": {"truth": math.inf}}])
    assert strict((stage.path / "history.jsonl").read_text()) == {"epoch": 0, "score": None, "terms": {"truth": None}}
    (epoch,) = stage.load_history()
    assert math.isnan(epoch["score"])
    assert math.isnan(epoch["terms"]["truth"])


STATE = {"work": {}, "history": [], "kept": {}}


def whole(stage):
    """A stage with every file that a run reads again."""
    stage.save_weights("net", {"w": torch.ones(3)})
    stage.save_state({**STATE, "work": {"w": torch.ones(30)}})
    stage.save_history([{"epoch": 0}])
    return stage


READERS = {
    "state.pt": StageFolder.load_state,
    "weights.safetensors": lambda stage: stage.load_weights("net"),
    "history.jsonl": StageFolder.load_history,
}


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "garbage", "foreign"])
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, name, damage):
    stage = whole(StageFolder(tmp_path / "1-net"))
    file = stage.path / name
    if damage == "missing":
        file.unlink()
    elif damage == "foreign" and name == "state.pt":
        torch.save({"epoch": 3, "model": {}}, file)
    else:
        content = file.read_bytes()
        broken = {"empty": b"{" if name == "history.jsonl" else b"", "truncated": content[: len(content) // 2]}
        file.write_bytes(broken.get(damage, b"[1, 2]\n"))
    if (name, damage) == ("state.pt", "missing"):  # the stage was never begun
        assert stage.load_state() is None
        return
    with pytest.raises(RunFolderError) as caught:
        READERS[name](stage)
    for said in (str(file), f"delete the folder {stage.path} to train that stage again", "--out FOLDER, or out=FOLDER"):
        assert said in str(caught.value)


@pytest.mark.parametrize("made", [torch.ones(2), [1], 3, None])
def test_a_state_that_is_something_else_is_refused(tmp_path, made):
    stage = whole(StageFolder(tmp_path / "1-net"))
    torch.save(made, stage.path / "state.pt")
    with pytest.raises(RunFolderError, match=r"state\.pt is missing or damaged"):
        stage.load_state()


@pytest.mark.parametrize("ids", [None, np.array([7, 5])])
def test_predictions_are_plain_arrays_with_ids_where_there_are_any(tmp_path, ids):
    stage = StageFolder(tmp_path / "1-net")
    said = Predictions(labels=np.array([1, 0]), outputs=np.eye(3)[:2].T[:2], classes=("a", "b"), ids=ids)
    stage.save_predictions("net", "test", said)
    kept = load_file(stage.path / "predictions-net-test.safetensors")
    assert ("ids" in kept) == (ids is not None)
    assert ids is None or kept["ids"].tolist() == [7, 5]
    assert kept["labels"].tolist() == [1, 0]
    assert np.array_equal(kept["outputs"].numpy(), said.outputs)


def test_a_new_run_gets_a_path_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = default_path("recipe")
    assert first.parts[0] == "runs"
    assert first.name.startswith("recipe-")
    first.mkdir(parents=True)
    assert not default_path("recipe").exists()
