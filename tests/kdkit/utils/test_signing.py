"""The key of a user is secret."""

import sys
from pathlib import Path

import pytest

from kdkit.utils.signing import sign


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permissions of this kind")
def test_a_key_can_never_be_read_by_other_users(tmp_path, monkeypatch):
    replace, modes = Path.replace, []

    def record(self, target):
        modes.append(self.stat().st_mode & 0o777)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", record)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert sign("text") is not None
    assert modes == [0o600]
