"""A dataset or a loader worker that fails, dies or hangs ends a run with one message that names the data."""

import multiprocessing
import os
import re
import signal
import time
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

import kdkit
from kdkit import Batch, DataError, Net, Recipe, Split, Stage, TorchData
from kdkit.data import read_errors, reading
from kdkit.data.dataset import Data
from kdkit.data.loading import batches
from kdkit.engine.failures.user_errors import located
from tests.helpers.stages import Small, samples, training, truth

ROW = 21

# Many of these runs lose or leave their workers.
pytestmark = pytest.mark.usefixtures("workers_end_quickly")


def fail():
    raise KeyError("no such key")


def fail_like_kdkit():
    raise DataError("expected a signal; got none; mend the file")


def vanish():
    open("/nowhere/record.dat")  # noqa: SIM115, PTH123  # as user code does


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    os._exit(3)


def hang():
    time.sleep(600)


class Faulty(Dataset):
    """Samples of which one fails, if it is read after a file exists."""

    def __init__(self, fault, flag=None):
        self.fault, self.flag, self.samples = fault, flag, samples(32)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, row):
        if row == ROW and (self.flag is None or self.flag.exists()):
            self.fault()
        return self.samples[row]


class FaultySplit(Split):
    """The same as a split of user code."""

    def __init__(self, fault, first=0):
        self.source, self.ids = Faulty(fault), torch.arange(first, first + 32)

    def batch(self, rows, draw):
        inputs, labels = zip(*(self.source[row] for row in rows.tolist()), strict=True)
        return Batch(torch.stack(inputs), torch.stack(labels), self.ids[rows], draw)


class FaultyData(Data):
    """A data set of user code whose training split fails."""

    classes, task, draws, fingerprint, test = ("a", "b", "c"), "multiclass", 1, "x", None

    def __init__(self, fault):
        self.train, self.validation = FaultySplit(fault), FaultySplit(lambda: None, 32)


def torch_data(train):
    return TorchData(train, samples(24, 1), classes=("a", "b", "c"))


def run(data, callbacks=(), **options):
    stage = Stage({Net("student", Small()): truth()}, training(**options))
    return kdkit.run(Recipe(data=data, schedule=[stage]), device="cpu", callbacks=callbacks)


def error_of(data, **options):
    with pytest.raises(DataError) as raised:
        run(data, **options)
    return raised.value


@pytest.mark.parametrize(
    ("fault", "message"), [(fail, "KeyError: 'no such key'"), (vanish, "FileNotFoundError: [Errno 2] No such file")]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_cannot_be_read_is_named_by_its_row(fault, message, workers):
    error = error_of(torch_data(Faulty(fault)), workers=workers)
    assert str(error).startswith(f"the sample in row {ROW} of the train data cannot be read: {message}")
    assert "test_loader_workers.py, line " in str(error)
    assert "\n" not in str(error)
    assert isinstance(error.__cause__, DataError if workers else KeyError if fault is fail else FileNotFoundError)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_kdkit_in_a_dataset_keeps_its_message(workers):
    error = error_of(torch_data(Faulty(fail_like_kdkit)), workers=workers)
    assert str(error) == "expected a signal; got none; mend the file"


@pytest.mark.parametrize("workers", [0, 1])
def test_the_rows_of_a_batch_of_user_code_are_named(workers):
    message = str(error_of(FaultyData(fail), workers=workers))
    assert message.startswith("batch ")
    assert " of the train data (rows " in message
    assert ", ...) cannot be read: KeyError: 'no such key' (" in message
    assert "test_loader_workers.py, line " in message


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_error_in_a_user_defined_loader_names_the_batch(workers):
    error = error_of(torch_data(DataLoader(Faulty(fail), 8, num_workers=workers)))
    assert str(error).startswith("batch 3 of the train data cannot be read: KeyError: 'no such key' (")
    assert ("in worker process" in str(error)) == (workers > 0)
    assert "\n" not in str(error)


def test_the_first_batch_of_a_loader_is_named_before_the_run():
    faulty = Faulty(fail)
    with pytest.raises(
        DataError, match=r"the first batch of the train data cannot be read: KeyError: 'no such key' \("
    ):
        torch_data(DataLoader(faulty, 32, num_workers=1))


def test_samples_of_validation_data_are_named_too():
    data = TorchData(samples(24, 1), Faulty(fail), classes=("a", "b", "c"))
    assert str(error_of(data)).startswith(f"the sample in row {ROW} of the validation data cannot be read: KeyError")


# The ends of messages of torch's signal handler.
ENDED = ["is killed by signal: Killed. ", "exited unexpectedly with exit code 3. Details are lost."]


@pytest.mark.parametrize("end", ENDED)
def test_a_worker_that_ends_while_a_batch_is_trained_is_reported_too(end):
    with pytest.raises(DataError) as raised, located("stage 'student', epoch 1, batch 1", None):
        raise RuntimeError(f"DataLoader worker (pid 7) {end}")
    expected = "a batch that workers read ahead in stage 'student', epoch 1, batch 1 cannot be read: worker process 7"
    assert str(raised.value).startswith(expected)


class SlowToDescribeError(Exception):
    """An error of which the text takes long in the main process, so that another worker ends meanwhile."""

    def __str__(self):
        if get_worker_info() is None:
            Path(self.args[0].split()[-1]).touch()
            time.sleep(0.1)
        return super().__str__()


class TwoFaults(Faulty):
    """Of two workers, the first raises an error, and the second ends when that is described."""

    def __getitem__(self, row):
        if get_worker_info().id == 0:
            raise SlowToDescribeError(str(self.flag))
        while not self.flag.exists():
            time.sleep(0.01)
        os._exit(3)


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_end_before_the_error_of_one_is_explained(tmp_path, persistent):
    before = multiprocessing.active_children()
    loader = DataLoader(TwoFaults(fail, tmp_path / "flag"), 8, num_workers=2, persistent_workers=persistent)
    with pytest.raises(
        DataError, match=r"the first batch of the train data cannot be read: SlowToDescribeError: .*flag"
    ):
        torch_data(loader)
    assert multiprocessing.active_children() == before


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_that_ends_while_it_passes_a_batch_is_reported(error):
    explained = read_errors.explain_unreadable(error, "batch 1", has_workers=True)
    assert str(explained).startswith("batch 1 cannot be read: a worker process ended without an error message; the")
    # in this process it is an error of the dataset, such as one that reads from a server
    assert type(error).__name__ in str(read_errors.explain_unreadable(error, "batch 1"))


def test_the_exit_code_of_a_worker_is_reported():
    error = RuntimeError("DataLoader worker (pid 7) exited unexpectedly with exit code 3. Details are lost")
    explained = read_errors.explain_ended_worker(error, "batch 1")
    assert "worker process 7 ended without an error message and with exit code 3" in str(explained)


def test_a_process_of_a_pool_that_may_start_no_workers_is_named():
    error = AssertionError("daemonic processes are not allowed to have children")
    explained = str(read_errors.explain_unreadable(error, "batch 1 of the train data"))
    assert "batch 1 of the train data cannot be read: AssertionError: daemonic processes" in explained
    assert explained.endswith(
        "read without workers, or start runs with concurrent.futures.ProcessPoolExecutor or a kdkit.Study"
    )


def test_a_script_whose_workers_start_the_run_again_is_told_how_to_prevent_it(monkeypatch):
    in_worker = RuntimeError("An attempt has been made to start a new process before its bootstrapping phase has ended")
    in_script = RuntimeError("DataLoader worker (pid 7) exited unexpectedly with exit code 1. Details are lost")
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "forkserver")  # as from Python 3.14 on
    for error in (in_worker, in_script):
        assert "start the run below `if __name__ == '__main__':`" in str(read_errors.explain_unreadable(error, "batch"))
    # A module of this name is not found by the worker either.
    assert "such as my_recipe.py, not my-recipe.py" in str(read_errors.explain_unreadable(in_script, "batch"))


LOADERS = {
    "of kdkit": lambda dataset: (dataset, {"workers": 2}),
    "user-defined": lambda dataset: (DataLoader(dataset, 8, num_workers=2), {}),
    "persistent": lambda dataset: (DataLoader(dataset, 8, num_workers=2, persistent_workers=True), {}),
}


# The signal handler of torch may raise its error in any finalizer, in which Python ignores it.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("fault", "reason"), [(die, "was ended by the signal 'Killed'"), (leave, "ended without an error message")]
)
def test_a_worker_that_dies_is_reported_with_advice(loader, fault, reason):
    train, options = LOADERS[loader](Faulty(fault))
    with pytest.raises(DataError) as raised:
        run(torch_data(train), **options)  # workers read ahead, so the first batch of a loader may fail
    message = str(raised.value)
    assert "batch" in message.split(" of the train data")[0]
    assert reason in message or "ended without an error message" in message  # torch may see the end first
    assert "use fewer workers" in message
    assert "\n" not in message


class StartFault:
    """Lets the fault occur from the second epoch on, and shortens the patience; workers may start slowly before."""

    def __init__(self, flag, monkeypatch):
        self.flag, self.monkeypatch = flag, monkeypatch

    @kdkit.hookimpl
    def epoch_ended(self, event):
        self.flag.touch()
        self.monkeypatch.setattr(reading, "NOTICE_AFTER", 0.5)
        self.monkeypatch.setattr(reading, "LIMIT", 2.0)


# Workers that hang take seconds to end: the suite has time for one loader.
@pytest.mark.parametrize(
    "loader", [pytest.param(loader, marks=[pytest.mark.slow] * (loader != "of kdkit")) for loader in LOADERS]
)
def test_workers_that_hang_are_reported_and_ended(loader, monkeypatch, tmp_path):
    flag = tmp_path / "flag"
    train, options = LOADERS[loader](Faulty(hang, flag))
    began = time.monotonic()
    with (
        pytest.warns(
            RuntimeWarning, match=r"waiting for \d+ s for batch \d of the train data.* from 2 worker processes"
        ),
        pytest.raises(
            DataError, match=r"batch \d of the train data.* was not read within .* its worker processes were"
        ),
    ):
        run(torch_data(train), [StartFault(flag, monkeypatch)], **options)
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_a_timeout_of_the_loader_of_the_user_is_explained():
    message = str(error_of(torch_data(DataLoader(Faulty(hang), 8, num_workers=1, timeout=1))))
    assert message.startswith("batch 3 of the train data was not read within 1 seconds, the timeout of the DataLoader;")


def test_slow_data_without_workers_is_reported_and_read(monkeypatch):
    monkeypatch.setattr(reading, "NOTICE_AFTER", 0.2)
    with pytest.warns(RuntimeWarning) as caught:
        run(torch_data(Faulty(partial(time.sleep, 1.5))), epochs=1)
    pattern = r"waiting for \d s for batch \d of the train data \(rows "
    assert any(re.match(pattern, str(warning.message)) for warning in caught)


@pytest.mark.parametrize(
    ("wrap", "option"), [(lambda data: data, "Training"), (lambda data: DataLoader(data, 8), "DataLoader")]
)
def test_reading_that_takes_most_of_the_time_is_reported_once(wrap, option, monkeypatch):
    monkeypatch.setattr(reading, "SLOW_AFTER", 0.3)
    monkeypatch.setattr(reading, "usable_cores", lambda: 2)
    with pytest.warns(RuntimeWarning) as caught:
        run(torch_data(wrap(Faulty(partial(time.sleep, 0.4)))), epochs=1)
    (message,) = {str(warning.message) for warning in caught}
    pattern = rf"reading the train data takes most of the time, \d of \d s; {option}\(.*workers=4\) reads ahead in four"
    assert re.match(pattern, message)


def test_fast_data_and_that_of_workers_is_not_reported(monkeypatch):
    monkeypatch.setattr(reading, "SLOW_AFTER", 0.3)
    monkeypatch.setattr(reading, "usable_cores", lambda: 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(torch_data(Faulty(partial(time.sleep, 0.4))), workers=1, epochs=1)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's wor"
                      "kers are out of shared memory."), "full.*--shm-size"),
        (RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)"), "shared memory.* is full"),
        (RuntimeError("received 0 items of ancdata"), "too many files are open; raise the limit"),
        (OSError(24, "Too many open files"), "too many files are open; raise the limit"),
    ],
)  # fmt: skip
def test_resources_of_workers_that_run_out_are_explained(error, message):
    with pytest.raises(DataError, match=rf"batch 1 of the train data cannot be read: .*{message}"):
        raise read_errors.explain_unreadable(error, "batch 1 of the train data")


def test_data_that_cannot_be_sent_to_workers_is_explained():
    class Local(Faulty):
        pass

    loader = DataLoader(Local(lambda: None), 8, num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(DataError, match=r"cannot be read: .*pickle.*define it at the top level of a file"):
        torch_data(loader)


def test_an_error_about_a_pickle_that_is_not_of_workers_gets_no_advice_about_them():
    missing = FileNotFoundError(2, "No such file or directory", "labels.pickle")
    assert "workers" not in str(read_errors.explain_unreadable(missing, "batch 1"))
    in_worker = RuntimeError(f"Caught FileNotFoundError in DataLoader worker process 0.\nFileNotFoundError: {missing}")
    explained = str(read_errors.explain_unreadable(in_worker, "batch 1", has_workers=True))
    assert "workers need data that can be pickled" not in explained


def test_errors_of_the_code_that_uses_a_batch_pass_unchanged():
    read = reading.ReadBatches(batches(FaultySplit(lambda: None), 8))

    def use():
        for _ in read:
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        use()


def test_a_loop_that_is_left_early_is_not_watched_any_more():
    read = iter(reading.ReadBatches(batches(FaultySplit(lambda: None), 8)))
    before = len(reading._watches)
    next(read)
    assert len(reading._watches) == before + 1
    del read
    assert len(reading._watches) == before


def test_an_interrupt_that_arrives_while_a_read_of_the_first_batches_ends_is_raised(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(reading._Watch, "__exit__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reading.ReadBatches(batches(FaultySplit(lambda: None), 8)).take(1)


RECIPE = """
import os
import signal

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from kdkit import Net, Recipe, Stage, TorchData, Training, Truth


class Faulty(Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, row):
        if row == 21:
            FAULT
        return torch.ones(4), row % 3


def recipe() -> Recipe:
    data = TorchData(Faulty(), TensorDataset(torch.ones(16, 4), torch.arange(16) % 3), classes=["a", "b", "c"])
    stage = Stage({Net("student", nn.Linear(4, 3)): Truth(nn.CrossEntropyLoss())}, Training(epochs=1, workers=2))
    return Recipe(data=data, schedule=[stage])
"""


@pytest.mark.parametrize(
    ("fault", "message"),
    [("os.kill(os.getpid(), signal.SIGKILL)", "worker process"), ("raise ValueError('bad file')", "row 21")],
)
def test_the_command_line_prints_one_message_and_exits_with_2(kdkit_process, tmp_path, fault, message):
    (tmp_path / "mine.py").write_text(RECIPE.replace("FAULT", fault))
    result = kdkit_process("run", "mine.py", "--device", "cpu", "--out", "run", "--quiet")
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert message in result.err
    assert "Traceback" not in result.err
    assert len(result.err.splitlines()) == 1
