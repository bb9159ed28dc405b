"""Runs, teacher caches and ECG stores under the rules of Windows, see tools/emulated_windows."""

from pathlib import Path

import pytest

from tests.helpers.processes import run_python
from tests.helpers.wfdb_files import write_record

PROGRAM = """
import pytest
import kdkit
from kdkit import DataError
from kdkit.teachers.cache import CacheFolder
from kdkit_ecg import Challenge2020
from pathlib import Path
from tests.helpers.callbacks import KillAtStep, kill_run
from tests.helpers.teacher_cache import make_recipe
from tools.emulated_windows.rules import sitecustomize  # applies the rules to this process

here, cache = Path(), Path("cache")
for rule in (lambda: open(here), lambda: (here / "a:b").touch(), lambda: (here / "PROGRAM.py").touch()):
    with pytest.raises(OSError):
        rule()
with (here / "log").open("w"), pytest.raises(PermissionError):
    (here / "log").unlink()

options = {"device": "cpu", "teacher_cache": cache, "keep_checkpoints": 1, "measure": False}
kill_run(make_recipe(), here / "run", KillAtStep(2), **options)
kdkit.run(make_recipe(), out=here / "run", resume=True, **options)
(entry,) = CacheFolder(cache).kept()
(entry.path / "uses" / "of-a-killed-process").touch()
assert not entry.open and len(CacheFolder(cache).delete("all")) == 1

dataset = Challenge2020(here / "records", length=128, shares=(1.0, 0.0, 0.0), store=here / "stores")
assert len(dataset.train.signals) == 2
stored = dataset._store.folder
with pytest.raises(DataError, match="cannot be deleted"):
    stored.delete()
assert len([*stored.path.iterdir()]) == 4
dataset._store.prepare([], verify=True)
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="open files are found in /proc")
def test_runs_caches_and_stores_follow_the_rules_of_windows(tmp_path):
    for number in range(2):
        write_record(tmp_path / "records", f"A{number}", noise=number)
    (tmp_path / "program.py").write_text(PROGRAM)
    done = run_python(["program.py"], tmp_path)
    assert done.returncode == 0, done.stderr
