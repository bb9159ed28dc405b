"""`kdkit ecg fetch` of releases that are records of Zenodo or figshare, whose lists are JSON with sizes and MD5."""

import hashlib
import json

import pytest

from kdkit_ecg.commands import RELEASES
from tests.helpers.release_server import corrupt, disconnect, serving

CODE15 = {"exams.csv": b"exam_id,AF\n1,0\n", "exams_part0.zip": bytes(range(251)) * 900}
SPH = {"metadata.csv": b"ECG_ID\n", "records.tar.gz": bytes(range(199)) * 500, "code.csv": b"Code\n", "r.csv": b"r"}
RECORDS = RELEASES["sph"][1]


def zenodo(url, files):
    """Return the JSON of a record with these files in the form of Zenodo."""
    entries = [
        {
            "key": name,
            "size": len(body),
            "checksum": f"md5:{hashlib.md5(body).hexdigest()}",
            "links": {"self": f"{url}content/{name}"},
        }
        for name, body in files.items()
    ]
    return {"id": 4916206, "files": entries, "stats": {"downloads": 7}}


def figshare(url, files):
    """Return the JSON of an article with these files in the form of figshare."""
    entries = [
        {
            "id": 1,
            "name": name,
            "size": len(body),
            "is_link_only": False,
            "download_url": f"{url}content/{name}",
            "supplied_md5": "",
            "computed_md5": hashlib.md5(body).hexdigest(),
        }
        for name, body in files.items()
    ]
    return {"files": [*entries, {"name": "elsewhere", "is_link_only": True, "download_url": "https://example.org"}]}


@pytest.fixture
def server(monkeypatch):
    bodies = {f"content/{name}": body for name, body in (CODE15 | SPH).items()}
    with serving(bodies, monkeypatch) as server:
        server.files["4916206"] = json.dumps(zenodo(server.url, CODE15)).encode()
        for record, (name, body) in zip(RECORDS, SPH.items(), strict=True):
            server.files[record] = json.dumps(figshare(server.url, {name: body})).encode()
        yield server


@pytest.fixture
def fetched(kdkit_here, server):
    """Fetch a release into `data`."""
    return lambda release, *options: kdkit_here("ecg", "fetch", release, "data", "--base-url", server.url, *options)


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".kdkit-fetch")}


@pytest.mark.parametrize(("release", "files"), [("code-15", CODE15), ("sph", SPH)])
def test_a_record_is_fetched_as_listed_and_not_again(fetched, server, tmp_path, release, files):
    result = fetched(release)
    assert result.code == 0, result
    sums = "".join(f"{hashlib.md5(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    assert files_in(tmp_path / "data") == {**files, "MD5SUMS.txt": sums.encode()}
    assert f"{len(files)} files fetched" in result.out
    assert not [path for method, path, _ in server.requests if method == "HEAD"]  # the list has the sizes
    server.requests.clear()
    server.files["4916206"] = server.files["4916206"].replace(b'"downloads": 7', b'"downloads": 8')
    assert "0 files fetched" in fetched(release).out
    assert {path for _, path, _ in server.requests} == set(RELEASES[release][1])


def test_a_part_is_resumed_and_wrong_bytes_are_fetched_again(fetched, server, tmp_path):
    server.faults["content/exams_part0.zip"] = [disconnect(after=70_000), corrupt]
    assert fetched("code-15", "--only", "*.zip").code == 0
    assert files_in(tmp_path / "data").keys() == {"exams_part0.zip", "MD5SUMS.txt"}
    assert server.gets("content/exams_part0.zip") == ["", "bytes=70000-", ""]


def test_a_file_that_is_larger_than_listed_is_stopped(fetched, server, tmp_path):
    server.files["content/exams.csv"] = bytes(20)
    result = fetched("code-15", "--only", "exams.csv")
    assert result.code == 2
    assert "expected at most 15 B" in result.err
    assert not (tmp_path / "data" / "exams.csv.part").exists()


def test_a_folder_holds_one_release(fetched, tmp_path):
    assert fetched("code-15", "--only", "exams.csv").code == 0
    assert "MD5SUMS.txt is the list of another release" in fetched("sph").err
    assert "MD5SUMS.txt is the list of another release" in fetched("ptb-xl").err
    assert files_in(tmp_path / "data").keys() == {"exams.csv", "MD5SUMS.txt"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"key": "exams.csv"', '"key": "../exams.csv"', "outside the folder or a reserved name"),
        ('"key": "exams.csv"', '"key": "md5sums.TXT"', "outside the folder or a reserved name"),
        ('"key": "exams.csv"', '"key": "Exams_part0.zip"', "are the same file on some disks"),
        ('"key": "exams.csv"', '"key": 7', "needs an MD5 and a size"),
        ('"checksum": "md5:', '"checksum": "sha0:', "needs an MD5 and a size"),
        ('"size": 15', '"size": -1', "needs an MD5 and a size"),
        ('"size": 15', '"size": true', "needs an MD5 and a size"),
        ('"size": 15', '"size": 1e99', "needs an MD5 and a size"),
        ('"links": {"self": "http://127.0.0.1', '"links": {"self": "http://example.org', "is on another server"),
        ('"links": {"self": "http://127.0.0.1', '"links": {"self": "file:///etc/passwd', "is on another server"),
        ('"links"', '"lines"', "is not the list of a record"),
        ('"files"', '"filed"', "is not the list of a record"),
        ('{"id"', "[" * 100_000 + '{"id"', "is not the list of a record"),
        ("{", "<", "is not the list of a record"),
    ],
)
def test_a_list_that_is_wrong_is_refused_and_nothing_is_written(fetched, server, tmp_path, old, new, message):
    text = server.files["4916206"].decode()
    assert old in text
    server.files["4916206"] = text.replace(old, new).encode()
    result = fetched("code-15")
    assert (result.code, message in result.err) == (2, True), result.err
    assert not (tmp_path / "data").exists()


def test_releases_are_versions_that_never_change():
    for address, records in RELEASES.values():
        assert address.startswith("https://")
        assert all("/versions/" in record for record in records if "figshare" in address)
