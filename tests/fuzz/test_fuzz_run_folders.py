"""Whatever the files of a run folder hold, their readers return a result or raise a KdkitError."""

import os
import shutil

import numpy as np
import pytest

from kdkit import KdkitError
from kdkit.cli.main import call
from kdkit.engine.storage.finished_run import read_metrics
from kdkit.engine.storage.stage_folder import StageFolder
from kdkit.utils.read_json import read_json
from tests.fuzz.fuzz_run_folders import (
    fuzz_json,
    fuzz_records,
    fuzz_reports,
    fuzz_stages,
    fuzz_study,
    read_reports,
    study_of,
    write_runs,
)
from tests.fuzz.meter import MEMORY, Meter, peak

EXAMPLES = 100


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    write_runs(folder)
    return folder


@pytest.fixture
def copied(original, tmp_path):
    shutil.copytree(original, tmp_path / "copy")
    return tmp_path / "copy"


def test_reports_of_damaged_runs(copied):
    meter = Meter()
    fuzz_reports(copied, meter, EXAMPLES // 2)
    assert all(meter.outcomes[outcome] for outcome in ("read", "refused"))


def test_studies_with_damaged_runs(copied):
    meter = Meter()
    fuzz_study(copied, meter, EXAMPLES // 2)
    assert all(meter.outcomes[outcome] for outcome in ("read", "refused"))


def test_stages_of_damaged_runs(copied):
    meter = Meter()
    fuzz_stages(copied, meter, EXAMPLES)
    assert meter.outcomes["refused"]


def test_json_of_any_bytes(tmp_path):
    meter = Meter()
    fuzz_json(tmp_path, meter, EXAMPLES)
    assert all(meter.outcomes[outcome] for outcome in ("read", "refused"))


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a": 1, "a": 2}',
        b"-" * 10,
        b"9" * 5000,
    ],
    ids=["lists", "objects", "closed lists", "a key twice", "signs", "digits"],
)
def test_json_that_is_no_value_is_refused(tmp_path, content):
    file = tmp_path / "file.json"
    file.write_bytes(content)
    with pytest.raises(ValueError):  # noqa: PT011 - of many kinds
        read_json(file)


LARGE = {
    "a line of text": lambda: b'{"epoch": "' + b"x" * 50_000_000 + b'"}',
    "a line of lists": lambda: b"[" + b"[]," * 16_000_000 + b"[]]",
    "a line of numbers": lambda: b"[" + b"1," * 25_000_000 + b"1]",
    "a line of keys": lambda: b"{" + b",".join(b'"%d":1' % key for key in range(3_500_000)) + b"}",
    "a deep line": lambda: b"[" * 50_000_000,
    "many lines": lambda: b"{}\n" * 1_000_000,
    "a long number": lambda: b"9" * 50_000_000,
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("file_name", ["run.json", "history.jsonl"])  # metrics.json is read by the code of run.json
def test_large_files_take_bounded_time_and_memory(copied, name, file_name):
    stage = copied / "run" / "1-teacher"
    file = (stage if file_name == "history.jsonl" else copied / "run") / file_name
    file.write_bytes(LARGE[name]())
    reader = (
        StageFolder(stage, writes=False).load_finished
        if file_name == "history.jsonl"
        else lambda: read_metrics(copied / "run")
    )
    before = peak()
    Meter().read(reader)
    assert peak() - before < MEMORY


@pytest.mark.parametrize("damage", ["folder", "link to nothing", "no permission"])
@pytest.mark.parametrize("file_name", ["run.json", "metrics.json", "1-teacher/predictions-teacher-test.safetensors"])
def test_files_that_are_no_files(copied, file_name, damage):
    file = copied / "run" / file_name
    if damage == "no permission":
        if os.geteuid() == 0:
            pytest.skip("this user may read everything")
        file.chmod(0)
    else:
        file.unlink()
        file.mkdir() if damage == "folder" else file.symlink_to("nowhere")
    with pytest.raises(KdkitError):
        read_reports(copied / "run")
    assert call(["classes", str(copied / "run")]) == 2


def test_resuming_a_run_with_a_damaged_record_raises_only_errors_of_kdkit(copied):
    meter = Meter()
    fuzz_records(copied, meter, EXAMPLES // 4)
    assert meter.outcomes["refused"]


def test_the_original_is_read(copied):
    read_reports(copied / "run")
    assert np.isfinite(study_of(copied).metrics("run")["student"]["accuracy"].value)
