"""Tests of when a checkpoint is written, and of the signals that end a run."""

import os
import signal
import threading
import time
from itertools import pairwise

import pytest
import torch

from kdkit.engine.interrupts import Interrupts, announce_on_stderr
from kdkit.engine.training import stage_checkpoints
from kdkit.engine.training.meters import RunningMeans
from kdkit.engine.training.stage_checkpoints import CheckpointInterval
from kdkit.engine.training.stage_progress import EpochPosition
from kdkit.errors import RecipeError, Terminated
from kdkit.utils.validation import parse_interval

# The position in an epoch


def test_the_means_of_an_epoch_cover_the_samples_of_all_ranks_after_a_resume_with_fewer():
    ranks = []
    for values, samples in (((1.0, 2.0), 3), ((4.0, 5.0), 1)):
        means = RunningMeans()
        for value in values:
            means.add({"truth": torch.tensor(value)}, samples)
        ranks.append({"rng": None, "means": means.state_dict()})
    state = {"batches": 2, "seconds": 0.0, "terms": None, "stopped_by": None, "ranks": ranks}
    position = EpochPosition.from_state(state)
    assert position.means.steps == 2
    position.means.add({"truth": torch.tensor(8.0)}, 2)
    expected = (3 * (1 + 2) + 4 + 5 + 2 * 8) / (3 + 3 + 1 + 1 + 2)
    assert position.means.values(torch.device("cpu")) == {"truth": pytest.approx(expected)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_position_is_saved_again_soon_after_a_resume_on_a_gpu():
    values = [torch.tensor(value, device="cuda") for value in (1.0, 2.0)]
    means = RunningMeans()
    means.add({"truth": values[0]}, 1)
    for value in values:
        state = means.state_dict()
        means = RunningMeans()
        means.load_state_dict(state)
        means.add({"truth": value}, 1)
    assert means.state_dict()["pending"].tolist() == [[1.0], [1.0], [2.0]]


# Intervals


@pytest.mark.parametrize(
    ("every", "expected"),
    [(0, (0, 0)), (7, (7, 0)), ("7", (7, 0)), ("30s", (0, 30)), ("10min", (0, 600)), ("2h", (0, 7200))],
)
def test_an_interval_is_a_number_of_updates_or_a_time(every, expected):
    assert parse_interval(every) == expected


@pytest.mark.parametrize("every", [-1, 1.5, True, None, "", "-1s", "1.5h", "10 min", "5m", "٣s", "1d", [1]])
def test_any_other_interval_is_refused(every):
    with pytest.raises(RecipeError, match=r"checkpoint_every must be a number of updates, or a time such as '30s'"):
        parse_interval(every)


def test_a_number_of_updates_is_counted_from_the_last_checkpoint():
    interval = CheckpointInterval(3)
    assert [interval.is_due() for _ in range(3)] == [False, False, True]
    assert interval.is_due()  # until it is restarted
    interval.restart()
    assert [interval.is_due() for _ in range(3)] == [False, False, True]


def test_a_time_is_measured_from_the_last_checkpoint_and_clock_jumps_do_not_matter(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(time, "time", lambda: pytest.fail("the clock of the system may jump"))
    interval = CheckpointInterval("30s")
    assert not interval.is_due()
    now += 29.9
    assert not interval.is_due()
    now += 0.2
    assert interval.is_due()
    interval.restart()
    assert not interval.is_due()


def test_no_update_is_due_if_checkpoints_are_written_at_the_ends_of_epochs_only(monkeypatch):
    interval = CheckpointInterval(0)
    assert not any(interval.is_due() for _ in range(1000))


def test_ranks_agree_on_the_update_although_their_clocks_differ(monkeypatch):
    """Two ranks, one after the other: the second gets what the first one sent."""
    clock, sent = 0.0, []
    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    monkeypatch.setattr(stage_checkpoints.collectives, "is_distributed", lambda: True)

    def run(step_seconds, broadcast):
        nonlocal clock
        clock = 0.0
        monkeypatch.setattr(stage_checkpoints.collectives, "broadcast", broadcast)
        interval, due = CheckpointInterval("10s"), []
        for update in range(1000):
            clock += step_seconds
            if interval.is_due():
                due.append(update)
                interval.restart()
        return due

    def send(value):
        sent.append(value)
        return value

    first = run(0.1, send)
    assert len(sent) < 100  # and not at each update
    received = iter(list(sent))
    assert run(0.9, lambda _value: next(received)) == first
    assert next(received, None) is None
    assert len(first) == 9
    assert all(90 <= update - before <= 110 for before, update in pairwise(first))


# Signals


@pytest.fixture(autouse=True)
def _same_handlers():
    """Every test leaves the handlers as they were."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


ENDINGS = [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]


@pytest.mark.parametrize(("number", "ending"), ENDINGS)
def test_a_signal_outside_of_training_ends_the_run_at_once(number, ending):
    with pytest.raises(ending), Interrupts():
        signal.raise_signal(number)


@pytest.mark.parametrize(("number", "ending"), ENDINGS)
def test_a_signal_in_a_training_step_is_noted_and_ends_the_run_after_it(number, ending, capfd):
    with Interrupts(announce=announce_on_stderr) as interrupts:
        with interrupts.deferred():
            signal.raise_signal(number)
            assert interrupts.requested == number
        with pytest.raises(ending):
            interrupts.end_run()
        interrupts.end_run()  # it has ended
    assert "stopping after this batch; press Ctrl-C again to stop at once" in capfd.readouterr().err


@pytest.mark.parametrize(("number", "ending"), ENDINGS)
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_run_at_once(first, number, ending):
    with Interrupts() as interrupts, interrupts.deferred():
        signal.raise_signal(first)
        with pytest.raises(ending):
            signal.raise_signal(number)


def test_sigterm_ends_a_program_with_143():
    assert Terminated().code == 128 + signal.SIGTERM


def test_handlers_of_the_program_are_called_and_restored():
    calls = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: calls.append(number))
    term = signal.signal(signal.SIGTERM, lambda number, _frame: calls.append(number))
    try:
        with Interrupts() as interrupts, interrupts.deferred():
            signal.raise_signal(signal.SIGTERM)  # kept: a job of Slurm may save something itself
            assert calls == [signal.SIGTERM]
            signal.raise_signal(signal.SIGINT)
            assert calls == [signal.SIGTERM]
            interrupts.end_run()
        assert calls == [signal.SIGTERM, signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, term)


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts, interrupts.deferred():
            signal.raise_signal(signal.SIGINT)
            assert interrupts.requested is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_handlers_are_left_alone_in_a_thread():
    handlers = []

    def enter():
        with Interrupts():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_process_ignores_ctrl_c_and_the_first_sigterm(number):
    """A terminal and a scheduler send their signal to worker processes too, which the main process must end."""
    with Interrupts():
        ready, started = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(started, b"x")
            time.sleep(60)
            os._exit(0)
        os.read(ready, 1)
        for _ in range(5 if number == signal.SIGINT else 1):
            os.kill(child, number)
            time.sleep(0.05)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        for _ in range(2):
            os.kill(child, signal.SIGTERM)
            time.sleep(0.05)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGTERM
        os.close(ready)
        os.close(started)
