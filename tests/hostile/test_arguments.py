"""Arguments and records that no user writes end with one message."""

import pytest

from kdkit.engine.storage.run_files import FORMAT
from kdkit.utils.sealed import json_parts
from kdkit.utils.signing import is_signed, sign


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "x" * 5000 + ".py"], "File name too long; pass another path"),
        (["run", "--resume", "x" * 5000], "File name too long; pass another path"),
        (["classes", "x" * 5000], "File name too long"),
        (["cache", ".", "--keep", "nan"], "--keep must be a number of gigabytes; got nan"),
        (["cache", ".", "--keep", "inf"], "--keep must be a number of gigabytes; got inf"),
        (["run", "recipe.py", "--checkpoint-every", "9" * 5000], "checkpoint_every must be a number of updates"),
        (["run", "recipe.py", "--checkpoint-every", "9" * 400 + "h"], "checkpoint_every must be a number of updates"),
    ],
)
def test_an_argument_that_cannot_be_used_gives_one_message(kdkit_here, tmp_path, arguments, message):
    (tmp_path / "recipe.py").write_text("def recipe(): raise ValueError")
    done = kdkit_here(*arguments)
    assert (done.code, message in done.err) == (2, True), done
    assert len(done.err) < 6000


@pytest.mark.parametrize(
    "command",
    [
        {},
        {"arguments": []},
        {"arguments": "recipe.py", "folder": "", "recipe_sha256": ""},
        {"arguments": ["recipe.py", 1], "folder": "", "recipe_sha256": ""},
        {"arguments": ["recipe\0.py"], "folder": "", "recipe_sha256": ""},
        {"arguments": ["recipe.py"], "folder": "", "recipe_sha256": None},
    ],
)
def test_a_record_without_a_command_is_refused(kdkit_here, tmp_path, command):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_bytes(b"".join(json_parts({"format": FORMAT, "command": command})))
    for arguments in (["run", "--resume", "run"], ["rerun", "run"]):
        done = kdkit_here(*arguments)
        assert (done.code, "does not hold the command that started the run" in done.err) == (2, True), done


def test_a_signature_of_any_characters_is_only_wrong(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert is_signed("text", sign("text"))
    assert not is_signed("text", "\ud800")
