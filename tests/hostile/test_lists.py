"""Fetch writes no file that a hostile list or server chooses, neither by its path, nor by its size, nor by a link."""

import hashlib

import pytest

from kdkit import DataError
from kdkit_ecg.download import disk_space, responses
from kdkit_ecg.download.checksums import parse_list
from tests.helpers.release_server import send_chunks, serving
from tests.hostile.make_corpus import hostile_paths, unharmed_corpus

SMALL = "training/A1.hea"
FILES = {SMALL: b"12345", "training/A2.hea": b"67890", "LICENSE.txt": b"CC BY 4.0\n"}


@pytest.fixture
def release(monkeypatch):
    with serving(FILES, monkeypatch) as server:
        yield server


@pytest.fixture
def fetched(kdkit_here, release):
    return lambda *options: kdkit_here("ecg", "fetch", "challenge-2020", "data", "--base-url", release.url, *options)


@pytest.fixture
def marker(tmp_path):
    with unharmed_corpus(tmp_path, "names") as path:
        yield path


def size_on_disk(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS.txt")


@pytest.mark.parametrize("kind", hostile_paths())
def test_a_list_with_a_hostile_path_is_refused_before_anything_is_written(kind, fetched, release, tmp_path, marker):
    path = hostile_paths()[kind]
    release.list_text += f"{hashlib.sha256(b'owned').hexdigest()} {path}\n"
    release.files[path] = b"owned"
    result = fetched()
    assert (result.code, (tmp_path / "data").exists()) == (2, False), result
    assert "is outside the folder or a reserved name; no file is fetched" in result.err
    assert {character for character in result.err if not character.isprintable()} == {"\n"}


@pytest.mark.parametrize("pair", [("a/B.hea", "A/b.hea"), ("caf\u00e9", "cafe\u0301"), ("stra\u00dfe", "STRASSE")])
def test_two_names_that_are_one_file_on_some_disks_are_refused(pair):
    text = "".join(f"{'0' * 64} {path}\n" for path in pair)
    with pytest.raises(DataError, match=r"line 2: .* are the same file on some disks; no file is fetched"):
        parse_list(text, "list")


@pytest.mark.parametrize("declared", [True, False], ids=["with a length", "in chunks"])
def test_a_file_that_is_larger_than_the_server_declared_is_stopped(declared, fetched, release, tmp_path):
    release.always[SMALL] = (lambda handler, _: handler.send(bytes(10_000_000))) if declared else send_chunks(10_000)
    result = fetched("--jobs", 1)
    assert result.code == 2
    assert f"{SMALL}: the server sends" in result.err
    assert "or more, expected at most 5 B" in result.err
    assert size_on_disk(tmp_path / "data") < 1000
    assert (tmp_path / "data" / "training" / "A2.hea").read_bytes() == b"67890"


def test_a_file_of_unknown_size_is_stopped_at_a_multiple_of_its_kind(fetched, release, tmp_path, monkeypatch):
    monkeypatch.setattr(disk_space, "SAMPLE", 1)  # so that the size of one of the two is not requested
    monkeypatch.setattr(disk_space, "MAX_SMALL", 1000)
    for path in (SMALL, "training/A2.hea"):
        release.always[path] = send_chunks(10_000)
    result = fetched()
    assert "expected at most 5 B" in result.err
    assert "expected at most 1 kB" in result.err
    assert size_on_disk(tmp_path / "data") < 1000


def test_a_file_without_any_known_size_is_stopped(fetched, release, tmp_path, monkeypatch):
    monkeypatch.setattr(disk_space, "MAX_UNKNOWN", 100_000)
    release.supports_head = False
    release.always[SMALL] = send_chunks(10_000)
    assert "expected at most 100 kB" in fetched().err
    assert size_on_disk(tmp_path / "data") < 1000


@pytest.mark.parametrize("declared", [True, False], ids=["with a length", "in chunks"])
def test_a_list_that_is_too_long_is_refused(declared, fetched, release, tmp_path, monkeypatch):
    monkeypatch.setattr(responses, "MAX_LIST", 1_000_000)
    sent = []

    def send(handler, _body):
        if declared:
            handler.respond(200, b"x" * 1_000_001)
        else:
            send_chunks(10_000, sent)(handler, b"")

    release.always["SHA256SUMS.txt"] = send
    result = fetched()
    assert (result.code, (tmp_path / "data").exists()) == (2, False)
    assert "has more than 1 MB, which is too long for the list of a release; is the address right?" in result.err
    assert len(release.gets("SHA256SUMS.txt")) == 1
    assert sum(sent) < 20_000_000  # what the system buffers, and not the 655 MB


@pytest.mark.parametrize(
    "link", [SMALL, f"{SMALL}.part", ".kdkit-fetch.tsv", ".kdkit-fetch.lock", ".kdkit-fetch.list", "SHA256SUMS.txt"]
)
def test_a_link_in_the_folder_is_not_followed(link, fetched, tmp_path, marker):
    path = tmp_path / "data" / link
    path.parent.mkdir(parents=True)
    path.symlink_to(marker)
    result = fetched()
    if link == SMALL:  # the link itself is replaced by the file
        assert (result.code, path.is_symlink(), path.read_bytes()) == (0, False, b"12345")
    else:
        assert result.code == 2
        assert "is a link, and links are not followed" in result.err


def test_a_linked_folder_in_the_folder_is_not_followed(fetched, tmp_path, marker):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "training").symlink_to(elsewhere)
    result = fetched()
    assert result.code == 2
    assert "training is a link, and links are not followed; move or delete it" in result.err
    assert not list(elsewhere.iterdir())
    assert (tmp_path / "data" / "LICENSE.txt").is_file()


def test_the_folder_itself_may_be_a_link(fetched, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    assert fetched().code == 0
    assert (tmp_path / "disk" / SMALL).read_bytes() == b"12345"
