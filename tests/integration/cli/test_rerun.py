"""A run is resumed or repeated by its folder alone, and a recipe file that is not the user's own is not executed."""

import hashlib
import json
import shutil
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from kdkit.cli.repeat import recorded_arguments
from kdkit.engine.storage.comparison import differences
from kdkit.utils.files import write
from kdkit.utils.sealed import json_parts, read_sealed_json, tensor_parts
from tests.integration.reliability.test_resume import RECIPE


@pytest.fixture
def command(tmp_path, kdkit_here, monkeypatch):
    """Return a function that runs the command line in a folder with a recipe and a key of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "mine.py").write_text(dedent(RECIPE))
    return kdkit_here


@pytest.fixture
def finished(command, tmp_path):
    assert command("run", "mine.py", "--device", "cpu", "--epochs", "2", "--out", "run", "-q").code == 0
    return tmp_path / "run"


def rewrite(run, **changes):
    """Change a record as an attacker could, who knows the format of the file but not the key of the user."""
    record = read_sealed_json(run / "run.json")
    record["command"] |= changes
    (run / "run.json").write_bytes(b"".join(json_parts(record)))


def test_a_rerun_has_the_results_of_the_run_to_the_bit(command, finished, tmp_path):
    done = command("rerun", "run", "-q")
    assert (done.code, "the results in run-rerun and run are equal, bit for bit" in done.out) == (0, True), done.err
    assert f"recipe file: {tmp_path / 'mine.py'}" in done.err
    record = read_sealed_json(tmp_path / "run-rerun" / "run.json")
    assert record["options"]["epochs"] == "2"
    assert differences(finished, tmp_path / "run-rerun") == []


def test_a_rerun_with_another_option_names_what_differs(command, finished):
    done = command("rerun", "run", "-q", "--out", "other", "--seed", "3")
    assert done.code == 1
    assert "2-student/weights.safetensors: body.bias differs by up to" in done.out
    assert "conditions:\n  seed: 0 and 3" in done.out


def test_tensors_of_two_dtypes_differ_by_their_dtypes(tmp_path):
    for name, dtype in (("first", torch.float32), ("second", torch.float64)):
        write(tmp_path / name / "1-s" / "weights.safetensors", *tensor_parts({"w": torch.zeros(3, dtype=dtype)}, {}))
    expected = "1-s/weights.safetensors: w is float32 (3,) and float64 (3,)"
    assert differences(tmp_path / "first", tmp_path / "second") == [expected]


def test_a_run_is_resumed_by_its_folder(command, finished):
    (finished / "2-student" / "stage.json").unlink()  # as if it had been killed before
    weights = (finished / "2-student" / "weights.safetensors").read_bytes()
    done = command("run", "--resume", "run", "-q")
    assert done.code == 0, done.err
    assert (finished / "2-student" / "stage.json").exists()
    assert (finished / "2-student" / "weights.safetensors").read_bytes() == weights


def test_a_changed_recipe_file_is_not_executed_without_trust(command, finished, tmp_path):
    marker = tmp_path / "marker"
    with (tmp_path / "mine.py").open("a") as file:
        file.write(f"\nPath({str(marker)!r}).touch()\n")
    for name, *options in (("run", "--resume"), ("rerun",)):
        done = command(name, *options, "run", "-q")
        assert (done.code, "it has changed since the run was started" in done.err) == (2, True), done.err
    assert not marker.exists()
    done = command("run", "--resume", "run", "-q", "--trust")
    assert (done.code, "differs in its recipe sha256" in done.err) == (2, True)
    with pytest.warns(UserWarning, match="the changes do not apply to all of run: 1-teacher is not trained again"):
        assert command("run", "--resume", "run", "-q", "--trust", "--force").code == 0
    assert marker.exists()
    assert "recipe sha256" in read_sealed_json(finished / "run.json")["forced"][0]
    assert command("run", "--resume", "run", "-q").code == 0  # the record is that of the changed recipe


def test_options_of_a_resumed_run_hold_for_that_command_only(finished, tmp_path, monkeypatch):
    arguments = ["--lr", "-1", "--resume", "--lr=2", "--force", "--trust"]
    monkeypatch.setattr("kdkit.cli.repeat.is_signed", lambda *_: True)
    rewrite(finished, arguments=[str(tmp_path / "mine.py"), *arguments])
    assert recorded_arguments(finished, trust=False) == [str(tmp_path / "mine.py"), "--lr", "-1", "--lr=2"]


def test_a_resumed_run_takes_values_of_options_of_its_recipe(command, finished):
    assert "differs in its options: expected {'epochs': '2'}" in command("run", "--resume", "run", "--epochs", "1").err


def test_a_run_folder_of_someone_else_executes_nothing_without_trust(command, finished, tmp_path):
    marker = tmp_path / "marker"
    evil = finished / "evil.py"
    evil.write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    rewrite(finished, arguments=[str(evil)], recipe_sha256=hashlib.sha256(evil.read_bytes()).hexdigest())
    for name, *options in (("run", "--resume"), ("rerun",)):
        done = command(name, *options, "run", "-q")
        assert (done.code, "this run was not started by you" in done.err) == (2, True), done.err
    assert not marker.exists()
    rewrite(finished, signature=None)  # as if the home folder could not be written
    assert "or it is not signed, because no key could be saved in ~/" in command("rerun", "run").err


def test_the_copy_of_a_recipe_is_not_executed_without_trust(command, finished, tmp_path):
    (tmp_path / "mine.py").unlink()
    done = command("rerun", "run", "-q")
    assert (done.code, "it is a copy in the run folder" in done.err) == (2, True), done.err
    assert command("rerun", "run", "-q", "--trust").code == 0


def test_a_run_is_repeated_in_the_folder_that_it_was_started_in(command, finished, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    for folder, name in ((tmp_path / "elsewhere", str(finished)), (finished, ".")):
        monkeypatch.chdir(folder)
        done = command("rerun", name, "-q")
        assert (done.code, f"was started in the folder {tmp_path}" in done.err) == (2, True), done.err


def test_without_a_key_a_run_folder_needs_trust(command, finished, tmp_path):
    shutil.rmtree(tmp_path / "state")
    assert "add --trust" in command("rerun", "run", "-q").err


def test_the_key_of_a_user_is_private(command, finished, tmp_path):
    assert oct((tmp_path / "state" / "kdkit" / "key").stat().st_mode & 0o777) == "0o600"


def test_a_run_from_python_names_the_way_to_resume_it(command, finished):
    record = json.loads((finished / "run.json").read_text())
    del record["checksum"]
    (finished / "run.json").write_bytes(b"".join(json_parts({**record, "command": None})))
    for name, *options in (("run", "--resume"), ("rerun",)):
        done = command(name, *options, "run", "-q")
        assert (done.code, "out='run', resume=True) in Python" in done.err) == (2, True), done.err


def test_a_resume_with_changes_names_all_of_them(command, finished):
    done = command("run", "--resume", "run", "-q", "--seed", "1", "--precision", "bf16")
    assert done.code == 2
    for change in ("seed: expected 0, got 1", "precision: expected 'fp32', got 'bf16'", "--force"):
        assert change in done.err
    assert Path("run", "run.json").exists()
