"""`kdkit ecg fetch` against a local server that interrupts, corrupts, refuses and delays responses."""

import errno
import os
import signal
import time
from collections.abc import Iterator
from threading import Event, Timer

import pytest
from filelock import FileLock

from kdkit_ecg.download import backoff, disk_space, download, transfer
from tests.helpers.processes import ForkedPython
from tests.helpers.release_server import (
    ReleaseServer,
    corrupt,
    disconnect,
    refuse,
    send_another_range,
    send_slowly,
    serving,
)

BIG = "training/georgia/g1/E00001.mat"
FILES = {
    "LICENSE.txt": b"CC BY 4.0\n",
    "training/cpsc_2018/g1/A0001.hea": b"A0001 12 500 7500\n",
    "training/cpsc_2018/g1/A0001.mat": bytes(range(256)) * 40,
    "training/cpsc_2018_extra/g1/Q0001.hea": b"Q0001 12 500 7500\n",
    "training/georgia/g1/E00001.hea": b"E00001 12 500 5000\n",
    BIG: bytes(range(255)) * 3000,
    "training/georgia/g1/empty file.txt": b"",
}


@pytest.fixture
def release(monkeypatch) -> Iterator[ReleaseServer]:
    with serving(FILES, monkeypatch) as server:
        yield server


@pytest.fixture
def fetched(kdkit_here, release):
    """Fetch the release into `data`."""
    return lambda *options: kdkit_here("ecg", "fetch", "challenge-2020", "data", "--base-url", release.url, *options)


def release_files(folder) -> dict[str, bytes]:
    """Return all files except those that fetch creates for itself."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: body for name, body in contents.items() if not name.startswith(".kdkit-fetch")}


def is_complete(folder, release) -> bool:
    return release_files(folder) == {**FILES, "SHA256SUMS.txt": release.list_text.encode()}


def test_a_release_is_fetched_as_listed(fetched, release, tmp_path):
    result = fetched()
    assert result.code == 0, result
    assert is_complete(tmp_path / "data", release)
    assert "7 files in the list, 0 already correct, 7 to fetch: about 775 kB" in result.out
    assert "7 files fetched" in result.out


def test_a_second_run_requests_and_reads_no_file(fetched, release, monkeypatch):
    fetched()
    release.requests.clear()
    monkeypatch.setattr(download, "file_checksum", lambda path, _: pytest.fail(f"{path} was read"))
    result = fetched()
    assert (result.code, "0 files fetched" in result.out) == (0, True)
    assert [path for _, path, _ in release.requests] == ["SHA256SUMS.txt"]


def test_changed_and_deleted_files_are_fetched_again(fetched, release, tmp_path):
    fetched()
    (tmp_path / "data" / BIG).write_bytes(b"short")
    (tmp_path / "data" / "LICENSE.txt").unlink()
    result = fetched()
    assert "2 files fetched" in result.out
    assert is_complete(tmp_path / "data", release)


def test_verify_finds_damage_that_changes_neither_size_nor_time(fetched, release, tmp_path):
    fetched()
    path = tmp_path / "data" / BIG
    state = path.stat()
    path.write_bytes(FILES[BIG][::-1])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert "0 files fetched" in fetched().out
    assert "1 file fetched" in fetched("--verify").out
    assert is_complete(tmp_path / "data", release)


def test_existing_files_without_the_table_of_verified_files_are_read_and_kept(fetched, release, tmp_path):
    fetched()
    (tmp_path / "data" / ".kdkit-fetch.tsv").write_bytes(b"damaged\t\xff\n")
    release.requests.clear()
    assert "7 already correct" in fetched().out
    assert not release.gets(BIG)


def test_an_interrupted_connection_is_resumed(fetched, release, tmp_path):
    release.faults[BIG] = [disconnect(300_000), disconnect(0), disconnect(300_000)]
    result = fetched()
    assert result.code == 0, result
    assert is_complete(tmp_path / "data", release)
    assert release.gets(BIG) == ["", "bytes=300000-", "bytes=300000-", "bytes=600000-"]


def test_more_interruptions_than_tries_are_allowed_while_bytes_arrive(fetched, release, tmp_path):
    release.faults[BIG] = [disconnect(50_000)] * (2 * backoff.MAX_TRIES)
    assert fetched().code == 0
    assert is_complete(tmp_path / "data", release)


def test_a_server_that_ignores_ranges_starts_the_file_again(fetched, release, tmp_path):
    release.supports_ranges = False
    release.faults[BIG] = [disconnect(300_000)]
    result = fetched()
    assert result.code == 0
    assert "7 files fetched, 775 kB" in result.out  # discarded bytes do not count
    assert is_complete(tmp_path / "data", release)


def test_a_server_that_sends_another_range_starts_the_file_again(fetched, release, tmp_path):
    # The wrong range discards the .part, and wrong bytes cause one more download.
    release.faults[BIG] = [disconnect(300_000), send_another_range, corrupt]
    assert fetched().code == 0
    assert release.gets(BIG) == ["", "bytes=300000-", "", ""]
    assert is_complete(tmp_path / "data", release)


def test_a_complete_part_file_is_used(fetched, release, tmp_path):
    part = tmp_path / "data" / f"{BIG}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(FILES[BIG])
    assert fetched().code == 0
    assert release.gets(BIG) == [f"bytes={len(FILES[BIG])}-"]
    assert is_complete(tmp_path / "data", release)


@pytest.mark.parametrize("content", [b"x" * 1000, b"x" * 2_000_000], ids=["wrong", "too long"])
def test_a_part_file_with_other_bytes_is_discarded(content, fetched, release, tmp_path):
    part = tmp_path / "data" / f"{BIG}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    assert fetched().code == 0
    assert is_complete(tmp_path / "data", release)


def test_wrong_bytes_are_fetched_again_once(fetched, release, tmp_path):
    release.faults[BIG] = [corrupt]
    assert fetched().code == 0
    assert is_complete(tmp_path / "data", release)
    assert release.gets(BIG) == ["", ""]


def test_a_file_with_wrong_bytes_twice_is_named_and_all_others_are_kept(fetched, release, tmp_path):
    release.always[BIG] = corrupt
    result = fetched()
    assert result.code == 2
    assert f"{BIG}: its bytes do not match the checksum in the list, in two downloads" in result.err
    assert "run the same command again" in result.err
    assert release_files(tmp_path / "data").keys() == {*FILES, "SHA256SUMS.txt"} - {BIG}


def test_files_missing_on_the_server_are_named_at_the_end(fetched, release, tmp_path):
    del release.files[BIG]
    result = fetched()
    assert result.code == 2
    assert f"1 file could not be fetched:\n  {BIG}: the server responds with 404 Not Found" in result.err
    assert len(release.gets(BIG)) == 1
    release.files.update(FILES)
    assert fetched().code == 0
    assert is_complete(tmp_path / "data", release)


def test_a_wait_requested_by_the_server_is_respected(fetched, release, tmp_path):
    release.faults[BIG] = [refuse(429, Retry_After="1"), refuse(503)]  # seconds
    start = time.monotonic()
    assert fetched().code == 0
    assert time.monotonic() - start >= 1
    assert is_complete(tmp_path / "data", release)


def test_a_file_that_waits_respects_a_longer_wait_that_another_one_is_asked_for():
    pauses, start = backoff.Backoff(Event()), time.monotonic()
    pauses.pause_all(0.05)
    Timer(0.01, pauses.pause_all, [0.2]).start()
    pauses.wait_for_pause()
    assert time.monotonic() - start >= 0.2


def test_a_requested_wait_of_hours_is_an_error(fetched, release):
    release.always[BIG] = refuse(503, Retry_After="7200")
    result = fetched()
    assert result.code == 2
    assert "503 Service Unavailable and requests a wait of 7200 s" in result.err


def test_a_server_that_always_fails_is_given_up(fetched, release):
    release.always[BIG] = refuse(500)
    result = fetched()
    assert result.code == 2
    assert f"{BIG}: the server responds with 500 Internal Server Error, {backoff.MAX_TRIES} times" in result.err
    assert len(release.gets(BIG)) == backoff.MAX_TRIES


def test_a_server_that_is_down_ends_the_run(fetched, release, monkeypatch, tmp_path):
    monkeypatch.setattr(download, "MAX_UNREACHABLE", 3)
    release.always.update(dict.fromkeys(FILES, refuse(502)))
    result = fetched("--jobs", "1")
    assert result.code == 2
    assert "3 files in a row could not be fetched, the last one because the server responds with 502" in result.err
    assert len({path for method, path, _ in release.requests if method == "GET"}) < 1 + len(FILES)


def test_a_missing_server_is_an_error_without_a_traceback(kdkit_here, tmp_path, monkeypatch):
    monkeypatch.setattr(backoff, "FIRST_WAIT", 0.001)
    result = kdkit_here("ecg", "fetch", "ptb-xl", "data", "--base-url", "http://127.0.0.1:1/")
    assert result.code == 2
    assert "http://127.0.0.1:1/SHA256SUMS.txt cannot be fetched" in result.err
    assert not (tmp_path / "data").exists()


def test_an_impossible_address_or_folder_is_an_error_without_a_traceback(kdkit_here, fetched, release, tmp_path):
    result = kdkit_here("ecg", "fetch", "ptb-xl", "data", "--base-url", "physionet.org/files/ptb-xl")
    assert (result.code, "got 'physionet.org/files/ptb-xl'" in result.err) == (2, True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "SHA256SUMS.txt").mkdir()
    result = fetched()
    assert (result.code, "error: data cannot be written" in result.err) == (2, True)


@pytest.mark.parametrize(
    ("list_text", "message"),
    [
        ("<html><body>Log in</body></html>", "line 1: expected a SHA-256 and a path, got '<html>"),
        ("", "lists no file"),
        (f"{'0' * 64} ../../etc/passwd", "'../../etc/passwd' is outside the folder or a reserved name"),
        (f"{'0' * 64} /etc/passwd", "is outside the folder or a reserved name"),
        (f"{'0' * 64} a/../../b", "is outside the folder or a reserved name"),
        (f"{'0' * 64} C:\\windows", "is outside the folder or a reserved name"),
        (f"{'0' * 64} training//a", "is outside the folder or a reserved name"),
        (f"{'0' * 64} .kdkit-fetch.tsv", "is outside the folder or a reserved name"),
        (f"{'0' * 64} a\n{'1' * 64} a", "line 2: 'a' is listed twice with different checksums"),
    ],
)
def test_an_invalid_or_unsafe_list_is_refused(list_text, message, fetched, release, tmp_path):
    release.list_text = list_text
    result = fetched()
    assert result.code == 2
    assert message in result.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("only", "files"),
    [
        (["cpsc_2018"], 2),
        (["training/georgia"], 3),
        (["training/georgia/"], 3),
        (["*.hea"], 3),
        (["*/georgia/*.hea", "LICENSE.txt"], 2),
    ],
)
def test_only_accepts_folders_and_patterns(only, files, fetched):
    result = fetched(*(argument for pattern in only for argument in ("--only", pattern)))
    assert f"{files} files in the list" in result.out
    assert f"{files} files fetched" in result.out


def test_a_wrong_only_is_refused_with_the_nearest_folder(fetched, tmp_path):
    result = fetched("--only", "training/cpsc_2018/g2")
    assert result.code == 2
    assert "did you mean 'training/cpsc_2018/g1'" in result.err
    assert not (tmp_path / "data").exists()


def test_a_dry_run_writes_nothing_and_requests_no_file(fetched, release, tmp_path):
    result = fetched("--dry-run")
    assert result.code == 0
    assert "7 to fetch: about 775 kB" in result.out
    assert not (tmp_path / "data").exists()
    assert {path for method, path, _ in release.requests if method == "GET"} == {"SHA256SUMS.txt"}


def test_a_full_disk_is_an_error_before_any_file_is_written(fetched, release, monkeypatch, tmp_path):
    monkeypatch.setattr(disk_space, "free_space", lambda folder: 700_000)
    result = fetched()
    assert result.code == 2
    assert "has 700 kB free; free some space, use a folder on another disk, or select files with --only" in result.err
    assert not release_files(tmp_path / "data")


def test_a_server_without_sizes_can_be_used(fetched, release, tmp_path):
    release.supports_head = False
    result = fetched()
    assert result.code == 0
    assert "unknown size" in result.out
    assert is_complete(tmp_path / "data", release)


def test_a_disk_that_becomes_full_ends_the_run_and_keeps_the_fetched_files(fetched, release, monkeypatch, tmp_path):
    original = transfer.Transfer._request

    def raise_disk_full(self, file, part):
        if file.path == BIG:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, file, part)

    # One thread, so that the small files before BIG in the list are fetched first.
    with monkeypatch.context() as patched:
        patched.setattr(transfer.Transfer, "_request", raise_disk_full)
        result = fetched("--jobs", "1")
    assert result.code == 2
    assert f"{BIG}.part cannot be written: No space left on device" in result.err
    assert (tmp_path / "data" / "LICENSE.txt").read_bytes() == FILES["LICENSE.txt"]
    assert fetched().code == 0
    assert is_complete(tmp_path / "data", release)
    assert release.gets("LICENSE.txt") == [""]


def test_two_releases_do_not_share_a_folder(fetched, release):
    fetched()
    release.list_text = f"{'0' * 64} other\n"
    result = fetched()
    assert result.code == 2
    assert "the list of another release" in result.err


def test_two_processes_do_not_write_to_one_folder(fetched, release, tmp_path):
    (tmp_path / "data").mkdir()
    with FileLock(tmp_path / "data" / ".kdkit-fetch.lock"):
        result = fetched()
    assert result.code == 2
    assert "another kdkit ecg fetch is running in data" in result.err
    assert fetched().code == 0


@pytest.mark.parametrize(("ending", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_an_interrupted_process_is_resumed(ending, code, kdkit_here, release, tmp_path):
    release.always[BIG] = send_slowly(100_000, 0.5)  # takes about 4 s, in which the process is ended
    options = ["ecg", "fetch", "challenge-2020", "data", "--base-url", release.url]
    process = ForkedPython(["-m", "kdkit", *options], tmp_path)
    part = tmp_path / "data" / f"{BIG}.part"
    deadline = time.monotonic() + 30
    while not (part.is_file() and part.stat().st_size > 0) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "another kdkit ecg fetch is running" in kdkit_here(*options).err
    process.send_signal(ending)
    error_output = process.communicate(timeout=20)[1]
    assert process.returncode == code, error_output
    assert ("run the same command again to resume" in error_output) == (ending == signal.SIGINT)
    received = part.stat().st_size
    assert 0 < received < len(FILES[BIG])
    assert not (tmp_path / "data" / BIG).exists()
    del release.always[BIG]
    assert kdkit_here(*options).code == 0
    assert release.gets(BIG)[-1] == f"bytes={received}-"
    assert is_complete(tmp_path / "data", release)


def test_help_lists_fetch_and_doctor(kdkit_here):
    result = kdkit_here("ecg", "--help")
    assert result.code == 0
    assert "fetch" in result.out
    assert "doctor" in result.out
