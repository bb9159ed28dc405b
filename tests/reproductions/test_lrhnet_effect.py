"""The study of distillation's effect, at its smallest: tuned with some seeds, evaluated with others."""

import csv
import importlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import kdkit

pytestmark = pytest.mark.slow  # it trains 20 networks


@pytest.fixture(scope="module")
def lrhnet():
    """The modules of the study, with tiny networks and few trials."""
    modules = {
        name: importlib.import_module(f"reproductions.lrhnet.{name}")
        for name in ("protocol", "tuning", "effect", "recipe")
    }
    modules["command"] = importlib.import_module("reproductions.lrhnet.run_effect")
    protocol, tuning = modules["protocol"], modules["tuning"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "SIZE", "tiny")
        patch.setattr(protocol, "TRAIN", 24)
        for module in (protocol, tuning, modules["effect"]):  # all that is done for each number of leads is the same
            patch.setattr(module, "LEADS", (2,))
        few_steps = (
            protocol.Step("budget", "alone", [{"epochs": 1}, {"epochs": 2}]),
            protocol.Step("loss", "kd", [{"kd_loss": "softmax-2"}, {"kd_loss": "per-label-1"}]),
        )
        patch.setattr(tuning, "steps", lambda data: few_steps)
        patch.setitem(protocol.CHOSEN, "simulated", protocol.Protocol(1, "light", "per-label-1", 0.5))
        patch.setitem(protocol.SEEDS, "simulated", (7, 8))
        yield modules


def call(lrhnet, *args: object):
    result = CliRunner().invoke(lrhnet["command"].main, [str(arg) for arg in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def tuned(lrhnet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    result = call(lrhnet, "tune", "--out", folder)
    assert result.exit_code == 0, result.output
    return folder, result.output


@pytest.fixture(scope="module")
def evaluated(lrhnet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    assert call(lrhnet, "evaluate", "--out", folder, "--seeds", 8).exit_code == 0
    assert not (folder / "effect.md").exists()  # not with some of the seeds
    result = call(lrhnet, "evaluate", "--out", folder)
    assert result.exit_code == 0, result.output
    return folder, result.output


def lines(file: Path) -> list[dict[str, str]]:
    with file.open() as open_file:
        return list(csv.DictReader(open_file))


def test_tuning_uses_no_test_record(tuned):
    folder, _ = tuned
    runs = [file.parent for file in folder.glob("*/run.json")]
    assert len(runs) >= 8  # two budgets and two losses, two seeds, and their teachers
    for run in runs:
        assert json.loads((run / "metrics.json").read_text())["reported_on"] == "validation"
        assert not list(run.rglob("predictions-*-test.safetensors"))


def test_each_step_of_the_tuning_takes_the_best_mean(tuned):
    folder, output = tuned
    table = lines(folder / "tuning.csv")
    best = {
        step: max((line for line in table if line["step"] == step), key=lambda line: float(line["mean"]))
        for step in ("budget", "loss")
    }
    assert {line["epochs"] for line in table if line["step"] == "loss"} == {best["budget"]["epochs"]}
    assert f"kd_loss='{best['loss']['kd_loss']}'" in output
    assert f"kd_loss {best['loss']['kd_loss']}" in (folder / "tuning.md").read_text()


def test_every_row_is_trained_with_every_seed_by_the_chosen_protocol(evaluated):
    folder, _ = evaluated
    rows = {(line["model"], line["leads"], line["seed"]) for line in lines(folder / "scores.csv")}
    titles = ("LRH-Net", "+ vanilla KD", "+ P-MLKD", "+ S-MLKD")
    assert rows >= {(title, "2", seed) for title in titles for seed in ("7", "8")}
    for run in folder.glob("*/run.json"):
        options = json.loads(run.read_text())["options"]
        assert (options["epochs"], options["augment"], options["without_test"]) == ("1", "light", "False")


def test_differences_are_those_of_pairs_of_scores(evaluated):
    folder, _ = evaluated
    metrics = {
        (line["model"], line["leads"], line["score"], line["seed"]): float(line["value"])
        for line in lines(folder / "scores.csv")
    }
    differences = lines(folder / "differences.csv")
    assert len(differences) == 3 * 5  # scores, pairs of rows
    for line in differences:
        pairs = [
            metrics[line["model"], line["leads"], line["score"], seed]
            - metrics[line["against"], line["leads"], line["score"], seed]
            for seed in ("7", "8")
        ]
        assert float(line["difference"]) == pytest.approx(sum(pairs) / 2, abs=2e-4)
        half = 12.7062 * abs(pairs[0] - pairs[1]) / 2  # Student's t for one degree of freedom, of the mean of two
        assert float(line["high"]) - float(line["difference"]) == pytest.approx(half, rel=1e-4, abs=2e-3)


def test_patients_are_resampled_only_if_all_seeds_test_on_the_same_ones(evaluated, lrhnet):
    folder, _ = evaluated
    effect, protocol = lrhnet["effect"], lrhnet["protocol"].CHOSEN["simulated"]
    study = kdkit.Study(folder, effect.evaluation_trials((7, 8), protocol, None))
    effects = effect.effects_of(effect.scores_of(study, (7, 8), protocol))[:3]
    for result in effect.with_patient_intervals(effects, study, (7,), protocol):
        low, high = result.patients.interval
        assert low <= result.patients.value <= high
        assert effect.interval_text(result.patients) in effect.markdown_effects([result])
    with pytest.raises(kdkit.DataError, match="predictions for different samples"):  # simulated records differ by seed
        effect.with_patient_intervals(effects, study, (7, 8), protocol)


def test_simulated_records_differ_by_seed(evaluated):
    folder, _ = evaluated
    data = {
        seed: {json.loads(run.read_text())["data"] for run in folder.glob(f"*-seed{seed}/run.json")} for seed in (7, 8)
    }
    assert len(data[7]) == len(data[8]) == 1
    assert data[7] != data[8]


def test_no_seed_of_the_tuning_is_evaluated(lrhnet):
    protocol = lrhnet["protocol"]
    assert not set(protocol.TUNING_SEEDS) & {seed for seeds in protocol.SEEDS.values() for seed in seeds}
