"""Whether distillation helps, as small as it can be asked: tuned on one set of seeds, asked once on another."""

import csv
import importlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import kdkit


@pytest.fixture(scope="module")
def lrhnet():
    """The parts of the study, of tiny nets and few cells; examples find each other as a script's neighbours."""
    parts = {
        name: importlib.import_module(f"reproductions.lrhnet.{name}")
        for name in ("protocol", "tuning", "effect", "recipe")
    }
    parts["script"] = importlib.import_module("reproductions.lrhnet.run_effect")
    protocol, tuning = parts["protocol"], parts["tuning"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "SIZE", "tiny")
        patch.setattr(protocol, "TRAIN", 24)
        few = (
            protocol.Step("budget", "alone", [{"epochs": 1}, {"epochs": 2}]),
            protocol.Step("loss", "kd", [{"kd_loss": "softmax-2"}, {"kd_loss": "per-label-1"}]),
        )
        patch.setattr(tuning, "steps", lambda data: few)
        patch.setitem(protocol.CHOSEN, "simulated", protocol.Protocol(1, "light", "per-label-1", 0.5))
        patch.setitem(protocol.SEEDS, "simulated", (7, 8))
        yield parts


def call(lrhnet, *args: object):
    result = CliRunner().invoke(lrhnet["script"].main, [str(each) for each in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def tuned(lrhnet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    result = call(lrhnet, "tune", "--out", folder)
    assert result.exit_code == 0, result.output
    return folder, result.output


@pytest.fixture(scope="module")
def asked(lrhnet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    assert call(lrhnet, "ask", "--out", folder, "--seeds", 8).exit_code == 0
    assert not (folder / "effect.md").exists()  # half of the work is no answer
    result = call(lrhnet, "ask", "--out", folder)
    assert result.exit_code == 0, result.output
    return folder, result.output


def lines(file: Path) -> list[dict[str, str]]:
    with file.open() as open_file:
        return list(csv.DictReader(open_file))


def test_tuning_asks_no_net_about_a_test_record(tuned):
    folder, _ = tuned
    runs = [file.parent for file in folder.glob("*/run.json")]
    assert len(runs) >= 16  # two budgets and two losses, two leads and two seeds, and their teachers
    for run in runs:
        assert json.loads((run / "metrics.json").read_text())["reported_on"] == "validation"
        assert not list(run.rglob("predictions-*-test.safetensors"))


def test_each_step_of_the_tuning_takes_the_best_mean(tuned):
    folder, said = tuned
    table = lines(folder / "tuning.csv")
    best = {
        step: max((each for each in table if each["step"] == step), key=lambda each: float(each["mean"]))
        for step in ("budget", "loss")
    }
    assert {each["epochs"] for each in table if each["step"] == "loss"} == {best["budget"]["epochs"]}
    assert f"kd_loss='{best['loss']['kd_loss']}'" in said
    assert f"kd_loss {best['loss']['kd_loss']}" in (folder / "tuning.md").read_text()


def test_every_row_is_asked_from_every_seed_by_the_protocol_chosen(asked, lrhnet):
    folder, _ = asked
    rows = {(each["model"], each["leads"], each["seed"]) for each in lines(folder / "scores.csv")}
    titles = ("LRH-Net", "+ vanilla KD", "+ P-MLKD", "+ S-MLKD")
    assert rows >= {(title, leads, seed) for title in titles for leads in ("3", "2") for seed in ("7", "8")}
    for run in folder.glob("*/run.json"):
        options = json.loads(run.read_text())["options"]
        assert (options["epochs"], options["augment"], options["untested"]) == ("1", "light", "False")


def test_differences_are_those_of_the_scores_pair_by_pair(asked):
    folder, _ = asked
    metrics = {
        (each["model"], each["leads"], each["score"], each["seed"]): float(each["value"])
        for each in lines(folder / "scores.csv")
    }
    found = lines(folder / "differences.csv")
    assert len(found) == 3 * 2 * 5  # scores, leads, pairs of rows
    for each in found:
        pairs = [
            metrics[each["model"], each["leads"], each["score"], seed]
            - metrics[each["against"], each["leads"], each["score"], seed]
            for seed in ("7", "8")
        ]
        assert float(each["difference"]) == pytest.approx(sum(pairs) / 2, abs=2e-4)
        half = 12.7062 * abs(pairs[0] - pairs[1]) / 2  # Student's t for one degree of freedom, of the mean of two
        assert float(each["high"]) - float(each["difference"]) == pytest.approx(half, rel=1e-4, abs=2e-3)


def test_patients_are_drawn_anew_only_where_all_seeds_report_on_them(asked, lrhnet):
    folder, _ = asked
    effect, protocol = lrhnet["effect"], lrhnet["protocol"].CHOSEN["simulated"]
    study = kdkit.Study(folder, effect.asked_cells((7, 8), protocol, None))
    effects = effect.effects_of(effect.figures_of(study, (7, 8), protocol))[:3]
    for each in effect.with_patients(effects, study, (7,), protocol):
        low, high = each.patients.interval
        assert low <= each.patients.value <= high
        assert effect.interval(each.patients) in effect.markdown_effects([each])
    with pytest.raises(kdkit.DataError, match="predictions for different samples"):  # each seed has simulated records of its own
        effect.with_patients(effects, study, (7, 8), protocol)


def test_simulated_records_are_other_ones_for_each_seed(asked):
    folder, _ = asked
    data = {
        seed: {json.loads(run.read_text())["data"] for run in folder.glob(f"*-seed{seed}/run.json")} for seed in (7, 8)
    }
    assert len(data[7]) == len(data[8]) == 1
    assert data[7] != data[8]


def test_no_seed_of_the_tuning_is_asked(lrhnet):
    protocol = lrhnet["protocol"]
    assert not set(protocol.TUNING_SEEDS) & {seed for seeds in protocol.SEEDS.values() for seed in seeds}
