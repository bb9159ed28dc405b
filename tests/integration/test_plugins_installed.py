"""Plugins of other people: packages of their own, found by their entry point, good ones and bad ones."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

PACKAGES = Path(__file__).parent / "plugin_packages"

RECIPE = """
    import torch
    from torch import nn
    from torch.utils.data import TensorDataset
    import kdkit
    from kdkit import Net, Recipe, TorchData, Training, Truth

    def samples(count: int, seed: int) -> TensorDataset:
        labels = torch.arange(count) % 3
        return TensorDataset(torch.eye(3, 6)[labels] + 0.1 * seed, labels)

    def recipe(plugin: bool = True) -> Recipe:
        nets = Net("teacher", nn.Linear(6, 3)), Net("student", nn.Sequential(nn.Dropout(), nn.Linear(6, 3)))
        kd_loss = kdkit.registry("losses")["distance"] if plugin else nn.L1Loss()
        how = {"truth": Truth(nn.CrossEntropyLoss()), "kd_loss": kd_loss, "training": Training(epochs=2, batch_size=8)}
        return Recipe(
            data=TorchData(samples(16, 0), samples(9, 1), samples(9, 2), classes=("a", "b", "c")),
            schedule=kdkit.registry("schedules")["pair"](*nets, **how),
        )
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> dict[str, str]:
    """Install each package, by itself and without a network, and return where it lies."""
    sites = {}
    for package in sorted(PACKAGES.iterdir()):
        if not (package / "pyproject.toml").exists():
            continue
        source = tmp_path_factory.mktemp("source") / package.name
        shutil.copytree(package, source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
        target = tmp_path_factory.mktemp(f"site-{package.name}")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        subprocess.run([*pip, "--target", target, source], check=True, capture_output=True, timeout=120)
        sites[package.name] = str(target)
    return sites


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(dedent(RECIPE))
    return path


def test_a_plugin_adds_a_loss_a_schedule_and_a_watcher_to_a_real_run(site, mine, tmp_path, kdkit_process):
    log = tmp_path / "log.jsonl"
    env = {"PYTHONPATH": site["good"], "KDKIT_GOOD_LOG": str(log)}
    said = kdkit_process("run", mine, "--out", "run", "--seed", 7, "--device", "cpu", **env)
    assert said.code == 0, said
    assert said.err == ""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    epoch = ["step_ended", "step_ended", "epoch_ended"]
    stage = ["stage_started", *epoch, *epoch]
    assert [line["told"] for line in lines] == ["run_started", *stage, *stage, "run_ended"]
    assert (lines[0]["stages"], lines[0]["seed"]) == (["teacher", "student"], 7)
    started = [line for line in lines if line["told"] == "stage_started"]
    assert [(line["index"], line["name"], line["epochs"], line["batches"]) for line in started] == [
        (0, "teacher", 2, 2),
        (1, "student", 2, 2),
    ]
    steps = [line for line in lines if line["told"] == "step_ended" and line["stage"] == "student"]
    assert [(line["epoch"], line["batch"]) for line in steps] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    ended = next(line for line in lines if line["told"] == "epoch_ended" and line["stage"] == "student")
    for label in ("truth", "teacher/distance"):
        assert ended["terms"][label] == pytest.approx((steps[0]["terms"][label] + steps[1]["terms"][label]) / 2)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    assert lines[-1]["error"] is None
    assert lines[-1]["metrics"]["student"]["accuracy"] == metrics["student"]["accuracy"]["value"]

    quiet = kdkit_process(
        "run", mine, "--no-plugin", "--out", "unwatched", "--seed", 7, "--device", "cpu", PYTHONPATH=site["good"]
    )
    assert quiet.code == 0, quiet
    for weights in ("1-teacher", "2-student"):
        path = Path(weights) / "weights.safetensors"
        assert (tmp_path / "run" / path).read_bytes() == (tmp_path / "unwatched" / path).read_bytes()


def test_what_a_plugin_adds_is_listed_under_its_name_and_its_command_works(site, kdkit_process):
    said = kdkit_process("list", PYTHONPATH=site["good"])
    rows = [line.split()[:2] for line in said.out.splitlines()]
    assert ["distance", "good"] in rows
    assert ["pair", "good"] in rows
    greeted = kdkit_process("greet", "you", PYTHONPATH=site["good"])
    assert (greeted.code, greeted.out) == (0, "hello, you\n")
    assert "Greet somebody." in kdkit_process("--help", PYTHONPATH=site["good"]).out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", ["'broken' of kdkit-broken is left out", "a_package_that_nobody_has"]),
        (
            "misspelt",
            ["'misspelt' of kdkit-misspelt is left out", "'register_loses'", "did you mean 'register_losses'"],
        ),
    ],
)
def test_a_plugin_that_does_not_fit_is_one_warning_and_all_else_works(name, words, site, kdkit_process):
    helped = kdkit_process("--help", PYTHONPATH=site[name])
    assert helped.code == 0
    assert "run" in helped.out
    listed = kdkit_process("list", PYTHONPATH=site[name])
    assert listed.code == 0
    assert "soft_targets" in listed.out
    assert "of_the_misspelt" not in listed.out
    for said in (helped, listed):
        assert len(said.err.splitlines()) == 1, said.err
        for word in words:
            assert word in said.err


def test_a_plugin_that_takes_a_name_is_told_apart_by_its_own(site, kdkit_process):
    assert kdkit_process("--help", PYTHONPATH=site["taken"]).code == 0
    said = kdkit_process("list", PYTHONPATH=site["taken"])
    assert said.code == 2
    assert "Traceback" not in said.err
    for word in ("plugin 'taken' registers 'soft_targets'", "plugin 'kdkit' already has", "choose another name"):
        assert word in said.err
