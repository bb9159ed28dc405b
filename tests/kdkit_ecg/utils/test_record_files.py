"""Files of records are found in linked folders too, and with suffixes in any case."""

from pathlib import PurePath

import pytest

from kdkit_ecg.download.checksums import LISTS
from kdkit_ecg.download.lock import require_same_release
from kdkit_ecg.download.transfer import _size as part_size
from kdkit_ecg.download.verified_files import VERIFIED_FILE, VerifiedFiles
from kdkit_ecg.predict_command import _require_no_input
from kdkit_ecg.store.index import INDEX, SIGNALS, make_row, read_rows
from kdkit_ecg.utils.record_files import (
    find_record_files,
    free_space,
    present_file,
    record_name,
    unsharded_folder,
)
from kdkit_ecg.utils.tables import read_patient_table


def create(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder):
    return [path.relative_to(folder).as_posix() for path in find_record_files(folder).headers]


def test_linked_folders_are_read(tmp_path):
    create(tmp_path, "disk/cpsc/g1/A1.hea", "data/georgia/E1.hea")
    (tmp_path / "data" / "cpsc").symlink_to(tmp_path / "disk" / "cpsc")
    assert found(tmp_path / "data") == ["cpsc/g1/A1.hea", "georgia/E1.hea"]


def test_files_of_attributes_that_macos_writes_next_to_records_are_left_out(tmp_path):
    create(tmp_path, "a/A1.hea", "a/A1.dat", "a/._A1.hea", "a/._A1.dat", "__MACOSX/a/._A2.edf", "a/._A3.scp")
    files = find_record_files(tmp_path)
    assert sum(files, ()) == (tmp_path / "a" / "A1.hea", tmp_path / "a" / "A1.dat")


def test_a_link_to_a_parent_is_not_followed_without_end(tmp_path):
    create(tmp_path, "a/A1.hea", "b/B1.hea")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a" / "self")
    assert found(tmp_path) == ["a/A1.hea", "b/B1.hea"]
    assert found(tmp_path / "a") == ["A1.hea", "up/b/B1.hea"]
    assert [path.name for path in find_record_files(tmp_path).not_listed] == ["self"]


def test_a_folder_with_several_paths_is_read_once_by_the_path_without_a_link(tmp_path):
    create(tmp_path, "z/A1.hea")
    (tmp_path / "a").symlink_to("z")
    (tmp_path / "b").symlink_to("z")
    assert found(tmp_path) == ["z/A1.hea"]


def test_links_that_lead_nowhere_are_named(tmp_path):
    create(tmp_path, "A1.hea")
    (tmp_path / "A1.mat").symlink_to(tmp_path / "gone.mat")
    (tmp_path / "georgia").symlink_to(tmp_path / "gone")
    files = find_record_files(tmp_path)
    assert [path.name for path in files.not_listed] == ["georgia"]
    assert [path.name for path in files.signals] == ["A1.mat"]


def test_suffixes_have_any_case(tmp_path):
    create(tmp_path, "A1.HEA", "A1.DAT", "A2.Hea", "A2.MAT", "A3.mat", "A4.Mat.part", "notes.txt")
    files = find_record_files(tmp_path)
    assert found(tmp_path) == ["A1.HEA", "A2.Hea"]
    assert [path.name for path in files.signals] == ["A1.DAT", "A2.MAT", "A3.mat"]
    assert [path.name for path in files.without_header()] == ["A3.mat"]
    assert len(files.unfinished) == 1


@pytest.mark.parametrize(
    ("written", "present"),
    [("A1.dat", "A1.DAT"), ("a1.mat", "A1.MAT"), ("A1.DAT", "A1.dAt"), ("A1", "A1.mat"), ("A1", "A1.DAT")],
)
def test_a_file_is_found_whatever_the_case_and_without_a_suffix(tmp_path, written, present):
    create(tmp_path, present)
    assert present_file(tmp_path / written).name == present


def test_a_file_that_does_not_exist_keeps_its_name(tmp_path):
    create(tmp_path, "A2.dat", "A1.txt")
    assert present_file(tmp_path / "A1.dat") == tmp_path / "A1.dat"
    assert present_file(tmp_path / "A1") == tmp_path / "A1"


@pytest.mark.parametrize("text", ["A1", " A1.hea", "A1.HEA ", "A1.Mat", "A1.DAT"])
def test_the_name_of_a_record_has_no_suffix(text):
    assert record_name(text) == "A1"


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("training/georgia/g1/E00001.hea", "training/georgia"),
        ("records500/00000/00001_hr.hea", "records500"),
        ("training/g1/copies/A0001.hea", "training/g1/copies"),  # only the innermost folders are shards
        ("g1/A0001.hea", "."),
        ("A0001.hea", "."),
    ],
)
def test_shards_are_removed_from_the_end_of_a_folder(path, folder):
    assert unsharded_folder(PurePath(path)) == folder


def test_the_free_space_of_a_folder_that_does_not_exist_is_that_of_its_parent(tmp_path):
    assert free_space(tmp_path / "missing" / "folder") == pytest.approx(free_space(tmp_path), rel=0.1)


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("records.csv", lambda folder: read_patient_table([folder])),
        (VERIFIED_FILE, VerifiedFiles),
        (LISTS[0], lambda folder: require_same_release(folder, LISTS[1], "")),
        ("file.part", lambda folder: part_size(folder / "file.part")),
        (SIGNALS, read_rows),
        ("out.csv", lambda folder: _require_no_input(folder / "out.csv", [folder / "out.csv"])),
    ],
)
def test_a_file_that_cannot_be_examined_does_not_count_as_missing(name, use, tmp_path):
    (tmp_path / INDEX).write_bytes(make_row(bytes(16), b"", 0, None, ""))
    (tmp_path / name).symlink_to(tmp_path / name)  # to itself
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        use(tmp_path)
