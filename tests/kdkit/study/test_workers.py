"""Tests of the scheduler, of the in-process worker, and of the pickles that jobs and errors travel in."""

import enum
import os
import pickle
import signal
import sys
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from threading import Timer
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock

from kdkit import RecipeError, RunOptions, Trial, TrialResult
from kdkit.engine.run_record import Origin
from kdkit.errors import CheckError, KdkitError, Terminated, WorkerError
from kdkit.plugins.recipe_file import load_file
from kdkit.study.scheduler import run_trials
from kdkit.study.workers.environment import environment_of
from kdkit.study.workers.in_process import InProcess
from kdkit.study.workers.job import Job, JobResult
from kdkit.study.workers.pickling import pack_error, pickle_object, unpack_error
from kdkit.study.workers.processes import Processes, _Child
from kdkit.study.workers.remote import StudyLocation, run_remote
from kdkit.utils.devices import is_kernel_error

FILE = '''
"""A file that belongs to no package."""

import enum
import functools


class Colour(enum.Enum):
    RED = 1


class Outer:
    class Inner:
        def __init__(self, value):
            self.value = value


class TwoArguments(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def recipe(width=1):
    return width


def doubled(function):
    @functools.wraps(function)
    def call(width=1):
        return 2 * function(width)

    return call


def _plain(width=1):
    return width


decorated = doubled(recipe)  # has the name of another function
twice = doubled(_plain)
_plain = twice
'''


@pytest.fixture
def module(tmp_path):
    (tmp_path / "of_no_package.py").write_text(FILE)
    yield load_file(tmp_path / "of_no_package.py")
    forget(tmp_path)


def forget(folder: Path) -> None:
    """Undo the import of the file, so that this process is like one that never imported it."""
    sys.modules.pop("of_no_package", None)
    if str(folder) in sys.path:
        sys.path.remove(str(folder))


class FakeWorkers:
    """Workers that run nothing: `capacity` jobs at once, which end in a given order and fail if named "bad..."."""

    def __init__(self, capacity: int, order: str) -> None:
        self.capacity, self.order = capacity, order.split()
        self.running: list[str] = []
        self.started: list[str] = []

    @property
    def has_room(self) -> bool:
        return len(self.running) < self.capacity

    def start(self, job: Job) -> None:
        self.running.append(job.name)
        self.started.append(job.name)

    def next_result(self) -> tuple[str, JobResult]:
        name = next(name for name in self.order if name in self.running)
        self.running.remove(name)
        return name, JobResult(error=ValueError() if name.startswith("bad") else None)

    def close(self) -> None: ...


def parse_trials(text: str) -> list[Trial]:
    """Return trials from a text of `name` and `name<need,need`."""
    trials = []
    for name, _, needs in (word.partition("<") for word in text.split()):
        trials.append(Trial(name=name, recipe=print, needs={"folders": tuple(needs.split(","))} if needs else {}))
    return trials


def prepare(trial: Trial) -> Job | TrialResult:
    if trial.name.startswith("skip"):
        return TrialResult(trial=trial, state="skipped")
    folder = Path(trial.name)
    return Job(name=trial.name, folder=folder, recipe=print, arguments={}, origin=Origin(), options=RunOptions())


def run(text: str, workers: FakeWorkers) -> str:
    results = run_trials(parse_trials(text), prepare, workers)
    return " ".join(f"{result.trial.name}:{result.state}" for result in results)


def test_a_trial_starts_as_soon_as_its_needs_are_finished_and_not_earlier():
    workers = FakeWorkers(2, "b a d c")
    assert run("a b c<a d<b", workers) == "b:finished a:finished d:finished c:finished"
    assert workers.started == ["a", "b", "d", "c"]


def test_no_more_trials_start_than_the_workers_have_room_for():
    workers = FakeWorkers(1, "c b a")
    assert run("a b c", workers) == "a:finished b:finished c:finished"


def test_trials_that_need_a_failed_trial_are_blocked_directly_and_indirectly():
    states = run("bad a<bad b<a c", FakeWorkers(3, "c bad"))
    assert states == "c:finished bad:failed a:blocked b:blocked"


def test_a_skipped_trial_takes_no_room_and_is_a_met_need():
    workers = FakeWorkers(1, "a b")
    assert run("skip1 a skip2 b<skip2", workers) == "skip1:skipped a:finished skip2:skipped b:finished"


def test_a_trial_that_cannot_be_started_fails_alone():
    class RefusingWorkers(FakeWorkers):
        def start(self, job):
            if job.name == "a":
                raise RecipeError("no")
            super().start(job)

    assert run("a b<a c", RefusingWorkers(2, "c")) == "a:failed b:blocked c:finished"


def test_this_process_runs_one_trial_at_a_time():
    workers = InProcess()
    assert workers.has_room
    workers.start(prepare(parse_trials("a")[0]))
    assert not workers.has_room
    name, result = workers.next_result()
    assert name == "a"
    assert isinstance(result.error, RecipeError)  # `print` does not return a Recipe


def test_after_an_error_of_a_kernel_a_trial_that_needs_this_process_is_refused():
    def broken():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700)

    workers, job = InProcess(), prepare(parse_trials("a")[0])
    workers.start(replace(job, recipe=broken))
    with pytest.warns(UserWarning, match="a kernel failed in trial 'a'"):
        workers.next_result()
    with pytest.raises(WorkerError, match=r"a kernel failed in an earlier trial.* top level of a file.*resumes it"):
        workers.start(replace(job, recipe=broken))
    assert workers.has_room
    workers.close()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.AcceleratorError("CUDA error: unspecified launch failure", 719), True),
        (KdkitError("net 'student' fails: RuntimeError: CUDA error: device-side assert triggered"), True),
        (torch.AcceleratorError("CUDA error: out of memory", 2), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_an_error_of_a_kernel_is_recognized(error, expected):
    assert is_kernel_error(error) is expected


@pytest.mark.parametrize("name", ["recipe", "twice", "Outer", "Outer.Inner", "Colour"])
def test_functions_and_classes_of_any_file_can_be_unpickled_in_another_process(module, tmp_path, name):
    value = module
    for part in name.split("."):
        value = getattr(value, part)
    data = pickle_object(value, "it")
    assert pickle.loads(data) is value
    forget(tmp_path)
    reloaded = pickle.loads(data)  # imports the file again
    assert reloaded is not value
    assert reloaded.__qualname__ == value.__qualname__
    assert reloaded.__module__ == "of_no_package"


def test_objects_made_of_such_functions_and_classes_can_be_unpickled_too(module, tmp_path):
    value = partial(module.recipe, width=module.Outer.Inner(module.Colour.RED)), module.Colour.RED
    data = pickle_object(value, "it")
    forget(tmp_path)
    call, colour = pickle.loads(data)
    assert call().value is colour
    assert isinstance(colour, enum.Enum)


def test_a_function_of_the_main_script_is_found_by_its_file(module, tmp_path, monkeypatch):
    # As in the process of `python of_no_package.py`, where the module has the name "__main__" and no spec.
    monkeypatch.setattr(module, "__spec__", None)
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setattr(module.recipe, "__module__", "__main__")
    module.__name__ = "__main__"
    data = pickle_object(module.recipe, "it")
    module.__name__ = "of_no_package"
    forget(tmp_path)
    assert pickle.loads(data)(3) == 3


def test_a_function_of_an_interactive_session_is_refused_because_no_file_has_it(module, monkeypatch):
    monkeypatch.setattr(module.recipe, "__module__", "__main__")
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    with pytest.raises(RecipeError, match="recipe is not defined in a file"):
        pickle_object(module.recipe, "it")


def test_a_function_under_the_name_of_another_is_refused_and_not_mixed_up(module):
    with pytest.raises(RecipeError, match=r"trial 'a' cannot be sent.*top level of a file"):
        pickle_object(module.decorated, "trial 'a'")


def test_values_without_a_name_at_the_top_level_of_a_file_are_refused(tmp_path):
    def local():
        return None

    @wraps(local)
    def wrapped():
        return None

    with (tmp_path / "file").open("w") as open_file:
        for value in (local, wrapped, lambda: None, open_file):
            with pytest.raises(RecipeError, match="cannot be sent to another process"):
                pickle_object(value, "it")


def test_a_file_that_lost_the_function_is_named_in_the_error(module, tmp_path):
    data = pickle_object(module.recipe, "it")
    forget(tmp_path)
    (tmp_path / "of_no_package.py").write_text("")
    with pytest.raises(RecipeError, match="no 'recipe' any more"):
        pickle.loads(data)


def test_a_file_that_was_edited_is_not_imported_by_another_process(module, tmp_path):
    path = tmp_path / "of_no_package.py"
    data = pickle_object(module.recipe, "it", {path: path.read_bytes()})
    path.write_text(f"{FILE}# edited")
    assert pickle.loads(data) is module.recipe  # this process has imported it before
    forget(tmp_path)
    with pytest.raises(RecipeError, match=r"of_no_package\.py changed after its trial was created"):
        pickle.loads(data)
    path.write_text(FILE)
    assert pickle.loads(data)(3) == 3


def test_errors_keep_their_class_if_they_can_be_pickled():
    problems = CheckError(["first", "second"])
    problems.add_note("a note")
    error = unpack_error(pack_error(problems))
    assert type(error) is CheckError
    assert error.problems == ("first", "second")
    assert "In the process that ran the trial" in error.__notes__[-1]
    error = unpack_error(pack_error(ZeroDivisionError("by hand")))
    assert type(error) is ZeroDivisionError


def test_errors_become_a_worker_error_with_their_message_if_they_cannot_be_recreated(module):
    # Its __init__ takes two arguments, and pickle stores one.
    error = unpack_error(pack_error(module.TwoArguments("this", "that")))
    assert isinstance(error, WorkerError)
    assert str(error) == "TwoArguments: this that"
    unpicklable = ValueError(lambda: None)
    assert str(unpack_error(pack_error(unpicklable))).startswith("ValueError: <function")


def test_unpacking_an_error_imports_no_file(module):
    module.Mine = type("Mine", (Exception,), {"__module__": "of_no_package"})
    packed = pack_error(module.Mine("a message"))
    assert packed.pickled
    sys.modules.pop("of_no_package")  # its folder stays in sys.path, where plain pickle would import it from
    assert isinstance(unpack_error(packed), WorkerError)
    assert "of_no_package" not in sys.modules


def test_a_remote_trial_waits_for_the_lock_of_a_lost_machine_and_fails_if_it_is_not_released(tmp_path, monkeypatch):
    monkeypatch.setattr("kdkit.study.workers.remote.LOCK_TIMEOUT", 0.1)
    monkeypatch.chdir(tmp_path)
    token = tmp_path / "token"
    token.write_text("random")
    local = environment_of([], token)
    location = StudyLocation(import_path=(), working_directory=tmp_path, token=token, files=())
    with FileLock(tmp_path / ".one.lock"):
        seconds, error = run_remote("one", b"", location, local, torch.get_num_threads())
    assert seconds == 0
    assert error.message == "another process still runs trial 'one'; try again later"


def test_a_remote_machine_that_differs_refuses_a_trial(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    token = tmp_path / "token"
    token.write_text("random")
    local = {**environment_of([], token), "torch": "0.0"}
    location = StudyLocation(import_path=(), working_directory=tmp_path, token=token, files=())
    _seconds, error = run_remote("one", b"", location, local, torch.get_num_threads())
    assert "has torch" in error.message
    assert "install the same version" in error.message


def test_sigterm_ends_the_wait_for_jobs_so_that_they_can_be_stopped():
    Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Terminated):
        Processes(1).next_result()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (3, "ended with exit code 3"),
        (-9, "ended by SIGKILL (which the system sends"),
        (-36, "ended by signal 36 before"),
    ],
)
def test_a_process_that_ended_is_reported_by_its_exit_code_or_its_signal(code, message):
    child = _Child.__new__(_Child)
    child._process = SimpleNamespace(wait=lambda timeout: code)
    assert f"its process {message}" in child.exit_message().replace("was ", "")
    assert "resume from its last checkpoint" in child.exit_message()
