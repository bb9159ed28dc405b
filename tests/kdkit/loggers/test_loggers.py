"""Tests of the loggers: the names, steps and values that they write, and what a resumed run does to a log."""

import csv
import json
import math
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

import kdkit
from kdkit import Match, Net, Peer, Recipe, RecipeError, Stage, Study, Training, Trial, Truth, registry
from kdkit.errors import PluginError, RunFolderError
from kdkit.loggers import CsvLogger, JsonlLogger, Logger
from kdkit.loggers.base import epoch_values, hyperparameters, make_loggers, require_package, result_values
from kdkit.losses import SoftTargets
from kdkit.metrics import Accuracy, BootstrapInterval
from kdkit.plugins.events import EpochEnded, RunEnded, RunStarted
from tests.helpers.stages import three
from tests.helpers.tiny import tiny_data, tiny_net

EPOCH = EpochEnded(
    stage="student",
    epoch=1,
    terms={"truth": 0.5},
    weights={"truth": 0.3},
    monitor="accuracy",
    monitor_value=0.75,
    best=True,
    seconds=2.0,
    learning_rate=0.1,
    term_nets={"truth": "student"},
    monitor_values={"student": 0.75},
)


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Recorder(Logger):
    """Keeps what a logger is called with."""

    def __init__(self):
        self.calls = []

    def start(self, run, step):
        self.calls.append(("start", step))

    def repeat(self, stage, epoch):
        self.calls.append(("repeat", stage, epoch))

    def log(self, step, values, *, stage, epoch):
        self.calls.append(("log", step, stage, epoch))
        self.values = values

    def close(self, *, failed):
        self.calls.append(("close", failed))


def peers():
    """Return a recipe whose stage trains two nets, which learn from each other."""
    first, second = tiny_net("first"), tiny_net("second", seed=1)
    truth = Truth(nn.CrossEntropyLoss())
    objectives = {net: truth + Match(Peer(other), SoftTargets()) for net, other in ((first, second), (second, first))}
    return Recipe(data=tiny_data(rows=12), schedule=[Stage(objectives, Training(epochs=2, batch_size=4), name="both")])


def test_the_values_of_an_epoch_are_named_by_net():
    assert epoch_values(EPOCH) == {
        "train/student/truth": 0.5,
        "weight/student/truth": 0.3,
        "val/student/accuracy": 0.75,
        "lr": 0.1,
        "seconds": 2.0,
    }


def test_gradients_and_memory_are_values_if_they_are_recorded():
    values = epoch_values(
        replace(EPOCH, gradients={"norms": {"truth": 1.5}, "cosines": {"a | b": -0.5}}, peak_memory_bytes=1000)
    )
    assert values["gradient_norms/truth"] == 1.5
    assert values["gradient_cosines/a | b"] == -0.5
    assert values["peak_memory_bytes"] == 1000


def test_a_stage_of_two_nets_has_the_terms_and_the_metric_of_each(tmp_path):
    result = kdkit.run(peers, out=tmp_path / "run", device="cpu", callbacks=[JsonlLogger()])
    (entry,) = result.history["both"][:1]
    row = read_jsonl(tmp_path / "run" / "log.jsonl")[1]
    assert row["train/first/truth"] == entry["terms"]["first: truth"]
    peer = next(label for label in entry["terms"] if label.startswith("second: ") and "soft" in label)
    assert row[f"train/second/{peer.removeprefix('second: ')}"] == entry["terms"][peer]
    values = [row["val/first/accuracy"], row["val/second/accuracy"]]
    assert sum(values) / 2 == entry["accuracy"]


def test_results_have_the_bounds_of_intervals_and_the_differences_from_baselines(tmp_path):
    def recipe():
        teacher, student = Net("teacher", nn.Linear(4, 3), trained=True), tiny_net("student")
        objective = Truth(nn.CrossEntropyLoss()) + Match(teacher, SoftTargets())
        return Recipe(
            data=tiny_data(rows=12),
            schedule=[Stage({student: objective}, Training(epochs=1, batch_size=4))],
            metrics=[BootstrapInterval(Accuracy(), resamples=50)],
        )

    result = kdkit.run(recipe, out=tmp_path / "run", device="cpu", baseline=True, callbacks=[JsonlLogger()])
    last = read_jsonl(tmp_path / "run" / "log.jsonl")[-1]
    accuracy = result.metrics["student"]["accuracy"]
    assert last["test/student/accuracy"] == accuracy.value
    assert (last["test/student/accuracy/low"], last["test/student/accuracy/high"]) == accuracy.interval
    (difference,) = result.differences
    assert last["difference/student/accuracy"] == difference.value
    assert last["difference/student/accuracy/low"] == difference.interval[0]


def test_metrics_without_a_test_split_are_not_called_test():
    event = RunEnded(
        metrics={"student": {"accuracy": kdkit.MetricResult(value=0.5)}},
        parameters={},
        reported_on="validation",
        folder=None,
        seconds=1.0,
    )
    assert result_values(event) == {"val_final/student/accuracy": 0.5}


def test_steps_count_the_epochs_of_all_stages():
    recorder = Recorder()
    kdkit.run(three, device="cpu", callbacks=[recorder])
    expected = [("start", 0)]
    for index, stage in enumerate(("teacher", "assistant", "student")):
        expected += [("repeat", stage, 0)]
        expected += [("log", 2 * index + epoch + 1, stage, epoch) for epoch in range(2)]
    assert recorder.calls == [*expected, ("log", 6, None, None), ("close", False)]


def test_a_logger_changes_no_result(tmp_path):
    plain = kdkit.run(three, device="cpu")
    logged = kdkit.run(three, out=tmp_path / "run", device="cpu", callbacks=[CsvLogger(), JsonlLogger()])
    for net, results in plain.metrics.items():
        assert {name: result.value for name, result in results.items()} == {
            name: result.value for name, result in logged.metrics[net].items()
        }


def test_a_log_that_cannot_start_costs_one_warning_and_the_run_continues():
    class Broken(Recorder):
        def start(self, run, step):
            raise OSError("no disk")

    broken = Broken()
    with pytest.warns(
        RuntimeWarning, match="callback 'Broken' failed in its stage_started: OSError: no disk"
    ) as caught:
        kdkit.run(three, device="cpu", callbacks=[broken])
    assert len(caught) == 1
    assert broken.calls == []


def test_a_log_is_closed_as_failed_after_an_error():
    class Ends:
        @kdkit.hookimpl
        def epoch_ended(self, event):
            raise kdkit.DataError("the quota is used up")

    recorder = Recorder()
    with pytest.raises(kdkit.DataError):
        kdkit.run(three, device="cpu", callbacks=[recorder, Ends()])
    assert recorder.calls[-1] == ("close", True)
    assert ("log", 6, None, None) not in recorder.calls


def test_csv_and_json_lines_have_the_history_and_the_metrics(tmp_path):
    folder = tmp_path / "run"
    result = kdkit.run(three, out=folder, device="cpu", callbacks=[CsvLogger(), JsonlLogger()])
    table, (head, *lines) = read_csv(folder / "log.csv"), read_jsonl(folder / "log.jsonl")
    assert len(table) == len(lines) == 7
    for row, line, (stage, epoch) in zip(
        table, lines, [(stage, epoch) for stage, epochs in result.history.items() for epoch in epochs], strict=False
    ):
        assert (row["stage"], int(row["epoch"])) == (line["stage"], line["epoch"]) == (stage, epoch["epoch"])
        for label, value in epoch["terms"].items():
            assert float(row[f"train/{stage}/{label}"]) == line[f"train/{stage}/{label}"] == value
        assert float(row[f"val/{stage}/accuracy"]) == line[f"val/{stage}/accuracy"] == epoch["accuracy"]
        assert float(row["lr"]) == 0.1
    assert table[0]["train/student/truth"] == ""  # of a later stage
    assert (table[-1]["stage"], table[-1]["epoch"]) == ("", "")
    assert float(table[-1]["test/student/accuracy"]) == result.metrics["student"]["accuracy"].value
    assert head["run"]["student/epochs"] == 2
    assert head["run"]["parameters/student"] == result.nets["student"].parameters
    assert head["run"]["version/torch"] == torch.__version__


def test_a_number_that_is_not_finite_is_empty_or_null(tmp_path):
    run = RunStarted(recipe="r", stages=("student",), device="cpu", seed=0, folder=tmp_path)
    for logger in (CsvLogger(), JsonlLogger()):
        logger.prepare(run)
        logger.start(run, 0)
        logger.log(1, {"lr": math.nan, "train/student/truth": math.inf}, stage="student", epoch=0)
    assert read_csv(tmp_path / "log.csv") == [
        {"step": "1", "stage": "student", "epoch": "0", "lr": "", "train/student/truth": ""}
    ]
    assert read_jsonl(tmp_path / "log.jsonl")[1]["lr"] is None


@pytest.mark.parametrize("logger", [CsvLogger, JsonlLogger])
def test_a_run_that_is_finished_and_resumed_has_its_metrics_once(logger, tmp_path):
    kdkit.run(three, out=tmp_path / "run", device="cpu", callbacks=[logger()])
    file = next((tmp_path / "run").glob("log.*"))
    before = file.read_text()
    kdkit.run(three, out=tmp_path / "run", device="cpu", resume=True, callbacks=[logger()])
    assert file.read_text() == before


@pytest.mark.parametrize("logger", [CsvLogger, JsonlLogger])
def test_a_line_that_was_not_written_whole_is_replaced(logger, tmp_path):
    class Ends:
        @kdkit.hookimpl
        def epoch_ended(self, event):
            if (event.stage, event.epoch) == ("assistant", 0):
                raise kdkit.DataError("stop")

    whole, folder = tmp_path / "whole", tmp_path / "run"
    kdkit.run(three, out=whole, device="cpu", callbacks=[logger()])
    with pytest.raises(kdkit.DataError):
        kdkit.run(three, out=folder, device="cpu", callbacks=[logger(), Ends()])
    file = next(folder.glob("log.*"))
    torn = file.read_text() + file.read_text().splitlines()[-1][:20]
    file.write_text(torn)
    kdkit.run(three, out=folder, device="cpu", resume=True, callbacks=[logger()])
    assert steps_of(file) == steps_of(whole / file.name) == [1, 2, 3, 4, 5, 6, 6]


def steps_of(file):
    rows = read_csv(file) if file.suffix == ".csv" else read_jsonl(file)[1:]
    return [int(row["step"]) for row in rows]


@pytest.mark.parametrize("logger", [CsvLogger, JsonlLogger])
def test_a_file_of_another_run_is_not_overwritten(logger, tmp_path):
    file = tmp_path / "mine"
    file.write_text("mine")
    with pytest.raises(RunFolderError, match="mine already exists, and the run would overwrite it"):
        kdkit.run(three, device="cpu", callbacks=[logger(file)])
    assert file.read_text() == "mine"


@pytest.mark.parametrize("logger", [CsvLogger, JsonlLogger])
@pytest.mark.parametrize(
    "content",
    [
        "a,b\n1,2\n",
        "[1]\n[2]\n",
        "\ufffd",
        "step,stage,epoch\n1,a,b\n",
        f'step,stage,epoch\n"{"a" * 200_000}\n',
        "[" * 100_000 + "\n",
    ],
    ids=["other columns", "numbers", "no line", "no epoch", "a quote without its end", "nested too deep"],
)
def test_a_resumed_run_refuses_a_file_that_is_no_log(logger, content, tmp_path):
    folder = tmp_path / "run"
    kdkit.run(three, out=folder, device="cpu", callbacks=[logger()])
    file = next(folder.glob("log.*"))
    file.write_text(content, encoding="utf-8")
    if content == "\ufffd" and logger is JsonlLogger:
        pytest.skip("a line without an end is one that was not written whole")
    with pytest.raises(RunFolderError, match=r"cannot be read .*delete or rename it"):
        kdkit.run(three, out=folder, device="cpu", resume=True, callbacks=[logger()])
    assert file.read_text(encoding="utf-8") == content


@pytest.mark.parametrize("logger", [CsvLogger, JsonlLogger])
def test_a_log_needs_a_run_folder_or_a_path(logger, tmp_path):
    with pytest.raises(RunFolderError, match="pass out=FOLDER, or a path to the logger"):
        kdkit.run(three, device="cpu", callbacks=[logger()])
    kdkit.run(three, device="cpu", callbacks=[logger(tmp_path / "new" / "file")])
    assert (tmp_path / "new" / "file").is_file()


def test_hyperparameters_are_plain_values(tmp_path):
    run = RunStarted(
        recipe="r",
        stages=(),
        device="cpu",
        seed=0,
        folder=None,
        options={"width": 3, "leads": (1, 2), "path": tmp_path, "none": None},
        settings={"seed": 0},
        parameters={"student": 10},
        versions={"torch": "2"},
    )
    assert hyperparameters(run) == {
        "recipe": "r",
        "device": "cpu",
        "seed": 0,
        "option/width": 3,
        "option/leads": "(1, 2)",
        "option/path": str(tmp_path),
        "option/none": "None",
        "parameters/student": 10,
        "version/torch": "2",
    }


def test_loggers_are_made_once_by_name():
    loggers = make_loggers(["csv", "jsonl", "csv"])
    assert [type(logger) for logger in loggers] == [CsvLogger, JsonlLogger]
    with pytest.raises(RecipeError, match="'tensorbord' is not among the loggers; did you mean 'tensorboard'"):
        make_loggers(["tensorbord"])


@pytest.mark.parametrize("name", registry("loggers"))
def test_loggers_pickle_for_the_workers_of_a_study(name):
    try:
        (logger,) = make_loggers([name])
    except PluginError:
        pytest.skip(f"{name} is not installed")
    assert type(pickle.loads(pickle.dumps(logger))) is type(logger)


def test_each_trial_of_a_study_has_its_log(tmp_path):
    study = Study(tmp_path, [Trial(name=name, recipe=three) for name in ("first", "second")])
    results = list(study.run(kdkit.RunOptions(device="cpu"), callbacks=[CsvLogger()]))
    assert [result.state for result in results] == ["finished"] * 2
    logs = [*tmp_path.rglob("log.csv")]
    assert len(logs) == 2
    assert [steps_of(file) for file in logs] == [[1, 2, 3, 4, 5, 6, 6]] * 2


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    with pytest.raises(PluginError, match=r"No module named 'no_such_package'.*pip install 'kdkit\[trackio\]'"):
        require_package("no_such_package", "trackio")
