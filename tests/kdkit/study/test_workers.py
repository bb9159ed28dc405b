"""Cells are begun in their order as soon as they may be, and what they need finds its way to another process."""

import enum
import pickle
import sys
from functools import partial, wraps
from pathlib import Path

import pytest

from kdkit import RecipeError, RunOptions, Trial, TrialResult
from kdkit.engine.run_record import Origin
from kdkit.errors import CheckError, WorkerError
from kdkit.plugins.recipe_file import load_file
from kdkit.study.scheduler import run_trials
from kdkit.study.workers import InProcess, Job, JobResult
from kdkit.study.workers.pickling import packed, packed_error, unpacked_error

FILE = '''
"""A file that no package holds."""

import enum
import functools


class Colour(enum.Enum):
    RED = 1


class Outer:
    class Inner:
        def __init__(self, value):
            self.value = value


class Two(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


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
    """Leave nothing of the file, as in a process that never read it."""
    sys.modules.pop("of_no_package", None)
    if str(folder) in sys.path:
        sys.path.remove(str(folder))


class Slow:
    """Workers of a test: so many at once, ending in the order that it says."""

    def __init__(self, room: int, order: str) -> None:
        self.most, self.order = room, order.split()
        self.running: list[str] = []
        self.begun: list[str] = []

    @property
    def room(self) -> bool:
        return len(self.running) < self.most

    def begin(self, work: Job) -> None:
        self.running.append(work.name)
        self.begun.append(work.name)

    def next_ended(self) -> tuple[str, JobResult]:
        name = next(each for each in self.order if each in self.running)
        self.running.remove(name)
        return name, JobResult(error=ValueError() if name.startswith("bad") else None)

    def close(self) -> None: ...


def trials(text: str) -> list[Trial]:
    """Cells written as `name` or `name<need,need`."""
    made = []
    for name, _, needs in (each.partition("<") for each in text.split()):
        made.append(Trial(name=name, recipe=print, needs={"folders": tuple(needs.split(","))} if needs else {}))
    return made


def made(trial: Trial) -> Job | TrialResult:
    if trial.name.startswith("skip"):
        return TrialResult(trial=trial, state="skipped")
    where = Path(trial.name)
    return Job(name=trial.name, folder=where, recipe=print, given={}, origin=Origin(), options=RunOptions())


def run(text: str, workers: Slow) -> str:
    return " ".join(f"{each.trial.name}:{each.state}" for each in run_trials(trials(text), made, workers))


def test_a_cell_is_begun_as_soon_as_what_it_needs_is_ready_and_no_sooner():
    workers = Slow(2, "b a d c")
    assert run("a b c<a d<b", workers) == "b:done a:done d:done c:done"
    assert workers.begun == ["a", "b", "d", "c"]


def test_no_more_are_begun_than_there_is_room_for():
    workers = Slow(1, "c b a")
    assert run("a b c", workers) == "a:done b:done c:done"


def test_what_needs_a_cell_that_failed_waits_and_so_does_what_needs_that():
    said = run("bad a<bad b<a c", Slow(3, "c bad"))
    assert said == "c:done bad:failed a:waiting b:waiting"


def test_what_is_skipped_takes_no_room_and_others_build_on_it():
    workers = Slow(1, "a b")
    assert run("skip1 a skip2 b<skip2", workers) == "skip1:skipped a:done skip2:skipped b:done"


def test_a_cell_that_cannot_be_begun_fails_alone():
    class Refusing(Slow):
        def begin(self, work):
            if work.name == "a":
                raise RecipeError("no")
            super().begin(work)

    assert run("a b<a c", Refusing(2, "c")) == "a:failed b:waiting c:done"


def test_this_process_runs_one_cell_at_a_time():
    here = InProcess()
    assert here.room
    here.begin(made(trials("a")[0]))
    assert not here.room
    name, ended = here.next_ended()
    assert name == "a"
    assert isinstance(ended.error, RecipeError)  # print is no recipe


@pytest.mark.parametrize("name", ["recipe", "twice", "Outer", "Outer.Inner", "Colour"])
def test_functions_and_classes_of_any_file_are_found_again_in_another_process(module, tmp_path, name):
    thing = module
    for part in name.split("."):
        thing = getattr(thing, part)
    data = packed(thing, "it")
    assert pickle.loads(data) is thing
    forget(tmp_path)
    again = pickle.loads(data)
    assert again is not thing
    assert again.__qualname__ == thing.__qualname__
    assert again.__module__ == "of_no_package"


def test_what_is_made_of_them_is_found_again_too(module, tmp_path):
    thing = partial(module.recipe, width=module.Outer.Inner(module.Colour.RED)), module.Colour.RED
    data = packed(thing, "it")
    forget(tmp_path)
    call, colour = pickle.loads(data)
    assert call().value is colour
    assert isinstance(colour, enum.Enum)


def test_the_main_script_is_found_by_its_file(module, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "__spec__", None)
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setattr(module.recipe, "__module__", "__main__")
    module.__name__ = "__main__"
    data = packed(module.recipe, "it")
    module.__name__ = "of_no_package"
    forget(tmp_path)
    assert pickle.loads(data)(3) == 3


def test_what_was_typed_in_is_refused_since_no_file_has_it(module, monkeypatch):
    monkeypatch.setattr(module.recipe, "__module__", "__main__")
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    with pytest.raises(RecipeError, match="recipe stands in no file"):
        packed(module.recipe, "it")


def test_a_function_under_another_ones_name_is_refused_and_not_mistaken(module):
    with pytest.raises(RecipeError, match=r"cell 'a' cannot be brought.*top of a file"):
        packed(module.decorated, "cell 'a'")


def test_what_has_no_name_at_the_top_of_a_file_is_refused(tmp_path):
    def local():
        return None

    @wraps(local)
    def other():
        return None

    with (tmp_path / "file").open("w") as open_teacher:
        for each in (local, other, lambda: None, open_teacher):
            with pytest.raises(RecipeError, match="cannot be brought to another process"):
                packed(each, "it")


def test_a_file_that_changed_since_is_told(module, tmp_path):
    data = packed(module.recipe, "it")
    forget(tmp_path)
    (tmp_path / "of_no_package.py").write_text("")
    with pytest.raises(RecipeError, match="no 'recipe' any more"):
        pickle.loads(data)


def test_errors_come_as_they_are_where_they_can(module):
    problems = CheckError(["one", "two"])
    problems.add_note("noted")
    again = unpacked_error(packed_error(problems))
    assert type(again) is CheckError
    assert again.problems == ("one", "two")
    assert "In the process that ran the cell" in again.__notes__[-1]
    again = unpacked_error(packed_error(ZeroDivisionError("by hand")))
    assert type(again) is ZeroDivisionError


def test_errors_come_in_words_where_they_cannot(module, tmp_path):
    again = unpacked_error(packed_error(module.Two("this", "that")))
    assert isinstance(again, WorkerError)
    assert str(again) == "Two: this that"
    unpickled = ValueError(lambda: None)
    assert str(unpacked_error(packed_error(unpickled))).startswith("ValueError: <function")


def test_reading_an_error_runs_no_file(module, tmp_path):
    told = packed_error(type("Mine", (Exception,), {"__module__": "of_no_package"})("said"))
    module.Mine = None
    forget(tmp_path)
    assert isinstance(unpacked_error(told), WorkerError)
    assert "of_no_package" not in sys.modules
