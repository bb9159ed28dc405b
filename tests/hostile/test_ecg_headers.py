"""No header, however hostile, stops a folder, or takes more memory and time than a good one of its size."""

import json
import subprocess
import sys
from textwrap import dedent

import pytest

from kdkit import DataError
from kdkit_ecg import Challenge2020
from kdkit_ecg.records.header import read_header
from tests.helpers.command_line import environment
from tests.hostile.make_corpus import unharmed_corpus

resource = pytest.importorskip("resource", reason="Windows cannot limit the time of a process")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    with unharmed_corpus(folder, "headers"):
        yield folder / "headers"


def test_each_header_is_read_or_refused_with_its_name(corpus):
    paths = sorted(corpus.rglob("*.hea"))
    assert len(paths) > 30
    errors = []
    for path in paths:
        try:
            read_header(path)
        except DataError as error:
            errors.append((path, str(error)))
    assert len(errors) >= 20
    for path, message in errors:
        assert message.startswith(f"{path} is not a readable header: ")
        assert len(message) < 1000


def test_the_doctor_reports_each_hostile_header_as_one_bad_record(corpus, kdkit_here, tmp_path):
    result = kdkit_here("ecg", "doctor", corpus, "--json", "report.json", "--jobs", 1)
    assert result.code == 1, result
    records = {entry["record"]: entry for entry in json.loads((tmp_path / "report.json").read_text())["records"]}
    assert len(records) == len(list(corpus.rglob("*.hea")))
    assert not records["good"]["bad"]
    usable = {name for name, entry in records.items() if not entry["bad"]}
    usable -= {"good", "bombs/segment"}
    kinds = {name: (corpus / f"{name}.hea").read_text().rsplit("# ", 1)[-1].strip() for name in usable}
    assert set(kinds.values()) == {"5,000 digits of a code", "an age of another script"}


@pytest.mark.parametrize("store", [None, "store"])
def test_the_good_record_is_prepared_in_spite_of_the_others(store, corpus, tmp_path):
    data = Challenge2020(corpus, shares=(1.0, 0.0, 0.0), store=tmp_path / store if store else None)
    # good, segment, and those with a strange code or age.
    assert len(data.train.ids) == 4
    assert "4 of 39 records read" in data.summary


def test_no_header_takes_more_than_5_seconds_or_512_mib(corpus):
    program = """
        import resource, sys, time
        from pathlib import Path
        from kdkit_ecg.doctor.record import examine
        from kdkit_ecg.records.header import read_header
        from kdkit_ecg.records.preparation import Preparation
        from kdkit import DataError

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        folder = Path(sys.argv[1])
        prepare = Preparation(rate=257, band=(0.5, 47.0), resampling="polyphase", scaling="zscore").prepare
        prepare(read_header(folder / "good.hea"))
        examine(folder, folder / "good.hea")
        idle = peak()
        for path in sorted(folder.rglob("*.hea")):
            start = time.process_time()
            examine(folder, path)
            try:
                prepare(read_header(path))
            except DataError:
                pass
            assert time.process_time() - start < 5, path.read_text()[-100:]
            assert peak() - idle < 512 * 1024, path.read_text()[-100:]  # ru_maxrss is in KiB
    """
    limit = 100  # s of CPU, which ends a program that hangs
    done = subprocess.run(
        [sys.executable, "-c", dedent(program), str(corpus)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit, limit)),
    )
    assert done.returncode == 0, done.stderr
