"""Tests of third-party plugins: packages that are installed and found by their entry points, valid and invalid ones."""

import json
from pathlib import Path
from textwrap import dedent

import pytest

from tests.helpers.plugins import install_plugin

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
        training = Training(epochs=2, batch_size=8)
        guidance = {"truth": Truth(nn.CrossEntropyLoss()), "kd_loss": kd_loss, "training": training}
        return Recipe(
            data=TorchData(samples(16, 0), samples(9, 1), samples(9, 2), classes=("a", "b", "c")),
            schedule=kdkit.registry("schedules")["pair"](*nets, **guidance),
        )
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(dedent(RECIPE))
    return path


def test_a_plugin_adds_a_loss_a_schedule_and_callbacks_to_a_run(recipe_file, tmp_path, kdkit_process):
    site, log = install_plugin("good", tmp_path / "site"), tmp_path / "log.jsonl"
    env = {"PYTHONPATH": site, "KDKIT_GOOD_LOG": str(log)}
    result = kdkit_process("run", recipe_file, "--out", "run", "--seed", 7, "--device", "cpu", **env)
    assert result.code == 0, result
    status = [f"reading {recipe_file}", "preparing the data and the networks", "checking the recipe"]
    assert result.err.splitlines() == [f"{line} ..." for line in status]  # and no warning
    assert json.loads((tmp_path / "run" / "run.json").read_text())["versions"]["kdkit-good"] == "1.0"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    epoch = ["step_ended", "step_ended", "epoch_ended"]
    stage = ["stage_started", *epoch, *epoch]
    assert [line["hook"] for line in lines] == ["run_started", *stage, *stage, "run_ended"]
    assert (lines[0]["stages"], lines[0]["seed"]) == (["teacher", "student"], 7)
    started = [line for line in lines if line["hook"] == "stage_started"]
    assert [(line["index"], line["name"], line["epochs"], line["batches"]) for line in started] == [
        (0, "teacher", 2, 2),
        (1, "student", 2, 2),
    ]
    steps = [line for line in lines if line["hook"] == "step_ended" and line["stage"] == "student"]
    assert [(line["epoch"], line["batch"]) for line in steps] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    ended = next(line for line in lines if line["hook"] == "epoch_ended" and line["stage"] == "student")
    for label in ("truth", "teacher/distance"):
        # The two batches have 8 samples each, so the mean over samples is that of the batches.
        assert ended["terms"][label] == pytest.approx((steps[0]["terms"][label] + steps[1]["terms"][label]) / 2)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    assert lines[-1]["error"] is None
    assert lines[-1]["metrics"]["student"]["accuracy"] == metrics["student"]["accuracy"]["value"]

    options = ("--no-plugin", "--out", "unlogged", "--seed", 7, "--device", "cpu")
    unlogged = kdkit_process("run", recipe_file, *options, PYTHONPATH=site)
    assert unlogged.code == 0, unlogged
    for stage_folder in ("1-teacher", "2-student"):
        path = Path(stage_folder) / "weights.safetensors"
        assert (tmp_path / "run" / path).read_bytes() == (tmp_path / "unlogged" / path).read_bytes()

    with Path(site, "kdkit_good.py").open("a") as file:
        file.write("# changed\n")
    changed = kdkit_process("run", "--resume", "run", **env)
    assert changed.code == 0, changed
    assert "the package kdkit-good of a plugin has changed since run began (its files differ)" in changed.err


def test_entries_of_a_plugin_are_listed_under_its_name_and_its_command_works(tmp_path, kdkit_process):
    site = install_plugin("good", tmp_path / "site")
    result = kdkit_process("list", PYTHONPATH=site)
    rows = [line.split()[:2] for line in result.out.splitlines()]
    assert ["distance", "good"] in rows
    assert ["pair", "good"] in rows
    greeting = kdkit_process("greet", "you", PYTHONPATH=site)
    assert (greeting.code, greeting.out) == (0, "hello, you\n")
    assert "Greet a person." in kdkit_process("--help", PYTHONPATH=site).out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", ["'broken' of kdkit-broken is skipped", "a_package_that_does_not_exist"]),
        (
            "misspelt",
            ["'misspelt' of kdkit-misspelt is skipped", "'register_loses'", "did you mean 'register_losses'"],
        ),
        (
            "argument",
            ["'argument' of kdkit-argument is skipped", "with an argument 'registry'", "did you mean 'register'?"],
        ),
    ],
)
def test_an_invalid_plugin_costs_one_warning_and_the_rest_works(name, words, tmp_path, kdkit_process):
    site = install_plugin(name, tmp_path / "site")
    help_result = kdkit_process("--help", PYTHONPATH=site)
    assert help_result.code == 0
    assert "run" in help_result.out
    list_result = kdkit_process("list", PYTHONPATH=site)
    assert list_result.code == 0
    assert "soft_targets" in list_result.out
    assert "of_the_misspelt" not in list_result.out
    for result in (help_result, list_result):
        assert len(result.err.splitlines()) == 1, result.err
        for word in words:
            assert word in result.err


def test_a_hook_that_fails_costs_one_warning_and_the_rest_is_listed(tmp_path, kdkit_process):
    result = kdkit_process("list", PYTHONPATH=install_plugin("half", tmp_path / "site"))
    assert result.code == 0
    rows = [line.split()[:2] for line in result.out.splitlines()]
    assert ["soft_targets", "kdkit"] in rows
    assert ["half", "half"] in rows
    (line,) = result.err.splitlines()
    assert line.startswith(
        "warning: plugin 'half' cannot register its losses: ModuleNotFoundError: No module named 'a_"
    )


def test_a_taken_name_and_a_taken_command_cost_a_warning_each_and_the_earlier_ones_stay(tmp_path, kdkit_process):
    site = install_plugin("taken", tmp_path / "site")
    result = kdkit_process("list", "--json", PYTHONPATH=site)
    assert result.code == 0
    plugins = {entry["name"]: entry["plugin"] for entry in json.loads(result.out)["losses"]}
    assert (plugins["soft_targets"], plugins["taken"]) == ("kdkit", "taken")
    _printed, command, loss = result.err.splitlines()
    assert command == "warning: plugin 'taken' adds the command run, which exists; the earlier one is kept"
    for word in ("plugin 'taken' registers 'soft_targets'", "plugin 'kdkit' already has", "this entry is skipped"):
        assert word in loss
    assert "Train the stages of the recipe in FILE" in kdkit_process("run", "--help", PYTHONPATH=site).out
