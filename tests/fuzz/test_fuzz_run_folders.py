"""Fuzz every file of a run folder: whatever it holds, its readers return a result or raise a KdkitError.

The suite takes a bounded number of examples. `KDKIT_FUZZ_SECONDS=3600 pytest tests/fuzz` goes on for that time, split
among the tests, with other examples each time.
"""

import json
import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, seed, settings
from hypothesis import strategies as st

import kdkit
from kdkit import KdkitError, RunOptions, Study, Trial
from kdkit.cli.main import call
from kdkit.engine.run import run
from kdkit.engine.storage.reports import nets_of_run, read_class_table, read_metrics
from kdkit.engine.storage.run_folder import RunFolder
from kdkit.engine.storage.stage_folder import StageFolder
from kdkit.nets.weight_files import read_state_dicts
from kdkit.utils.read_json import read_json, read_json_lines
from tests.helpers.stages import three

SECONDS = float(os.environ.get("KDKIT_FUZZ_SECONDS", "0"))
TESTS = 5  # that share the time
EXAMPLES = 400
TEXT = '[]{}",:0123456789.eE+-nulltrfaseNI \n\\'  # most of which is JSON
LONGEST = 5.0  # seconds for one input


def fuzzed(count):
    """Return the settings of a test: a fixed set of examples in the suite, and random ones on request."""
    return settings(
        max_examples=count,
        derandomize=not SECONDS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def repeated(test):
    """Call a test until its share of the time is over; once in the suite."""

    def until_the_end(*args):
        end = time.monotonic() + SECONDS / TESTS
        test(*args)
        while time.monotonic() < end:
            seed(random.randrange(2**32))(test)(*args)

    return until_the_end


# What damages a file: bits, lengths, types, and numbers that are legal in JSON but not here.

WORDS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "null",
    "true",
    "1e999",
    "9" * 5000,
    "-0",
    "1.5",
    '""',
    "[]",
    "{}",
    '"\\ud800"',
]
WORDS += ["[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000, '"' + "x" * 100_000 + '"', '"\\u001b[2J"']
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
DAMAGE = st.one_of(
    st.tuples(st.just("flip"), st.lists(st.integers(0, 2**31), min_size=1, max_size=8)),
    st.tuples(st.just("cut"), st.integers(0, 2**31)),
    st.tuples(st.just("insert"), st.integers(0, 2**31), st.binary(max_size=40)),
    st.tuples(st.just("repeat"), st.integers(0, 2**31), st.integers(1, 200)),
    st.tuples(st.just("replace"), st.binary(max_size=200)),
    st.tuples(st.just("value"), st.integers(0, 2**31), VALUES),
    st.tuples(st.just("word"), st.integers(0, 2**31), st.sampled_from(WORDS)),
)


def damaged(content, damage):
    """Return the content of a file after damage."""
    kind, *details = damage
    if kind == "flip":
        changed = bytearray(content)
        for bit in details[0]:
            changed[bit // 8 % len(changed)] ^= 1 << bit % 8
        return bytes(changed)
    if kind == "cut":
        return content[: details[0] % (len(content) + 1)]
    if kind == "insert":
        at = details[0] % (len(content) + 1)
        return content[:at] + details[1] + content[at:]
    if kind == "repeat":
        at = details[0] % len(content)
        return content[:at] + content[at : at + 9] * details[1] + content[at:]
    if kind == "replace":
        return details[0]
    replacement = details[1] if kind == "word" else json.dumps(details[1])
    return exchanged(content, details[0], replacement)


def exchanged(content, index, replacement):
    """Return JSON with one of its values exchanged; bytes that are no JSON unchanged."""
    try:
        lines = content.decode().splitlines()
        if len(lines) > 1 and lines[0] == "{":
            lines = [content.decode()]
        line = index % len(lines)
        value = json.loads(lines[line])
    except (ValueError, ZeroDivisionError):
        return content
    paths = [*_paths(value)]
    mark = "\0mark\0"
    path = paths[index // 7 % len(paths)]
    if not path:
        text = json.dumps(mark)
    else:
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = mark
        text = json.dumps(value)
    lines[line] = text.replace(json.dumps(mark), replacement)
    return "\n".join(lines).encode(errors="surrogatepass")


def _paths(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _paths(item, (*path, key))


def require_refused_or_read(reader, *args):
    """Call a reader, and fail unless it returns, or raises a KdkitError with one message, in a short time."""
    began, message = time.process_time(), ""
    try:
        reader(*args)
    except KdkitError as error:
        message = str(error)
    assert len(message) < 5000
    assert time.process_time() - began < LONGEST


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A study with one finished run, and a run that was interrupted after its first epoch."""

    class Interrupt:
        @kdkit.hookimpl
        def epoch_ended(self, event):
            if event.epoch == 1:
                raise KeyboardInterrupt

    folder = tmp_path_factory.mktemp("original")
    (result,) = study_of(folder).run(RunOptions(device="cpu"))
    assert result.state == "finished", result.error

    with pytest.raises(KeyboardInterrupt):
        run(three, RunOptions(device="cpu", out=folder / "stopped"), callbacks=[Interrupt()])
    return folder


def study_of(folder):
    return Study(folder, [Trial(name="run", recipe=three)])


@pytest.fixture
def copied(original, tmp_path):
    shutil.copytree(original, tmp_path / "copy")
    return tmp_path / "copy"


def files_of(folder, *patterns):
    return sorted(file for pattern in patterns for file in folder.glob(pattern))


def read_reports(folder):
    """Read what `kdkit classes`, comparisons and studies read of a run."""
    for net in nets_of_run(folder):
        read_class_table(folder, net, resamples=2)


def test_reports_of_damaged_runs(copied):
    files = files_of(copied / "run", "run.json", "metrics.json", "*/predictions-*.safetensors")
    assert len(files) == 8

    @repeated
    @fuzzed(EXAMPLES // 2)
    @given(st.sampled_from(files), DAMAGE)
    def check(file, damage):
        content = file.read_bytes()
        try:
            file.write_bytes(damaged(content, damage))
            require_refused_or_read(read_reports, copied / "run")
            require_refused_or_read(read_metrics, copied / "run")
        finally:
            file.write_bytes(content)

    check()


def test_studies_with_damaged_runs(copied):
    files = files_of(copied / "run", "run.json", "metrics.json", "trial.json", "*/predictions-student-*.safetensors")
    study = study_of(copied)

    def read():
        study.metrics("run")
        study.predictions("run", "student")

    def skip():
        study._require_unchanged(study.trials[0], RunOptions(device="cpu"))

    @repeated
    @fuzzed(EXAMPLES // 2)
    @given(st.sampled_from(files), DAMAGE)
    def check(file, damage):
        content = file.read_bytes()
        try:
            file.write_bytes(damaged(content, damage))
            require_refused_or_read(read)
            require_refused_or_read(skip)
        finally:
            file.write_bytes(content)

    check()


def test_stages_of_damaged_runs(copied):
    files = files_of(copied, "*/*/history.jsonl", "*/*/checkpoint-*", "*/*/stage.json", "*/*/weights.safetensors")
    names = {file.name for file in files}
    assert names >= {"history.jsonl", "stage.json", "weights.safetensors"}
    assert any(name.startswith("checkpoint-") for name in names)

    @repeated
    @fuzzed(EXAMPLES)
    @given(st.sampled_from(files), DAMAGE)
    def check(file, damage):
        stage = StageFolder(file.parent, writes=False)
        content = file.read_bytes()
        try:
            file.write_bytes(damaged(content, damage))
            require_refused_or_read(stage.load_finished)
            require_refused_or_read(stage.load_checkpoint)
            require_refused_or_read(stage.load_weights, file.parent.name.split("-", 1)[1])
            if file.suffix == ".safetensors":  # as `kdkit evaluate --weights FILE`
                require_refused_or_read(read_state_dicts, file, "net")
        finally:
            file.write_bytes(content)

    check()


def test_json_of_any_bytes(tmp_path):
    file = tmp_path / "file.json"

    @repeated
    @fuzzed(EXAMPLES)
    @given(st.one_of(st.binary(max_size=300), st.text(TEXT, max_size=120).map(str.encode)))
    @example(b"[" * 100_000)
    @example(b'{"a":' * 100_000)
    @example(b"[" * 100_000 + b"]" * 100_000)
    @example(b'{"a": 1, "a": 2}')
    @example(b"-" * 10)
    @example(b'"\\ud800"')
    def check(content):
        file.write_bytes(content)
        for reader in (read_json, lambda path: list(read_json_lines(path))):
            try:
                value = reader(file)
            except ValueError:
                continue
            json.dumps(value, allow_nan=False)

    check()


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
@pytest.mark.parametrize("place", ["run.json", "history.jsonl"])  # metrics.json is read by the code of run.json
def test_large_files_take_bounded_time_and_memory(copied, name, place):
    stage = copied / "run" / "1-teacher"
    file = (stage if place == "history.jsonl" else copied / "run") / place
    file.write_bytes(LARGE[name]())
    reader = (
        StageFolder(stage, writes=False).load_finished
        if place == "history.jsonl"
        else lambda: read_metrics(copied / "run")
    )
    before = _peak_memory()
    require_refused_or_read(reader)
    assert _peak_memory() - before < 2**29


def _peak_memory():
    """Return the most bytes that this process had in memory."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) * 1024


@pytest.mark.parametrize("damage", ["folder", "link to nothing", "no permission"])
@pytest.mark.parametrize("place", ["run.json", "metrics.json", "1-teacher/predictions-teacher-test.safetensors"])
def test_files_that_are_no_files(copied, place, damage):
    file = copied / "run" / place
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
    file = copied / "stopped" / "run.json"
    record = json.loads(file.read_text())
    content = file.read_bytes()

    @repeated
    @fuzzed(EXAMPLES // 4)
    @given(DAMAGE)
    def check(damage):
        try:
            file.write_bytes(damaged(content, damage))
            require_refused_or_read(RunFolder.reopen, copied / "stopped", record)
        finally:
            file.write_bytes(content)

    check()


def test_the_original_is_read(copied):
    read_reports(copied / "run")
    assert np.isfinite(study_of(copied).metrics("run")["student"]["accuracy"].value)
