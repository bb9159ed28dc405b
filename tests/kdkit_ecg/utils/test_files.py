"""Folders of a release without shards, sizes as text, and free disk space."""

from pathlib import PurePath

import pytest

from kdkit_ecg.utils.files import free_space, unsharded_folder


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
