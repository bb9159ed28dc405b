"""Runs with loggers: on the command line, stopped and resumed, and in the stores of other programs."""

import importlib.util
import json
import os
import sys
from textwrap import dedent

import pytest

from kdkit.cli.options import LOGGERS
from kdkit.loggers.base import require_package
from kdkit.plugins.manager import registry
from tests.helpers.command_line import environment
from tests.helpers.processes import run_python

# Of a recipe whose student is interrupted, as by Ctrl-C, in its second epoch, unless the run is resumed.
RECIPE = """
    import os
    import torch
    from torch import nn
    from torch.utils.data import TensorDataset
    import kdkit

    @kdkit.hookimpl
    def epoch_ended(event):
        if (event.stage, event.epoch) == ("student", 1) and "STOP" in os.environ:
            raise KeyboardInterrupt

    def points(seed):
        inputs = torch.randn(32, 4, generator=torch.Generator().manual_seed(seed))
        return TensorDataset(inputs, (inputs.sum(1) > 0).long())

    def recipe(temperature: float = 2.0) -> kdkit.Recipe:
        teacher, student = (kdkit.Net(name, nn.Linear(4, 2)) for name in ("teacher", "student"))
        return kdkit.Recipe(
            data=kdkit.TorchData(points(0), points(1), points(2), classes=["below", "above"]),
            schedule=kdkit.Parallel(
                teacher,
                student,
                truth=kdkit.Truth(nn.CrossEntropyLoss()),
                kd_loss=kdkit.losses.SoftTargets(temperature=temperature),
                label_weight=0.5,
                training=kdkit.Training(epochs=3),
            ),
        )
"""
PLUGIN_LOGGER = """
    class MyLogger:
        @kdkit.hookimpl
        def epoch_ended(self, event):
            print("my", event.stage, event.epoch)

    class Needy:
        def __init__(self, server):
            self.server = server

    @kdkit.hookimpl
    def register_loggers(register):
        register("mine", MyLogger)
        register("needy", Needy)
"""

RESUME = """
    from kdkit.cli.main import call

    for _ in range(2):
        assert call(["run", "--resume", "run"]) == 0
    print("resumed twice", flush=True)
"""


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "tiny_recipe.py"
    file.write_text(dedent(RECIPE) + dedent(PLUGIN_LOGGER))
    return file


def stopped_and_resumed(folder, recipe, name, read, **variables):
    """Run a recipe that is stopped in its student's second epoch, resume it, and resume it once more at its end.

    Return what a program prints that then reads the log, in the process of the resumed runs.
    """
    variables = environment(PYTHONPATH=os.environ.get("PYTHONPATH", ""), **variables)
    arguments = ("run", recipe, "--log", name, "--out", "run", "--device", "cpu", "--quiet")
    stopped = run_python(["-m", "kdkit", *map(str, arguments)], folder, {**variables, "STOP": "1"})
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stdout == ""  # the packages print nothing there either
    (folder / "resume.py").write_text(dedent(RESUME) + dedent(read))
    resumed = run_python(["resume.py"], folder, variables)
    assert resumed.returncode == 0, resumed.stderr
    assert "failed in its" not in resumed.stderr
    assert resumed.stdout.startswith("resumed twice\n")
    return resumed.stdout.removeprefix("resumed twice\n")


def test_the_help_names_all_loggers_of_kdkit():
    assert set(LOGGERS) == {*registry("loggers")}


def test_list_shows_loggers_and_log_finds_those_of_a_recipe_file(kdkit_here, recipe):
    assert "TensorBoard" in kdkit_here("list").out
    done = kdkit_here("run", recipe, "--log", "mine", "--out", "run", "-q")
    assert done.code == 0
    assert "my teacher 0\nmy teacher 1\nmy teacher 2\nmy student 0\n" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--log", "tensorbord"], "'tensorbord' is not among the loggers; did you mean 'tensorboard'?"),
        (["--log", "needy"], "logger 'needy' cannot be created: TypeError:"),
        (["--log", "csv", "--jobs", "2"], "stages in child processes are not logged; leave out --jobs, or --log"),
    ],
)
def test_a_logger_that_cannot_be_used_ends_the_command_before_the_run(kdkit_here, recipe, arguments, message):
    done = kdkit_here("run", recipe, "--out", "run", *arguments)
    assert done.code == 2
    assert message in done.err
    assert not (recipe.parent / "run").exists()


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "mlflow", "wandb"])
def test_a_missing_package_ends_the_command_with_a_hint(kdkit_here, recipe, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # its import raises ImportError
    done = kdkit_here("run", recipe, "--out", "run", "--log", name)
    assert done.code == 2
    assert f"pip install 'kdkit[{name}]'" in done.err
    assert not (recipe.parent / "run").exists()


def test_neither_the_import_nor_the_help_of_kdkit_imports_loggers(recipe, tmp_path):
    code = "import sys; {0}; print([name for name in sys.modules if name.startswith('kdkit.loggers')])"
    for start in ("import kdkit; kdkit.run", f"from kdkit.cli.main import call; call(['run', {str(recipe)!r}, '-h'])"):
        (tmp_path / "start.py").write_text(code.format(start))
        done = run_python(["start.py"], tmp_path)  # whose server has imported what is needed for a run
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("[]\n")


@needs("tensorboard")
def test_tensorboard_shows_every_step_once(recipe, tmp_path):
    read = """
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        log = EventAccumulator("run/tensorboard").Reload()
        print({name: [event.step for event in log.Scalars(name)] for name in log.Tags()["scalars"]})
        from tensorboard.plugins.hparams import plugin_data_pb2
        data = log.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        settings = plugin_data_pb2.HParamsPluginData.FromString(data).session_start_info.hparams
        print(settings["option/temperature"].number_value, settings["student/epochs"].number_value)
    """
    steps, settings = stopped_and_resumed(tmp_path, recipe, "tensorboard", read).splitlines()
    steps = eval(steps)
    assert steps["train/teacher/truth"] == [1, 2, 3]
    assert steps["val/student/accuracy"] == steps["train/student/teacher/soft_targets"] == [4, 5, 6]
    assert steps["lr"] == [1, 2, 3, 4, 5, 6]
    assert steps["test/student/accuracy"] == [7]
    assert settings == "2.0 3.0"


@needs("trackio")
def test_trackio_has_every_step_once(recipe, tmp_path):
    read = """
        import json
        from trackio.sqlite_storage import SQLiteStorage
        (name,) = SQLiteStorage.get_runs("kdkit")
        rows = SQLiteStorage.get_logs("kdkit", name)
        print(json.dumps([[row["step"], "lr" in row, "test/student/accuracy" in row] for row in rows]))
        print(SQLiteStorage.get_run_config("kdkit", name)["option/temperature"])
    """
    store = str(tmp_path / "store")
    rows, temperature = stopped_and_resumed(tmp_path, recipe, "trackio", read, TRACKIO_DIR=store).splitlines()
    assert json.loads(rows) == [*([step, True, False] for step in range(1, 7)), [6, False, True]]
    assert float(temperature) == 2


@needs("mlflow")
def test_mlflow_has_every_step_once(recipe, tmp_path):
    read = """
        from mlflow import MlflowClient
        client = MlflowClient()
        (run,) = client.search_runs([client.get_experiment_by_name("kdkit").experiment_id])
        for name in ("lr", "train/student/teacher/soft_targets", "test/student/accuracy"):
            print([metric.step for metric in client.get_metric_history(run.info.run_id, name)])
        print(run.data.params["option/temperature"], run.info.status)
    """
    store = f"sqlite:///{tmp_path / 'store.db'}"
    out = stopped_and_resumed(tmp_path, recipe, "mlflow", read, MLFLOW_TRACKING_URI=store)
    assert out.splitlines()[-4:] == ["[1, 2, 3, 4, 5, 6]", "[4, 5, 6]", "[6]", "2.0 FINISHED"]


@needs("wandb")
def test_wandb_has_every_step_once_without_a_network(recipe, tmp_path):
    read = """
        import glob, json
        from wandb.proto import wandb_internal_pb2

        def records(content):
            # A log of LevelDB, after 7 bytes of its own: blocks of 32 KiB, of records with a header of 7 bytes.
            position, parts = 7, b""
            while position + 7 <= len(content):
                size, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
                parts += content[position + 7 : position + 7 + size]
                position += 7 + size
                position += 32768 - position % 32768 if 32768 - position % 32768 < 7 else 0
                if kind in (1, 4):  # a whole record, or the last part of one
                    yield parts
                    parts = b""

        steps, identifiers = [], set()
        for file in sorted(glob.glob("run/wandb/offline-run-*/*.wandb")):
            for data in records(open(file, "rb").read()):
                record = wandb_internal_pb2.Record.FromString(data)
                if record.WhichOneof("record_type") == "run":
                    identifiers.add(record.run.run_id)
                if record.WhichOneof("record_type") == "history":
                    names = {item.key or "/".join(item.nested_key) for item in record.history.item}
                    steps.append([record.history.step.num, "lr" in names, "test/student/accuracy" in names])
        print(json.dumps(steps), len(identifiers))
    """
    rows, identifiers = stopped_and_resumed(tmp_path, recipe, "wandb", read).rsplit(" ", 1)
    assert int(identifiers) == 1
    rows = json.loads(rows)
    assert [step for step, has_rate, _ in rows if has_rate] == [1, 2, 3, 4, 5, 6]
    assert sum(has_metrics for _, _, has_metrics in rows) == 1


def test_an_installed_package_is_returned():
    assert require_package("json", "none") is json
