"""`kdkit ecg fetch` against a real server that drops, lies, refuses and dawdles."""

import errno
import os
import signal
import time
from collections.abc import Iterator

import pytest
from filelock import FileLock

from kdkit_ecg.download import backoff, disk_space, download, transfer
from tests.helpers.processes import ForkedPython
from tests.helpers.release_server import Release, another_range, drop, refuse, slowly, wrong

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
def release(monkeypatch) -> Iterator[Release]:
    monkeypatch.setattr(backoff, "FIRST", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Release(FILES) as server:
        yield server
        server.shutdown()


@pytest.fixture
def fetched(kdkit_here, release):
    """Fetch the release into `data`."""
    return lambda *options: kdkit_here("ecg", "fetch", "challenge-2020", "data", "--base-url", release.url, *options)


def there(folder) -> dict[str, bytes]:
    """Return all files but those that fetch keeps for itself."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    named = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: body for name, body in named.items() if not name.startswith(".kdkit-fetch")}


def whole(folder, release) -> bool:
    return there(folder) == {**FILES, "SHA256SUMS.txt": release.listed.encode()}


def test_a_release_comes_as_it_is_listed(fetched, release, tmp_path):
    said = fetched()
    assert said.code == 0, said
    assert whole(tmp_path / "data", release)
    assert "7 files in the list, 0 there and right, 7 to fetch: about 775 kB" in said.out
    assert "7 files came" in said.out


def test_a_second_run_asks_for_nothing_and_reads_nothing(fetched, release, monkeypatch):
    fetched()
    release.asked.clear()
    monkeypatch.setattr(download, "sum_of", lambda path: pytest.fail(f"{path} was read"))
    said = fetched()
    assert (said.code, "0 files came" in said.out) == (0, True)
    assert [path for _, path, _ in release.asked] == ["SHA256SUMS.txt"]


def test_a_file_that_changed_comes_again(fetched, release, tmp_path):
    fetched()
    (tmp_path / "data" / BIG).write_bytes(b"short")
    (tmp_path / "data" / "LICENSE.txt").unlink()
    said = fetched()
    assert "2 files came" in said.out
    assert whole(tmp_path / "data", release)


def test_verify_finds_damage_that_size_and_time_hide(fetched, release, tmp_path):
    fetched()
    path = tmp_path / "data" / BIG
    state = path.stat()
    path.write_bytes(FILES[BIG][::-1])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert "0 files came" in fetched().out
    assert "1 file came" in fetched("--verify").out
    assert whole(tmp_path / "data", release)


def test_what_is_there_without_a_ledger_is_read_and_kept(fetched, release, tmp_path):
    fetched()
    (tmp_path / "data" / ".kdkit-fetch.tsv").write_bytes(b"damaged\t\xff\n")
    release.asked.clear()
    assert "7 there and right" in fetched().out
    assert not release.gets(BIG)


def test_a_cut_connection_is_gone_on_with(fetched, release, tmp_path):
    release.faults[BIG] = [drop(300_000), drop(0), drop(300_000)]
    said = fetched()
    assert said.code == 0, said
    assert whole(tmp_path / "data", release)
    assert release.gets(BIG) == ["", "bytes=300000-", "bytes=300000-", "bytes=600000-"]


def test_more_cuts_than_tries_do_no_harm_while_bytes_come(fetched, release, tmp_path):
    release.faults[BIG] = [drop(50_000)] * (2 * backoff.TRIES)
    assert fetched().code == 0
    assert whole(tmp_path / "data", release)


def test_a_server_that_ignores_ranges_starts_the_file_again(fetched, release, tmp_path):
    release.ranges = False
    release.faults[BIG] = [drop(300_000)]
    said = fetched()
    assert said.code == 0
    assert "7 files came, 775 kB" in said.out  # what was lost does not count
    assert whole(tmp_path / "data", release)


def test_a_server_that_sends_another_range_starts_the_file_again(fetched, release, tmp_path):
    release.faults[BIG] = [drop(300_000), another_range, wrong]
    assert fetched().code == 0
    assert release.gets(BIG) == ["", "bytes=300000-", "", ""]
    assert whole(tmp_path / "data", release)


def test_a_part_that_is_whole_is_taken_as_it_is(fetched, release, tmp_path):
    part = tmp_path / "data" / f"{BIG}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(FILES[BIG])
    assert fetched().code == 0
    assert release.gets(BIG) == [f"bytes={len(FILES[BIG])}-"]
    assert whole(tmp_path / "data", release)


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * 2_000_000], ids=["wrong", "too long"])
def test_a_part_of_something_else_is_begun_again(left, fetched, release, tmp_path):
    part = tmp_path / "data" / f"{BIG}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(left)
    assert fetched().code == 0
    assert whole(tmp_path / "data", release)


def test_wrong_bytes_are_fetched_again_once(fetched, release, tmp_path):
    release.faults[BIG] = [wrong]
    assert fetched().code == 0
    assert whole(tmp_path / "data", release)
    assert release.gets(BIG) == ["", ""]


def test_bytes_that_stay_wrong_are_named_and_all_others_are_kept(fetched, release, tmp_path):
    release.always[BIG] = wrong
    said = fetched()
    assert said.code == 2
    assert f"{BIG}: its bytes are not those of the list, twice" in said.err
    assert "run the same command again" in said.err
    assert there(tmp_path / "data").keys() == {*FILES, "SHA256SUMS.txt"} - {BIG}


def test_files_that_are_not_on_the_server_are_named_at_the_end(fetched, release, tmp_path):
    del release.files[BIG]
    said = fetched()
    assert said.code == 2
    assert f"1 file could not be fetched:\n  {BIG}: the server answers 404 Not Found" in said.err
    assert len(release.gets(BIG)) == 1
    release.files.update(FILES)
    assert fetched().code == 0
    assert whole(tmp_path / "data", release)


def test_a_busy_server_gets_the_time_it_asks_for(fetched, release, tmp_path):
    release.faults[BIG] = [refuse(429, Retry_After="1"), refuse(503)]
    began = time.monotonic()
    assert fetched().code == 0
    assert time.monotonic() - began >= 1
    assert whole(tmp_path / "data", release)


def test_a_server_that_asks_for_hours_is_not_waited_for(fetched, release):
    release.always[BIG] = refuse(503, Retry_After="7200")
    said = fetched()
    assert said.code == 2
    assert "503 Service Unavailable and asks to come back in 7200 s" in said.err


def test_a_server_that_never_gets_well_is_given_up(fetched, release):
    release.always[BIG] = refuse(500)
    said = fetched()
    assert said.code == 2
    assert f"{BIG}: the server answers 500 Internal Server Error, {backoff.TRIES} times" in said.err
    assert len(release.gets(BIG)) == backoff.TRIES


def test_a_server_that_is_gone_ends_the_run(fetched, release, monkeypatch, tmp_path):
    monkeypatch.setattr(download, "GIVE_UP", 3)
    release.always.update(dict.fromkeys(FILES, refuse(502)))
    said = fetched("--jobs", "1")
    assert said.code == 2
    assert "the server failed 3 files in a row, the last with: the server answers 502" in said.err
    assert len({path for method, path, _ in release.asked if method == "GET"}) < 1 + len(FILES)


def test_no_server_is_told_without_a_trace(kdkit_here, tmp_path, monkeypatch):
    monkeypatch.setattr(backoff, "FIRST", 0.001)
    said = kdkit_here("ecg", "fetch", "ptb-xl", "data", "--base-url", "http://127.0.0.1:1/")
    assert said.code == 2
    assert "http://127.0.0.1:1/SHA256SUMS.txt cannot be fetched" in said.err
    assert not (tmp_path / "data").exists()


def test_an_address_or_a_folder_that_cannot_be_is_told_without_a_trace(kdkit_here, fetched, release, tmp_path):
    said = kdkit_here("ecg", "fetch", "ptb-xl", "data", "--base-url", "physionet.org/files/ptb-xl")
    assert (said.code, "not 'physionet.org/files/ptb-xl'" in said.err) == (2, True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "SHA256SUMS.txt").mkdir()
    said = fetched()
    assert (said.code, "error: data cannot be written" in said.err) == (2, True)


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ("<html><body>Log in</body></html>", "line 1: expected a SHA-256 and a path, but it is '<html>"),
        ("", "lists no file"),
        (f"{'0' * 64} ../../etc/passwd", "'../../etc/passwd' would leave the folder"),
        (f"{'0' * 64} /etc/passwd", "would leave the folder"),
        (f"{'0' * 64} a/../../b", "would leave the folder"),
        (f"{'0' * 64} C:\\windows", "would leave the folder"),
        (f"{'0' * 64} training//a", "would leave the folder"),
        (f"{'0' * 64} .kdkit-fetch.tsv", "would leave the folder"),
        (f"{'0' * 64} a\n{'1' * 64} a", "line 2: 'a' is listed twice with two sums"),
    ],
)
def test_a_list_that_cannot_be_trusted_is_refused(listed, words, fetched, release, tmp_path):
    release.listed = listed
    said = fetched()
    assert said.code == 2
    assert words in said.err
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
def test_only_takes_folders_and_patterns(only, files, fetched):
    said = fetched(*(word for each in only for word in ("--only", each)))
    assert f"{files} files in the list" in said.out
    assert f"{files} files came" in said.out


def test_only_names_what_is_near_to_a_mistake(fetched, tmp_path):
    said = fetched("--only", "training/cpsc_2018/g2")
    assert said.code == 2
    assert "did you mean 'training/cpsc_2018/g1'" in said.err
    assert not (tmp_path / "data").exists()


def test_a_dry_run_writes_nothing_and_asks_for_no_file(fetched, release, tmp_path):
    said = fetched("--dry-run")
    assert said.code == 0
    assert "7 to fetch: about 775 kB" in said.out
    assert not (tmp_path / "data").exists()
    assert {path for method, path, _ in release.asked if method == "GET"} == {"SHA256SUMS.txt"}


def test_a_disk_without_room_is_found_out_before_anything_is_written(fetched, release, monkeypatch, tmp_path):
    monkeypatch.setattr(disk_space, "free_space", lambda folder: 700_000)
    said = fetched()
    assert said.code == 2
    assert "has 700 kB free; make room, give a folder on another disk, or take a part with --only" in said.err
    assert not there(tmp_path / "data")


def test_a_server_that_tells_no_sizes_is_still_fetched_from(fetched, release, tmp_path):
    release.heads = False
    said = fetched()
    assert said.code == 0
    assert "size not known" in said.out
    assert whole(tmp_path / "data", release)


def test_a_disk_that_gets_full_ends_the_run_and_keeps_what_came(fetched, release, monkeypatch, tmp_path):
    asked = transfer.Transfer._piece

    def full(self, file, part):
        if file.path == BIG:
            raise OSError(errno.ENOSPC, "No space left on device")
        asked(self, file, part)

    with monkeypatch.context() as patched:
        patched.setattr(transfer.Transfer, "_piece", full)
        said = fetched("--jobs", "1")
    assert said.code == 2
    assert f"{BIG}.part cannot be written: No space left on device" in said.err
    assert (tmp_path / "data" / "LICENSE.txt").read_bytes() == FILES["LICENSE.txt"]
    assert fetched().code == 0
    assert whole(tmp_path / "data", release)
    assert release.gets("LICENSE.txt") == [""]


def test_two_releases_do_not_share_a_folder(fetched, release):
    fetched()
    release.listed = f"{'0' * 64} other\n"
    said = fetched()
    assert said.code == 2
    assert "the list of another release" in said.err


def test_two_processes_do_not_write_to_one_folder(fetched, release, tmp_path):
    (tmp_path / "data").mkdir()
    with FileLock(tmp_path / "data" / ".kdkit-fetch.lock"):
        said = fetched()
    assert said.code == 2
    assert "another kdkit ecg fetch is at work in data" in said.err
    assert fetched().code == 0


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_process_that_was_ended_is_gone_on_with(sign, code, kdkit_here, release, tmp_path):
    release.always[BIG] = slowly(100_000, 0.5)
    options = ["ecg", "fetch", "challenge-2020", "data", "--base-url", release.url]
    process = ForkedPython(["-m", "kdkit", *options], tmp_path)
    part = tmp_path / "data" / f"{BIG}.part"
    until = time.monotonic() + 30
    while not (part.is_file() and part.stat().st_size > 0) and time.monotonic() < until:
        time.sleep(0.02)
    assert "another kdkit ecg fetch is at work" in kdkit_here(*options).err
    process.send_signal(sign)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == code, said
    assert ("run the same command again to go on" in said) == (sign == signal.SIGINT)
    begun = part.stat().st_size
    assert 0 < begun < len(FILES[BIG])
    assert not (tmp_path / "data" / BIG).exists()
    del release.always[BIG]
    assert kdkit_here(*options).code == 0
    assert release.gets(BIG)[-1] == f"bytes={begun}-"
    assert whole(tmp_path / "data", release)


def test_help_names_both_commands(kdkit_here):
    said = kdkit_here("ecg", "--help")
    assert said.code == 0
    assert "fetch" in said.out
    assert "doctor" in said.out
