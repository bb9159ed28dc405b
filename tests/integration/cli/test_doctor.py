"""Tests of `kdkit doctor`: what it reports, and that it finds what is broken or slow."""

import json
from pathlib import Path

import pytest
import torch

import kdkit
from kdkit.cli import doctor
from tests.helpers.plugins import install_plugin
from tests.helpers.stages import three


def test_the_report_has_versions_devices_plugins_and_folders(kdkit_process, tmp_path):
    kdkit.run(three, out=tmp_path / "runs" / "first", device="cpu")
    result = kdkit_process("doctor", "--json")
    assert result.code == 0, result
    report = json.loads(result.out)
    assert report["state"] == "working"
    assert report["versions"]["kdkit"] == kdkit.__version__
    assert report["versions"]["torch"] == torch.__version__
    assert report["devices"]["cpu"]
    assert report["threads"]["torch"] >= 1
    assert report["plugins"]["kdkit"].endswith(" entries")
    assert "ecg" in report["plugins"]
    assert report["folders"]["runs"] == str(tmp_path / "runs")
    assert report["folders"]["teacher cache"] == str(tmp_path / "runs" / "teacher_cache")
    assert not report["folders"]["size of the teacher cache"].endswith(", 0 entries")
    assert report["folders"]["fsync"].endswith(" ms")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]  # nothing new


def test_the_memory_is_left_out_on_windows_which_does_not_state_it(monkeypatch):
    monkeypatch.delattr(doctor.os, "sysconf")
    assert "memory" not in doctor.examine_devices(doctor.Findings())["cpu"]


def test_a_broken_plugin_is_named_and_the_exit_code_is_1(kdkit_process, tmp_path):
    result = kdkit_process("doctor", PYTHONPATH=install_plugin("broken", tmp_path / "site"))
    assert result.code == 1
    assert "broken: plugin 'broken' of kdkit-broken is skipped" in result.out
    assert "skipped of kdkit-broken 1.0" in result.out
    assert "reinstall or update its package" in result.out


def test_the_packages_and_the_versions_that_a_plugin_needs_are_examined(kdkit_process, tmp_path):
    site = install_plugin("good", tmp_path / "site")
    with Path(site, "kdkit_good-1.0.dist-info", "METADATA").open("a") as file:
        file.write(
            "Requires-Dist: kdkit<0.1,>=0.0.5\n"
            "Requires-Dist: numpy>=999\n"
            "Requires-Dist: a-package-that-does-not-exist>=2\n"
            'Requires-Dist: another-one; python_version < "3"\n'
            'Requires-Dist: another-reader; extra == "edf"\n'
            "Provides-Extra: edf\n"
        )
    result = kdkit_process("doctor", PYTHONPATH=site)
    assert result.code == 1
    version = kdkit.__version__
    assert f"broken: kdkit {version} is too new; kdkit-good needs a version below 0.1\n" in result.out
    assert "update kdkit-good, or pip install 'kdkit>=0.0.5,<0.1'" in result.out
    assert "is too old; kdkit-good needs 999 or newer" in result.out
    assert "a-package-that-does-not-exist is not installed, which kdkit-good needs" in result.out
    assert "another-one" not in result.out
    assert "kdkit-good[edf]" in result.out
    assert "without another-reader: pip install 'kdkit-good[edf]'" in result.out


def test_the_plugin_that_takes_longest_to_register_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "_SLOW_IMPORT", -1.0)
    _facts, findings = doctor.examine(Path("runs"))
    (slow,) = [finding for finding in findings if "to register, of which" in finding.problem]
    assert not slow.broken
    assert "'kdkit' takes" in slow.problem or "'ecg' takes" in slow.problem


def test_threads_above_the_cores_of_a_container_and_a_slow_plugin_are_notes(monkeypatch):
    monkeypatch.setattr(doctor, "_SLOW_PLUGIN", -1.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    monkeypatch.setattr(doctor, "usable_cores", lambda: 1)
    facts, findings = doctor.examine(Path("runs"))
    assert facts["threads"]["usable cores"] == 1
    (slow,) = [finding for finding in findings if finding.problem.startswith("plugin 'ecg' takes 0.")]
    assert not slow.broken
    (finding,) = [finding for finding in findings if "threads" in finding.problem]
    assert not finding.broken
    assert "torch uses 16 threads on 1 cores" in finding.problem
    assert finding.advice == "set OMP_NUM_THREADS=1"


def test_a_package_that_is_missing_or_too_old_is_broken(monkeypatch):
    requirements = [("torch", "2.0", ""), ("numpy", "999", ""), ("a-package-that-does-not-exist", "1.0", "")]
    monkeypatch.setattr(doctor, "_requirements", lambda extra, package: requirements if not extra else [])
    _facts, findings = doctor.examine(Path("runs"))
    problems = [finding.problem for finding in findings if finding.broken]
    assert any("kdkit needs 999" in problem for problem in problems)
    assert "a-package-that-does-not-exist is not installed" in problems
    assert not any("torch" in problem for problem in problems)


def test_a_folder_that_cannot_be_written_is_broken(monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor, "_measure_disk", refuse)
    _facts, findings = doctor.examine(Path("runs"))
    (finding,) = [finding for finding in findings if finding.broken]
    assert "cannot be written" in finding.problem
    assert "Permission denied" in finding.problem


def test_a_file_in_the_place_of_a_folder_of_runs_is_broken(tmp_path):
    (tmp_path / "runs").touch()
    for runs in (tmp_path / "runs", tmp_path / "runs" / "of" / "today"):
        findings = doctor.Findings()
        assert "fsync" in doctor.examine_folders(runs, findings)
        assert [finding.broken for finding in findings] == [True]
        assert findings[0].problem == f"run folders cannot be created in {runs}: {tmp_path / 'runs'} is a file"


def test_a_slow_disk_is_a_note(monkeypatch):
    monkeypatch.setattr(doctor, "_measure_disk", lambda folder: (1e6, 0.2))
    _facts, findings = doctor.examine(Path("runs"))
    assert any("200 ms for each fsync" in finding.problem and not finding.broken for finding in findings)


def test_a_section_that_fails_does_not_hide_the_others(monkeypatch):
    def fail(_findings):
        raise RuntimeError("no driver")

    monkeypatch.setattr(doctor, "examine_devices", fail)
    facts, findings = doctor.examine(Path("runs"))
    assert facts["folders"]["free space"]
    assert any(finding.broken and "RuntimeError: no driver" in finding.problem for finding in findings)


@pytest.mark.parametrize(
    ("version", "numbers"), [("2.7.0rc1+cpu", (2, 7)), ("2.10", (2, 10)), ("1", (1,)), ("unknown", ())]
)
def test_versions_are_compared_by_their_numbers(version, numbers):
    assert doctor._numbers(version) == numbers
