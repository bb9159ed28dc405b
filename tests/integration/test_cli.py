"""The command line: what it takes, what it prints, and that every mistake is answered and leaves nothing behind."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from torch import nn

from kdkit import RecipeError
from kdkit.plugins.recipe_file import read_recipe_file
from tests.helpers.command_line import ROOT, environment

EXAMPLE = ROOT / "examples" / "lrhnet_smlkd.py"

PARTS = """
    import torch
    from torch import nn
    import kdkit
    from kdkit import *
    from kdkit import Net, Recipe, Stage, Match, Truth, Tap, Training
    from kdkit.losses import SoftTargets, Hint
    from torch.utils.data import TensorDataset

    def tensors(count, seed):
        torch.manual_seed(seed)
        labels = torch.arange(count) % 3
        return TensorDataset(torch.eye(3, 6)[labels] + 0.3 * torch.randn(count, 6), labels)

    def given():
        with torch.random.fork_rng():
            return TorchData(tensors(24, 0), tensors(12, 1), tensors(12, 2), classes=("a", "b", "c"))

    class Wide(nn.Module):
        def __init__(self, width=5):
            super().__init__()
            self.body, self.idle, self.head = nn.Linear(6, width), nn.Linear(2, 2), nn.Linear(width, 3)
        def forward(self, x):
            return self.head(self.body(x).relu())

    def truth():
        return Truth(nn.CrossEntropyLoss())

    def taught(match, training=None):
        return Recipe(data=given(), schedule=[Stage(match, training or Training(epochs=1, batch_size=8))])
"""

GOOD = """
    def recipe(epochs: int = 1) -> Recipe:
        teacher, student = Net("teacher", Wide(7)), Net("student", Wide(4))
        return Recipe(
            data=given(),
            schedule=Sequential(
                teacher, student, truth=truth(), training=Training(epochs=epochs, batch_size=8),
                match=lambda net, master: Match(
                    master, Hint(), student=Tap(net.module.body), target=Tap(master.module.body)
                ),
            ),
        )
"""


@pytest.fixture
def written(tmp_path):
    """Write a recipe file: the parts that all share, and its own."""

    def write(body: str, name: str = "mine.py", *, parts: bool = True) -> Path:
        path = tmp_path / name
        path.write_text((dedent(PARTS) if parts else "") + dedent(body))
        return path

    return write


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


def refused(said, *words: str) -> None:
    assert said.code == 2, said
    assert "Traceback" not in said.err + said.out
    for word in words:
        assert word in said.err, f"{word!r} is not in: {said.err}"


# What is wrong with a file

FILES = {
    "no recipe function": ("x = 1", ["no function recipe()"]),
    "a misspelt recipe function": ("def recipee(): ...", ["no function recipe()", "'recipee'"]),
    "a syntax error": ("x = 1\ndef recipe(:\n    pass", ["bad.py, line 2", "def recipe(:"]),
    "an error on import": ("x = 1\n\n1 / 0", ["bad.py, line 3", "ZeroDivisionError", "reading it raises"]),
    "an import of what is not there": ("import no_such_package", ["bad.py, line 1", "no_such_package"]),
    "an exit on import": ("import sys\nsys.exit(0)", ["SystemExit", "a recipe file returns its Recipe"]),
    "an error in recipe()": ("def recipe():\n    return {}['x']", ["bad.py, line 2", "recipe() raises KeyError"]),
    "something else returned": ("def recipe():\n    return 3", ["returns a int", "kdkit.Recipe"]),
    "nothing returned": ("def recipe():\n    ...", ["NoneType", "kdkit.Recipe"]),
    "a coroutine returned": ("async def recipe(): ...", ["returns a coroutine", "kdkit.Recipe"]),
    "no text": ("x = 1\0", ["null bytes"]),
    "a parameter without a type": ("def recipe(width=3): ...", ["'width'", "no type", "width: int"]),
    "a parameter of another type": ("def recipe(net: object = None): ...", ["'net'", "int, float, str, bool, Path"]),
    "a parameter of two types": ("def recipe(n: int | str = 1): ...", ["'n'", "int, float, str, bool, Path"]),
    "a parameter of an unknown type": ("def recipe(n: 'Undefined' = 1): ...", ["type of a parameter", "Undefined"]),
    "a parameter of a type that is no expression": ("def recipe(n: 'a number' = 1): ...", ["type of a parameter"]),
    "a parameter of a type that nobody has": (
        "import torch\ndef recipe(n: 'torch.Intt' = 1): ...",
        ["type of a parameter", "Intt"],
    ),
    "a parameter of a type that cannot be": ("def recipe(n: '1 | 2 | int[3]' = 1): ...", ["type of a parameter"]),
    "parameters without names": ("def recipe(*many: int): ...", ["named parameters", "*many"]),
    "a misspelt hook": (
        "import kdkit\n@kdkit.hookimpl\ndef epoch_end(event): ...\ndef recipe(): ...",
        ["'epoch_end'", "did you mean 'epoch_ended'"],
    ),
    "a hook with other arguments": (
        "import kdkit\n@kdkit.hookimpl\ndef epoch_ended(epoch): ...\ndef recipe(): ...",
        ["'bad.py'", "epoch"],
    ),
    "a misspelt name on a shelf": (
        "import kdkit\ndef recipe():\n    return kdkit.registry('losses')['soft_target']()",
        ["'soft_target' is not among the losses", "did you mean 'soft_targets'"],
    ),
    "a misspelt shelf": ("import kdkit\ndef recipe():\n    kdkit.registry('loses')", ["'loses'", "'losses'"]),
    "a misspelt name of kdkit": ("from kdkit import Netz\ndef recipe(): ...", ["bad.py, line 1", "Netz"]),
    "bytes that are no text": ("\0\0", ["bad.py"]),
}
FILES |= {
    f"a parameter called {name}": (f"def recipe({name}: int = 3): ...", [f"'{name}'", "choose another"])
    for name in ("seed", "out", "device", "compile", "precision", "resume", "quiet", "help", "file")
}


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_recipe_is_refused(case, command, kdkit_here, written, tmp_path):
    text, words = FILES[case]
    path = written(text, "bad.py", parts=False)
    before = everything(tmp_path)
    refused(kdkit_here(command, path), *words)
    assert everything(tmp_path) == before


def test_a_line_is_named_however_the_file_is(kdkit_here, written):
    written("def recipe():\n    raise ValueError('of mine')", "bad.py", parts=False)
    refused(kdkit_here("run", "bad.py"), "bad.py, line 2", "ValueError: of mine")
    refused(kdkit_here("run", "./../" + Path.cwd().name + "/bad.py"), "line 2")


def test_a_syntax_error_in_a_helper_names_the_helper(kdkit_here, written):
    written("x = = 2", "helper_of_mine.py", parts=False)
    path = written("\n\nimport helper_of_mine", "bad.py", parts=False)
    refused(kdkit_here("run", path), "helper_of_mine.py, line 1", "x = = 2")


def test_a_file_that_is_missing_or_a_folder_or_no_python_is_refused(kdkit_here, tmp_path):
    refused(kdkit_here("run", "nowhere.py"), "nowhere.py", "no such recipe file")
    refused(kdkit_here("run", tmp_path), "is a folder")
    (tmp_path / "notes.txt").write_text("x")
    refused(kdkit_here("run", "notes.txt"), "a recipe file ends in .py")
    refused(kdkit_here("run"), "Missing argument 'FILE'")
    refused(kdkit_here("runn"), "No such command 'runn'")
    refused(kdkit_here("list", "nowhere.py"), "no such recipe file")


# What is wrong with an experiment

EXPERIMENTS = {
    "a tap that never fires": (
        """
        t, s = Net("t", Wide(), trained=True), Net("s", Wide())
        return taught({s: Match(t, Hint(), student=Tap(s.module.idle), target=Tap(t.module.body))})
        """,
        ["never fired", "net 's'", "tap one that does"],
    ),
    "a tap of another net": (
        """
        t, s = Net("t", Wide(), trained=True), Net("s", Wide())
        return taught({s: Match(t, Hint(), student=Tap(t.module.body), target=Tap(t.module.body))})
        """,
        ["student tap", "not a part of net 's'"],
    ),
    "shapes that cannot meet": (
        """
        t, s = Net("t", Wide(7), trained=True), Net("s", Wide(4))
        return taught({s: Match(t, nn.MSELoss(), student=Tap(s.module.body), target=Tap(t.module.body))})
        """,
        ["(4, 4)", "(4, 7)"],
    ),
    "outputs that are not the classes": (
        """
        return taught({Net("s", nn.Linear(6, 4)): truth()})
        """,
        ["net 's' gives outputs of (4,)", "are 3"],
    ),
    "inputs that a net cannot take": (
        """
        return taught({Net("s", nn.Linear(5, 3)): truth()})
        """,
        ["net 's' cannot take what it sees", "(4, 6)"],
    ),
    "two terms of one name": (
        """
        return taught({Net("s", Wide()): truth() + truth()})
        """,
        ["2 terms are called 'truth'", "label="],
    ),
    "two nets of one name": (
        """
        return Recipe(data=given(), schedule=Sequential(
            Net("s", Wide()), Net("s", Wide()), truth=truth(), kd_loss=SoftTargets(), training=Training(epochs=1)))
        """,
        ["2 nets are called 's'"],
    ),
    "a net matched to itself": (
        """
        s = Net("s", Wide())
        return taught({s: truth() + Match(s, SoftTargets())})
        """,
        ["net 's' is in training in this stage"],
    ),
    "an untrained teacher": (
        """
        t, s = Net("t", Wide()), Net("s", Wide())
        return taught({s: truth() + Match(t, SoftTargets())})
        """,
        ["net 't' teaches but is neither trained", "weights=FILE"],
    ),
    "missing weights": ("""Net("t", Wide(), weights="no.safetensors")""", ["no.safetensors", "no such file"]),
    "weights that do not fit": (
        """
        torch.save(Wide(9).state_dict(), kdkit_test_folder / "other.pt")
        Net("t", Wide(), weights=kdkit_test_folder / "other.pt")
        """,
        ["do not fit net 't'", "(9, 6), not (5, 6)"],
    ),
    "weights that are garbage": (
        """
        (kdkit_test_folder / "other.pt").write_bytes(b"hello")
        Net("t", Wide(), weights=kdkit_test_folder / "other.pt")
        """,
        ["other.pt cannot be read", "state dict"],
    ),
    "an empty file of weights": (
        """
        (kdkit_test_folder / "other.safetensors").write_bytes(b"")
        Net("t", Wide(), weights=kdkit_test_folder / "other.safetensors")
        """,
        ["other.safetensors cannot be read"],
    ),
    "a loss that is a class": ("""Truth(nn.CrossEntropyLoss)""", ["did you forget its ()?"]),
    "a score that is not there": (
        """
        return taught({Net("s", Wide()): truth()}, Training(epochs=1, monitor="acuracy"))
        """,
        ["'acuracy'", "did you mean 'accuracy'"],
    ),
    "an option that an optimizer has not": (
        """
        return taught({Net("s", Wide()): truth()}, Training(epochs=1, optimizer=Optimizer(torch.optim.Adam, lrr=1)))
        """,
        ["Adam has no option 'lrr'", "did you mean 'lr'"],
    ),
    "no epochs": ("""Training(epochs=0)""", ["epochs is a whole number of at least 1", "got 0"]),
    "empty data": (
        """
        empty = TensorDataset(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))
        TorchData(empty, empty)
        """,
        ["train data is empty"],
    ),
}


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize("case", EXPERIMENTS)
def test_an_experiment_that_cannot_be_is_refused(case, command, kdkit_here, written, tmp_path):
    body, words = EXPERIMENTS[case]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    head = f"from pathlib import Path\nkdkit_test_folder = Path({str(elsewhere)!r})\n\ndef recipe():\n"
    path = written("", "bad.py")
    path.write_text(path.read_text() + head + "".join(f"    {line}\n" for line in dedent(body).strip().splitlines()))
    out = ["--out", tmp_path / "out"] if command == "run" else []
    refused(kdkit_here(command, path, *out), *words)
    left = {each for each in everything(tmp_path) if not each.startswith("elsewhere")}
    assert left == {"bad.py"}


def test_all_problems_are_told_at_once(kdkit_here, written):
    path = written(
        """
        def recipe():
            t, s = Net("t", Wide()), Net("s", Wide())
            tap = Match(t, Hint(), student=Tap(t.module.body), target=Tap(t.module.body))
            return taught({s: truth() + truth() + tap})
        """
    )
    said = kdkit_here("check", path)
    refused(said, "3 problems found", "neither trained", "not a part of net 's'", "2 terms are called")


# What is wrong with options

OPTIONS = {
    "unknown": (["--epoch", "3"], ["--epoch", "--epochs"]),
    "of the wrong type": (["--epochs", "many"], ["'many' is not a valid integer"]),
    "without a value": (["--epochs"], ["requires an argument"]),
    "too small": (["--epochs", "-3"], ["epochs is a whole number of at least 1", "-3"]),
    "zero": (["--epochs", "0"], ["epochs is a whole number of at least 1", "got 0"]),
    "cuda": (["--device", "cuda"], ["'cuda' is not available", "cpu"]),
    "a device that nobody has": (["--device", "foo"], ["'foo' is not available", "cpu"]),
    "a device too many": (["--device", "cuda:99"], ["'cuda:99' is not available", "cpu"]),
    "a device without memory": (["--device", "meta"], ["'meta'", "choose 'cpu'"]),
    "a device whose module is missing": (["--device", "hpu"], ["'hpu' is not available"]),
    "precision": (["--precision", "foo"], ["fp32, bf16, fp16", "'foo'"]),
    "a folder's name that is too long": (["--out", "x" * 300], ["cannot be written", "--out FOLDER"]),
    "a folder below a file": (["--out", "mine.py/run"], ["cannot be written", "mine.py is a file"]),
    "a negative seed": (["--seed", "-1"], ["-1", "x>=0"]),
    "a seed too large": (["--seed", str(2**70)], ["seed"]),
    "a seed in words": (["--seed", "x"], ["'x' is not a valid integer"]),
    "resuming nothing": (["--resume"], ["to resume", "which run folder"]),
    "resuming what is not there": (["--resume", "--out", "nowhere"], ["nowhere holds no run to go on with"]),
    "one file too many": (["other.py"], ["unexpected extra argument"]),
}
if torch.cuda.is_available():
    del OPTIONS["cuda"]


@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_that_cannot_be_is_refused(case, kdkit_here, written, tmp_path):
    given, words = OPTIONS[case]
    path = written(GOOD)
    refused(kdkit_here("run", path, *given), *words)
    assert everything(tmp_path) == {"mine.py"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--leads", "77"], ["77"]),
        (["--epochs", "-3"], ["epochs", "-3"]),
        (["--preset", "papr"], ["'papr' is not one of", "corrected", "paper"]),
        (["--data", "nowhere"], ["nowhere"]),
        (["--data", "empty"], ["empty"]),
        (["--data", "mine.txt"], ["mine.txt"]),
    ],
    ids=" ".join,
)
def test_the_first_example_refuses_what_it_cannot_do(given, words, kdkit_here, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.txt").write_text("")
    refused(kdkit_here("run", EXAMPLE, *given), *words)
    assert everything(tmp_path) == {"empty", "mine.txt"}


def test_a_run_folder_is_never_written_over(kdkit_here, written, tmp_path):
    path = written(GOOD)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    refused(kdkit_here("run", path, "--out", taken), "exists and is not a run folder", "choose another")
    assert everything(taken) == {"thesis.txt"}
    refused(kdkit_here("run", path, "--out", taken / "thesis.txt"), "exists and is not a run folder")
    refused(kdkit_here("run", path, "--out", taken / "thesis.txt" / "below"), "cannot be written")
    refused(kdkit_here("run", path, "--out", taken, "--resume"), "holds no run to go on with")
    assert (taken / "thesis.txt").read_text() == "mine"
    assert kdkit_here("run", path, "--out", "run").code == 0
    before = {each: (tmp_path / "run" / each).stat().st_mtime_ns for each in everything(tmp_path / "run")}
    refused(kdkit_here("run", path, "--out", "run"), "already holds a run", "--resume")
    assert before == {each: (tmp_path / "run" / each).stat().st_mtime_ns for each in everything(tmp_path / "run")}


# What goes well

TYPED = """
    import json
    from pathlib import Path
    from typing import Literal

    def recipe(
        whole: int = 1,
        part: float = 0.5,
        text: str = "as it is",
        flag: bool = False,
        on: bool = True,
        where: Path = Path("here"),
        word: Literal["red", "green"] = "red",
        count: Literal[12, 6, 3] = 12,
        maybe: int | None = None,
        somewhere: Path | None = None,
        either: bool | None = None,
        many: tuple[int, ...] = (1, 2),
        none_or_many: tuple[float, ...] | None = None,
        several: list[Literal["x", "y"]] = ["x"],
        two_words: str = "",
    ) -> Recipe:
        '''An experiment.'''
        with open("given.txt", "w") as file:
            file.write(repr(locals() | {"file": None}))
        raise RuntimeError("that is all")
"""


def typed(kdkit_here, written, *args):
    path = written(TYPED)
    before, after = args if len(args) == 2 and isinstance(args[0], list) else ([], list(args))
    said = kdkit_here("run", *before, path, *after)
    assert "that is all" in said.err, said
    from pathlib import Path, PosixPath, WindowsPath

    names = {"PosixPath": PosixPath, "WindowsPath": WindowsPath, "Path": Path}
    return eval(Path("given.txt").read_text(), names)


def test_defaults_arrive_as_they_are(kdkit_here, written):
    given = typed(kdkit_here, written)
    assert (given["whole"], given["part"], given["text"]) == (1, 0.5, "as it is")
    assert (given["flag"], given["on"], given["either"]) == (False, True, None)
    assert (given["word"], given["count"]) == ("red", 12)
    assert (given["where"], given["somewhere"], given["maybe"]) == (Path("here"), None, None)
    assert (given["many"], given["none_or_many"], tuple(given["several"])) == ((1, 2), None, ("x",))


@pytest.mark.parametrize("before", [True, False], ids=["options first", "file first"])
def test_options_of_every_type_arrive(before, kdkit_here, written):
    options = ["--whole", "7", "--part", "2.5e-1", "--text=--odd", "--flag", "--no-on", "--where", "a/b"]
    options += ["--word", "green", "--count", "6", "--maybe", "0", "--somewhere", "c", "--either", "--many", "4"]
    options += ["--many", "5", "--none-or-many", "0.25", "--several", "y", "--several", "x", "--two-words", "w"]
    given = typed(kdkit_here, written, *((options, []) if before else ([], options)))
    assert (given["whole"], given["part"], given["text"]) == (7, 0.25, "--odd")
    assert (given["flag"], given["on"], given["either"]) == (True, False, True)
    assert (given["word"], given["count"]) == ("green", 6)
    assert isinstance(given["count"], int)
    assert (given["where"], given["somewhere"], given["maybe"]) == (Path("a/b"), Path("c"), 0)
    assert (given["many"], given["none_or_many"], tuple(given["several"])) == ((4, 5), (0.25,), ("y", "x"))
    assert given["two_words"] == "w"


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ("--count 5", "12, 6, 3"),
        ("--word blue", "'red', 'green'"),
        ("--many x", "valid integer"),
        ("--part x", "float"),
    ],
)
def test_values_that_no_parameter_takes_are_refused(given, word, kdkit_here, written, tmp_path):
    refused(kdkit_here("run", written(TYPED), *given.split()), word)
    assert everything(tmp_path) == {"mine.py"}


def test_a_parameter_without_default_must_be_given(kdkit_here, written):
    path = written("def recipe(size: int): raise RuntimeError(size)", parts=False)
    refused(kdkit_here("run", path), "--size")
    refused(kdkit_here("run", path, "--size", 4), "RuntimeError: 4")


def test_the_help_of_a_file_lists_its_parameters_and_what_it_says(kdkit_here, written):
    path = written(TYPED)
    path.write_text('"""Teach the small one.\n\nIn two steps.\n"""\n' + path.read_text())
    said = kdkit_here("run", path, "--help")
    assert said.code == 0
    for word in (
        "Teach the small one.",
        "In two steps.",
        "Options of this recipe",
        "--whole INTEGER",
        "[default: 1]",
        "--part FLOAT",
        "[default: 0.5]",
        "--flag / --no-flag",
        "[red|green]",
        "--seed INTEGER",
    ):
        assert word in said.out, said.out
    assert kdkit_here("run", "--help", path).out == said.out
    assert "--whole" not in kdkit_here("run", "--help").out


@pytest.mark.parametrize("name", ["ecg.py", "kdkit.py", "my recipe.v2.py"])
def test_a_recipe_file_may_be_called_as_a_plugin_is(name, kdkit_here, written):
    assert kdkit_here("check", written(GOOD, name)).code == 0


def test_a_file_can_be_read_twice_in_one_process(kdkit_here, written):
    path = written(GOOD)
    for _ in range(2):
        said = kdkit_here("check", path)
        assert said.code == 0, said


def test_a_value_that_ends_in_py_is_not_taken_for_the_file(kdkit_here, written):
    path = written("def recipe(script: str = ''): raise RuntimeError(script)", parts=False)
    refused(kdkit_here("run", "--script", "other.py", path), "RuntimeError: other.py")
    refused(kdkit_here("run", path, "--script", "other.py"), "RuntimeError: other.py")
    refused(kdkit_here("run", "--script", "other.py", "nowhere.py"), "no such recipe file")


def test_what_a_file_draws_outside_recipe_is_the_same_each_time(kdkit_here, written):
    path = written(
        """
        import random
        import numpy
        import torch
        drawn = random.random(), numpy.random.random(), torch.rand(1).item()
        def recipe():
            raise RuntimeError(drawn)
        """,
        parts=False,
    )
    first = kdkit_here("run", path)
    refused(first, "RuntimeError: (0.")
    torch.rand(3)
    assert kdkit_here("run", path, "--seed", 7) == first


def test_a_file_stays_importable_under_its_own_name_for_workers(written, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = read_recipe_file(written("def recipe(): ...", "one_of_its_own.py", parts=False))
    assert file.module.__name__ == "one_of_its_own"
    assert importlib.import_module("one_of_its_own") is file.module
    assert str(tmp_path) in sys.path


@pytest.mark.parametrize("name", ["wave.py", "json.py", "kdkit_ecg.py", "kdkit.py", "my recipe.v2.py"])
def test_a_file_of_another_modules_name_is_not_in_its_way(name, written, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = written("def recipe(): ...", name, parts=False)
    file = read_recipe_file(path)
    assert file.module.__name__ == f"kdkit_recipe_{path.stem}"
    assert str(tmp_path) not in sys.path
    if path.stem.isidentifier():
        assert Path(str(importlib.import_module(path.stem).__file__)) != path


def test_a_file_that_cannot_be_read_leaves_no_module_behind(written, tmp_path):
    before = set(sys.modules), list(sys.path)
    with pytest.raises(RecipeError):
        read_recipe_file(written("1 / 0", "broken_one.py", parts=False))
    assert "broken_one" not in set(sys.modules) - before[0]
    assert sys.path == before[1]


@pytest.mark.slow
def test_workers_that_are_spawned_find_what_the_file_defines(kdkit_process, written, tmp_path):
    (tmp_path / "recipes").mkdir()  # not where the command is called, which Python looks in anyhow
    path = written(
        """
        import multiprocessing
        from torch.utils.data import Dataset

        class Mine(Dataset):
            def __len__(self):
                return 6
            def __getitem__(self, row):
                return torch.full((6,), float(row)), row % 3

        def recipe() -> Recipe:
            multiprocessing.set_start_method("spawn", force=True)
            training = Training(epochs=1, batch_size=3, workers=1)
            return Recipe(
                data=TorchData(Mine(), Mine(), classes=("a", "b", "c")),
                schedule=[Stage({Net("s", Wide()): truth()}, training)],
            )
        """,
        "recipes/mine.py",
    )
    said = kdkit_process("run", path, "--device", "cpu", "--out", "run")
    assert said.code == 0, said
    assert "Scores on select" in said.out


MARKED = """
    def recipe() -> Recipe:
        teacher, student = Net("teacher", Wide(7), trained=True), Net("student", Wide(4))

        class Listed(kdkit.metrics.Accuracy().__class__):
            name = "[/score]"

        objective = Truth(nn.CrossEntropyLoss(), label="[/x]") + Match(teacher, SoftTargets(), label="[kd] :x:")
        schedule = [Stage({student: objective}, Training(epochs=1, batch_size=8))]
        return Recipe(data=given(), schedule=schedule, metrics=(Listed(),), name="[b]mine[/b]")
"""


def test_names_in_brackets_show_as_they_are(kdkit_here, written):
    path = written(MARKED)
    said = kdkit_here("check", path)
    assert said.code == 0, said
    assert "1 x [/x]: " in said.out
    assert "1 x [kd] :x:: " in said.out
    said = kdkit_here("run", path, "--out", "run")
    assert said.code == 0, said
    for word in ("[b]mine[/b]: student", "[/x] ", "[kd] :x: ", "validation [/score] ", " [/score] ┃"):
        assert word in said.out, said.out


@pytest.mark.parametrize(("precision", "code"), [("fp32", 0), ("bf16", 0), ("foo", 2)])
def test_a_plan_is_checked_in_the_precision_of_the_run(precision, code, kdkit_here, written):
    said = kdkit_here("check", written(GOOD), "--precision", precision)
    assert said.code == code, said
    assert code == 0 or "fp32, bf16, fp16" in said.err


def test_check_prints_the_plan_and_trains_nothing(kdkit_here, written, tmp_path):
    said = kdkit_here("check", written(GOOD))
    assert said.code == 0, said
    for word in ("1. teacher", "2. student", "labels, teacher", "body (4, 4)", "teacher body (4, 7)", "Hint"):
        assert word in said.out, said.out
    assert "trains 35 parameters of its own" in said.out
    parameters = sum(each.numel() for each in [*nn.Linear(6, 7).parameters(), *nn.Linear(7, 3).parameters()]) + 6
    assert str(parameters) in said.out
    assert "no problems found" in said.out
    assert everything(tmp_path) == {"mine.py"}


def test_run_prints_a_line_an_epoch_and_a_table_and_keeps_all_in_a_folder(kdkit_here, written, tmp_path):
    said = kdkit_here("run", written(GOOD), "--epochs", 2, "--seed", 5, "--device", "cpu")
    assert said.code == 0, said
    assert said.out.count("epoch   1") == said.out.count("epoch   2") == 2
    assert "Scores on test" in said.out
    (run,) = (tmp_path / "runs").glob("mine-*")
    assert run.name.startswith("mine-")
    assert str(run.relative_to(tmp_path)) in said.out
    assert {"recipe.py", "run.json", "metrics.json", "1-teacher", "2-student"} <= {each.name for each in run.iterdir()}
    record = json.loads((run / "run.json").read_text())
    assert (record["options"], record["seed"], record["device"]) == ({"epochs": "2"}, 5, "cpu")
    assert len((run / "2-student" / "history.jsonl").read_text().splitlines()) == 2
    assert not [each for each in everything(run) if "/." in each or each.startswith(".")]


def test_quiet_prints_nothing(kdkit_here, written):
    said = kdkit_here("run", written(GOOD), "--quiet", "--out", "run")
    assert (said.code, said.out, said.err) == (0, "", "")


def test_list_names_the_plugin_of_each_thing(kdkit_here, written):
    said = kdkit_here("list")
    assert said.code == 0
    rows = {line.split()[0]: line.split()[1] for line in said.out.splitlines() if len(line.split()) > 1}
    assert (rows["soft_targets"], rows["lrhnet"], rows["accuracy"]) == ("kdkit", "ecg", "kdkit")
    path = written(
        """
        @kdkit.hookimpl
        def register_losses(register):
            register("of_mine", lambda student, target: (student - target).mean())
        def recipe(): ...
        """
    )
    assert any(line.split()[:2] == ["of_mine", "mine.py"] for line in kdkit_here("list", path).out.splitlines())


def test_a_plugin_file_with_a_taken_name_is_refused(kdkit_here, written):
    path = written(
        """
        @kdkit.hookimpl
        def register_losses(register):
            register("hint", lambda student, target: (student - target).mean())
        def recipe():
            return kdkit.registry("losses")["hint"]
        """
    )
    refused(kdkit_here("list", path), "'hint'", "'mine.py'", "'kdkit' already has", "choose another name")
    refused(kdkit_here("run", path), "'hint'", "'mine.py'")


def test_python_m_kdkit_is_kdkit(kdkit_process, written):
    said = kdkit_process("check", written(GOOD))
    assert said.code == 0, said
    assert "no problems found" in said.out
    script = Path(sys.executable).with_name("kdkit")
    if script.exists():
        done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True, env=environment())
        assert done.stdout == kdkit_process("--version").out


def test_a_mistake_in_a_process_of_its_own_exits_with_2(kdkit_process, written, tmp_path):
    said = kdkit_process("run", written("def recipe():\n    return 3"))
    refused(said, "error: ", "returns a int")
    assert everything(tmp_path) == {"mine.py"}


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["run", "--help"], []], ids=" ".join)
def test_help_does_without_torch(args):
    code = (
        f"import sys, kdkit.cli.main; kdkit.cli.main.call({args!r}); "
        "print([each for each in ('torch', 'timm', 'sklearn', 'numpy') if each in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment(), timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"
