"""Tests of the command line: options, output, and that every mistake is reported in one message and writes no file."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path, PosixPath, WindowsPath
from textwrap import dedent

import pytest
import torch
from torch import nn

from kdkit import RecipeError, registry
from kdkit.plugins.recipe_file import read_recipe_file
from tests.helpers.command_line import ROOT, CommandResult, environment

EXAMPLE = ROOT / "examples" / "lrhnet_smlkd.py"

SHARED = """
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

    def tiny_data():
        with torch.random.fork_rng():
            return TorchData(tensors(24, 0), tensors(12, 1), tensors(12, 2), classes=("a", "b", "c"))

    class Wide(nn.Module):
        def __init__(self, width=5):
            super().__init__()
            self.body, self.idle, self.head = nn.Linear(6, width), nn.Linear(2, 2), nn.Linear(width, 3)
        def forward(self, x):
            return self.head(self.body(x).relu())

    def truth(label="truth"):
        return Truth(nn.CrossEntropyLoss(), label)

    def single_stage(objectives, training=None):
        return Recipe(data=tiny_data(), schedule=[Stage(objectives, training or Training(epochs=1, batch_size=8))])
"""

GOOD = """
    def recipe(epochs: int = 1) -> Recipe:
        teacher, student = Net("teacher", Wide(7)), Net("student", Wide(4))
        return Recipe(
            data=tiny_data(),
            schedule=Sequential(
                teacher, student, truth=truth(), training=Training(epochs=epochs, batch_size=8),
                match=lambda net, master: Match(
                    master, Hint(), student=Tap(net.module.body), target=Tap(master.module.body)
                ),
            ),
        )
"""


@pytest.fixture
def write_recipe(tmp_path):
    """Write a recipe file of a body, after the definitions that all recipes here share."""

    def write(body: str, name: str = "mine.py", *, shared: bool = True) -> Path:
        path = tmp_path / name
        path.write_text((dedent(SHARED) if shared else "") + dedent(body))
        return path

    return write


def files_in(folder: Path) -> set[str]:
    """Return all files and folders below a folder, as relative paths."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


def assert_refused(result: CommandResult, *words: str) -> None:
    """Assert that a command failed with exit code 2 and these words in its error, without a traceback."""
    assert result.code == 2, result
    assert "Traceback" not in result.err + result.out
    for word in words:
        assert word in result.err, f"{word!r} is not in: {result.err}"


# Recipe files that cannot be read: the text of the file, and words of the error

FILES = {
    "no recipe function": ("x = 1", ["no function recipe()"]),
    "a misspelt recipe function": ("def recipee(): ...", ["no function recipe()", "'recipee'"]),
    "a syntax error": ("x = 1\ndef recipe(:\n    pass", ["bad.py, line 2", "def recipe(:"]),
    "an error on import": ("x = 1\n\n1 / 0", ["bad.py, line 3", "ZeroDivisionError", "reading it raises"]),
    "an import of a missing package": ("import no_such_package", ["bad.py, line 1", "no_such_package"]),
    "an exit on import": ("import sys\nsys.exit(0)", ["SystemExit", "recipe() must return a Recipe"]),
    "an error in recipe()": ("def recipe():\n    return {}['x']", ["bad.py, line 2", "recipe() raises KeyError"]),
    "another type returned": ("def recipe():\n    return 3", ["returns a int", "kdkit.Recipe"]),
    "nothing returned": ("def recipe():\n    ...", ["NoneType", "kdkit.Recipe"]),
    "a coroutine returned": ("async def recipe(): ...", ["returns a coroutine", "kdkit.Recipe"]),
    "a null byte in the text": ("x = 1\0", ["null bytes"]),
    "a parameter without a type": ("def recipe(width=3): ...", ["'width'", "no type", "width: int"]),
    "a bool with a number as its default": ("def recipe(ema: bool = 1): ...", ["'ema' of recipe() is a bool", "is 1;"]),
    "a path with a number as its default": (
        "from pathlib import Path\ndef recipe(files: tuple[Path, ...] = (5,)): ...",
        ["'files' of recipe() is a tuple[pathlib.Path, ...]", "is (5,);"],
    ),
    "a parameter of another type": ("def recipe(net: object = None): ...", ["'net'", "int, float, str, bool, Path"]),
    "a parameter of two types": ("def recipe(n: int | str = 1): ...", ["'n'", "int, float, str, bool, Path"]),
    "a parameter of an unknown type": ("def recipe(n: 'Undefined' = 1): ...", ["type of a parameter", "Undefined"]),
    "a parameter of a type that is not an expression": ("def recipe(n: 'a number' = 1): ...", ["type of a parameter"]),
    "a parameter of a type that torch does not have": (
        "import torch\ndef recipe(n: 'torch.Intt' = 1): ...",
        ["type of a parameter", "Intt"],
    ),
    "a parameter of an invalid type": ("def recipe(n: '1 | 2 | int[3]' = 1): ...", ["type of a parameter"]),
    "parameters without names": ("def recipe(*many: int): ...", ["named parameters", "*many"]),
    "a misspelt hook": (
        "import kdkit\n@kdkit.hookimpl\ndef epoch_end(event): ...\ndef recipe(): ...",
        ["'epoch_end'", "did you mean 'epoch_ended'"],
    ),
    "a hook with other arguments": (
        "import kdkit\n@kdkit.hookimpl\ndef epoch_ended(epoch): ...\ndef recipe(): ...",
        ["'bad.py'", "epoch"],
    ),
    "a misspelt name of a loss": (
        "import kdkit\ndef recipe():\n    return kdkit.registry('losses')['soft_target']()",
        ["'soft_target' is not among the losses", "did you mean 'soft_targets'"],
    ),
    "a misspelt registry": ("import kdkit\ndef recipe():\n    kdkit.registry('loses')", ["'loses'", "'losses'"]),
    "a misspelt name of kdkit": ("from kdkit import Netz\ndef recipe(): ...", ["bad.py, line 1", "Netz"]),
    "a binary file": ("\0\0", ["bad.py"]),
}
# The options of `kdkit run` and `kdkit check`, which a recipe must not have.
FILES |= {
    f"a parameter called {name}": (f"def recipe({name}: int = 3): ...", [f"'{name}'", "choose another"])
    for name in ("seed", "out", "device", "compile", "precision", "resume", "quiet", "help", "file")
}


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize("case", FILES)
def test_a_file_without_a_valid_recipe_is_refused(case, command, kdkit_here, write_recipe, tmp_path):
    text, words = FILES[case]
    path = write_recipe(text, "bad.py", shared=False)  # alone, so that line numbers are those of the text
    before = files_in(tmp_path)
    assert_refused(kdkit_here(command, path), *words)
    assert files_in(tmp_path) == before


def test_the_line_is_named_for_any_form_of_the_path(kdkit_here, write_recipe):
    write_recipe("def recipe():\n    raise ValueError('of mine')", "bad.py", shared=False)
    assert_refused(kdkit_here("run", "bad.py"), "bad.py, line 2", "ValueError: of mine")
    assert_refused(kdkit_here("run", "./../" + Path.cwd().name + "/bad.py"), "line 2")


def test_a_syntax_error_in_an_imported_file_names_that_file(kdkit_here, write_recipe):
    write_recipe("x = = 2", "helper_of_mine.py", shared=False)
    path = write_recipe("\n\nimport helper_of_mine", "bad.py", shared=False)
    assert_refused(kdkit_here("run", path), "helper_of_mine.py, line 1", "x = = 2")


def test_a_recipe_file_whose_name_begins_with_a_dash_follows_two_dashes(kdkit_here, write_recipe):
    write_recipe("def recipe():\n    return single_stage({Net('student', Wide()): truth()})", "-dash.py")
    result = kdkit_here("run", "--out", "run", "--quiet", "--no-measure", "--", "-dash.py")
    assert result.code == 0, result.err
    for options in ([], ["--teacher-cache", "run"]):  # the second one has the name of the folder as its value
        resumed = kdkit_here("run", "--resume", "run", "--quiet", *options)
        assert resumed.code == 0, resumed.err


def test_the_notes_of_an_error_are_printed_but_no_traceback_among_them(kdkit_here, monkeypatch):
    def end(*_args):
        error = RecipeError("the quota is used up")
        error.add_note("callback 'Quota' raised this in its epoch_ended to end the run")
        error.add_note("In the process that ran the trial:\nTraceback ...")
        raise error

    monkeypatch.setattr("kdkit.report.card.write_card", end)
    result = kdkit_here("card", "run")
    assert result.code == 2
    assert result.err.splitlines() == [
        "error: the quota is used up",
        "callback 'Quota' raised this in its epoch_ended to end the run",
    ]


def test_a_path_that_is_not_a_python_file_is_refused(kdkit_here, tmp_path):
    assert_refused(kdkit_here("run", "nowhere.py"), "nowhere.py", "no such recipe file")
    assert_refused(kdkit_here("run", "-"), "-: there is no such recipe file")  # stdin is no file
    (tmp_path / "mine.py").touch()
    assert_refused(kdkit_here("run", "mien.py"), "no such recipe file; did you mean mine.py?")
    assert_refused(kdkit_here("run", tmp_path), "is a folder; a recipe is a Python file")
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "run.json").touch()
    assert_refused(
        kdkit_here("run", tmp_path / "first"), f"to resume the run in it: kdkit run --resume {tmp_path / 'first'}"
    )
    (tmp_path / "first").rename(tmp_path / "my first")
    assert_refused(kdkit_here("run", "my first"), "kdkit run --resume 'my first'")  # one argument of a shell
    (tmp_path / "my first").rename(tmp_path / "first")
    (tmp_path / "notes.txt").write_text("x")
    assert_refused(kdkit_here("run", "notes.txt"), "a recipe file ends in .py")
    assert_refused(kdkit_here("run"), "Missing argument 'FILE'")
    assert_refused(kdkit_here("run", "--resume"), "--resume needs the folder of a run: kdkit run --resume FOLDER")
    assert_refused(kdkit_here("run", "--resume", "nowhere"), "there is no folder nowhere; there are: first")
    assert_refused(kdkit_here("runn"), "No such command 'runn'")
    assert_refused(kdkit_here("list", "nowhere.py"), "no such recipe file")
    assert_refused(kdkit_here("list", "loss"), "neither a recipe file nor a kind of the list", "did you mean 'losses'?")


# Recipes with problems: the body of recipe(), and words of the error

EXPERIMENTS = {
    "a tap that never fires": (
        """
        t, s = Net("t", Wide(), trained=True), Net("s", Wide())
        return single_stage({s: Match(t, Hint(), student=Tap(s.module.idle), target=Tap(t.module.body))})
        """,
        ["never fired", "net 's'", "tap a module that does"],
    ),
    "a tap of another net": (
        """
        t, s = Net("t", Wide(), trained=True), Net("s", Wide())
        return single_stage({s: Match(t, Hint(), student=Tap(t.module.body), target=Tap(t.module.body))})
        """,
        ["student tap", "not a part of net 's'"],
    ),
    "shapes that cannot meet": (
        """
        t, s = Net("t", Wide(7), trained=True), Net("s", Wide(4))
        return single_stage({s: Match(t, nn.MSELoss(), student=Tap(s.module.body), target=Tap(t.module.body))})
        """,
        ["(4, 4)", "(4, 7)"],
    ),
    "outputs that are not the classes": (
        """
        return single_stage({Net("s", nn.Linear(6, 4)): truth()})
        """,
        ["net 's' has outputs of shape (batch, 4)", "3 classes need (batch, 3)"],
    ),
    "inputs that a net cannot take": (
        """
        return single_stage({Net("s", nn.Linear(5, 3)): truth()})
        """,
        ["net 's' fails for its inputs", "(4, 6)"],
    ),
    "two terms of one name": (
        """
        return single_stage({Net("s", Wide()): truth() + truth(label="one") + truth(label="one")})
        """,
        ["2 terms are called 'one'", "label="],
    ),
    "two nets of one name": (
        """
        return Recipe(data=tiny_data(), schedule=Sequential(
            Net("s", Wide()), Net("s", Wide()), truth=truth(), kd_loss=SoftTargets(), training=Training(epochs=1)))
        """,
        ["2 nets are called 's'"],
    ),
    "a net matched to itself": (
        """
        s = Net("s", Wide())
        return single_stage({s: truth() + Match(s, SoftTargets())})
        """,
        ["net 's' is trained in this stage, so it cannot be matched"],
    ),
    "an untrained teacher": (
        """
        t, s = Net("t", Wide()), Net("s", Wide())
        return single_stage({s: truth() + Match(t, SoftTargets())})
        """,
        ["net 't' teaches, but it is not trained in an earlier stage", "weights=FILE"],
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
    "an unknown metric": (
        """
        return single_stage({Net("s", Wide()): truth()}, Training(epochs=1, monitor="acuracy"))
        """,
        ["'acuracy'", "did you mean 'accuracy'"],
    ),
    "an unknown option of an optimizer": (
        """
        optimizer = Optimizer(torch.optim.Adam, lrr=1)
        return single_stage({Net("s", Wide()): truth()}, Training(epochs=1, optimizer=optimizer))
        """,
        ["Adam has no option 'lrr'", "did you mean 'lr'"],
    ),
    "no epochs": ("""Training(epochs=0)""", ["epochs must be an integer of at least 1", "got 0"]),
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
def test_a_recipe_with_a_problem_is_refused(case, command, kdkit_here, write_recipe, tmp_path):
    body, words = EXPERIMENTS[case]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    head = f"from pathlib import Path\nkdkit_test_folder = Path({str(elsewhere)!r})\n\ndef recipe():\n"
    path = write_recipe("", "bad.py")
    path.write_text(path.read_text() + head + "".join(f"    {line}\n" for line in dedent(body).strip().splitlines()))
    out = ["--out", tmp_path / "out"] if command == "run" else []
    assert_refused(kdkit_here(command, path, *out), *words)
    written = {path for path in files_in(tmp_path) if not path.startswith("elsewhere")}
    assert written == {"bad.py"}


def test_all_problems_are_reported_at_once(kdkit_here, write_recipe):
    path = write_recipe(
        """
        def recipe():
            t, s = Net("t", Wide()), Net("s", Wide())
            tap = Match(t, Hint(), student=Tap(t.module.body), target=Tap(t.module.body))
            return single_stage({s: truth(label="one") + truth(label="one") + tap})
        """
    )
    result = kdkit_here("check", path)
    assert_refused(
        result, "3 problems found", "teaches, but it is not trained", "not a part of net 's'", "2 terms are called"
    )


# Options that are not valid: arguments after the file, and words of the error

OPTIONS = {
    "unknown": (["--epoch", "3"], ["--epoch", "--epochs"]),
    "of the wrong type": (["--epochs", "many"], ["'many' is not a valid integer"]),
    "without a value": (["--epochs"], ["requires an argument"]),
    "too small": (["--epochs", "-3"], ["epochs must be an integer of at least 1", "-3"]),
    "zero": (["--epochs", "0"], ["epochs must be an integer of at least 1", "got 0"]),
    "cuda": (["--device", "cuda"], ["'cuda' is not available", "cpu"]),
    "a device that does not exist": (["--device", "foo"], ["'foo' is not available", "cpu"]),
    "a device index that does not exist": (["--device", "cuda:99"], ["'cuda:99' is not available", "cpu"]),
    "a device without memory": (["--device", "meta"], ["'meta'", "choose 'cpu'"]),
    "a device whose module is missing": (["--device", "hpu"], ["'hpu' is not available"]),
    "precision": (["--precision", "foo"], ["bf16, fp16, fp32", "'foo'"]),
    "a folder's name that is too long": (["--out", "x" * 300], ["cannot be written", "--out FOLDER"]),
    "a folder below a file": (["--out", "mine.py/run"], ["cannot be written", "mine.py is a file"]),
    "a negative seed": (["--seed", "-1"], ["-1", "x>=0"]),
    "a seed too large": (["--seed", str(2**70)], ["seed"]),
    "a seed in words": (["--seed", "x"], ["'x' is not a valid integer"]),
    "resuming nothing": (["--resume"], ["to resume", "pass the run folder"]),
    "resuming a folder that does not exist": (
        ["--resume", "--out", "nowhere"],
        ["there is no run in nowhere to resume; to start one, leave out --resume, or resume=True"],
    ),
    "two files": (["other.py"], ["unexpected extra argument"]),
}
if torch.cuda.is_available():  # then "cuda" is a valid device
    del OPTIONS["cuda"]


@pytest.mark.parametrize("case", OPTIONS)
def test_an_invalid_option_is_refused(case, kdkit_here, write_recipe, tmp_path):
    options, words = OPTIONS[case]
    path = write_recipe(GOOD)
    assert_refused(kdkit_here("run", path, *options), *words)
    assert files_in(tmp_path) == {"mine.py"}


@pytest.mark.parametrize(
    ("options", "words"),
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
def test_the_first_example_refuses_invalid_options(options, words, kdkit_here, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.txt").write_text("")
    assert_refused(kdkit_here("run", EXAMPLE, *options), *words)
    assert files_in(tmp_path) == {"empty", "mine.txt"}


def test_a_run_folder_is_never_overwritten(kdkit_here, write_recipe, tmp_path):
    path = write_recipe(GOOD)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    assert_refused(kdkit_here("run", path, "--out", taken), "exists and is not a run folder", "choose a path that")
    assert files_in(taken) == {"thesis.txt"}
    assert_refused(kdkit_here("run", path, "--out", taken / "thesis.txt"), "exists and is not a run folder")
    assert_refused(kdkit_here("run", path, "--out", taken / "thesis.txt" / "below"), "cannot be written")
    assert_refused(kdkit_here("run", path, "--out", taken, "--resume"), "holds no run: there is no run.json in it")
    assert (taken / "thesis.txt").read_text() == "mine"
    assert kdkit_here("run", path, "--out", "run").code == 0
    before = {file: (tmp_path / "run" / file).stat().st_mtime_ns for file in files_in(tmp_path / "run")}
    assert_refused(kdkit_here("run", path, "--out", "run"), "already holds a run", "--resume")
    assert before == {file: (tmp_path / "run" / file).stat().st_mtime_ns for file in files_in(tmp_path / "run")}


# Commands that succeed

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
        with open("arguments.txt", "w") as file:
            file.write(repr(locals() | {"file": None}))
        raise RuntimeError("that is all")
"""


def call_typed(kdkit_here, write_recipe, before=(), after=()):
    """Run the recipe with options before and after its file, and return the arguments that recipe() got."""
    path = write_recipe(TYPED)
    result = kdkit_here("run", *before, path, *after)
    assert "that is all" in result.err, result
    names = {"PosixPath": PosixPath, "WindowsPath": WindowsPath, "Path": Path}
    return eval(Path("arguments.txt").read_text(), names)


def test_recipe_gets_its_defaults_unchanged(kdkit_here, write_recipe):
    arguments = call_typed(kdkit_here, write_recipe)
    assert (arguments["whole"], arguments["part"], arguments["text"]) == (1, 0.5, "as it is")
    assert (arguments["flag"], arguments["on"], arguments["either"]) == (False, True, None)
    assert (arguments["word"], arguments["count"]) == ("red", 12)
    assert (arguments["where"], arguments["somewhere"], arguments["maybe"]) == (Path("here"), None, None)
    assert (arguments["many"], arguments["none_or_many"], tuple(arguments["several"])) == ((1, 2), None, ("x",))


@pytest.mark.parametrize("position", ["before", "after"])
def test_recipe_gets_options_of_every_type(position, kdkit_here, write_recipe):
    options = ["--whole", "7", "--part", "2.5e-1", "--text=--odd", "--flag", "--no-on", "--where", "a/b"]
    options += ["--word", "green", "--count", "6", "--maybe", "0", "--somewhere", "c", "--either", "--many", "4"]
    options += ["--many", "5", "--none-or-many", "0.25", "--several", "y", "--several", "x", "--two-words", "w"]
    arguments = call_typed(kdkit_here, write_recipe, **{position: options})
    assert (arguments["whole"], arguments["part"], arguments["text"]) == (7, 0.25, "--odd")
    assert (arguments["flag"], arguments["on"], arguments["either"]) == (True, False, True)
    assert (arguments["word"], arguments["count"]) == ("green", 6)
    assert isinstance(arguments["count"], int)
    assert (arguments["where"], arguments["somewhere"], arguments["maybe"]) == (Path("a/b"), Path("c"), 0)
    assert (arguments["many"], arguments["none_or_many"], tuple(arguments["several"])) == ((4, 5), (0.25,), ("y", "x"))
    assert arguments["two_words"] == "w"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("--count 5", "'12', '6', '3'"),
        ("--word blue", "'red', 'green'"),
        ("--many x", "valid integer"),
        ("--part x", "float"),
    ],
)
def test_values_of_a_wrong_type_are_refused(options, word, kdkit_here, write_recipe, tmp_path):
    assert_refused(kdkit_here("run", write_recipe(TYPED), *options.split()), word)
    assert files_in(tmp_path) == {"mine.py"}


def test_a_parameter_without_a_default_is_required(kdkit_here, write_recipe):
    path = write_recipe("def recipe(size: int): raise RuntimeError(size)", shared=False)
    assert_refused(kdkit_here("run", path), "--size")
    assert_refused(kdkit_here("run", path, "--size", 4), "RuntimeError: 4")


def test_none_is_a_value_of_a_parameter_that_may_be_none(kdkit_here, write_recipe):
    path = write_recipe(
        """
        from typing import Literal

        def recipe(
            size: int | None, many: tuple[int, ...] | None = (1,), text: str | None = "x",
            word: Literal["none"] = "none",
        ):
            raise RuntimeError([size, many, text, word])
        """
    )
    options = ("--size", "none", "--many", "none", "--text", "None", "--word", "none")
    assert_refused(kdkit_here("run", path, *options), "RuntimeError: [None, None, None, 'none']")
    assert_refused(kdkit_here("run", path, "--size", 4), "RuntimeError: [4, (1,), 'x', 'none']")
    assert_refused(
        kdkit_here("run", path, "--size", 4, "--many", 2, "--many", "none"), "--many takes either none or values"
    )
    assert_refused(kdkit_here("run", path, "--size", "no"), "'no' is not a valid integer")
    assert "--size INTEGER|none" in kdkit_here("run", path, "--help").out


def test_the_help_of_a_file_has_its_parameters_and_its_docstring(kdkit_here, write_recipe):
    path = write_recipe(TYPED)
    path.write_text('"""Teach the small one.\n\nIn two steps.\n"""\n' + path.read_text())
    result = kdkit_here("run", path, "--help")
    assert result.code == 0
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
        "--seed N",
    ):
        assert word in result.out, result.out
    assert kdkit_here("run", "--help", path).out == result.out
    assert "--whole" not in kdkit_here("run", "--help").out


@pytest.mark.parametrize("name", ["ecg.py", "kdkit.py", "my recipe.v2.py"])
def test_a_recipe_file_may_have_the_name_of_a_plugin(name, kdkit_here, write_recipe):
    assert kdkit_here("check", write_recipe(GOOD, name)).code == 0


def test_a_file_can_be_read_twice_in_one_process(kdkit_here, write_recipe):
    path = write_recipe(GOOD)
    for _ in range(2):
        result = kdkit_here("check", path)
        assert result.code == 0, result


def test_a_value_that_ends_in_py_is_not_mistaken_for_the_file(kdkit_here, write_recipe):
    path = write_recipe("def recipe(script: str = ''): raise RuntimeError(script)", shared=False)
    # `--script` is not known before the file is read, so the path that exists is taken for the file.
    assert_refused(kdkit_here("run", "--script", "other.py", path), "RuntimeError: other.py")
    assert_refused(kdkit_here("run", path, "--script", "other.py"), "RuntimeError: other.py")
    assert_refused(kdkit_here("run", "--script", "other.py", "nowhere.py"), "no such recipe file")


def test_random_numbers_that_a_file_draws_outside_of_recipe_do_not_vary(kdkit_here, write_recipe):
    path = write_recipe(
        """
        import random
        import numpy
        import torch
        drawn = random.random(), numpy.random.random(), torch.rand(1).item()
        def recipe():
            raise RuntimeError(drawn)
        """,
        shared=False,
    )
    first = kdkit_here("run", path)
    assert_refused(first, "RuntimeError: (0.")
    torch.rand(3)  # changes the random state of this process
    assert kdkit_here("run", path, "--seed", 7) == first


def test_a_file_stays_importable_by_its_name_for_data_loader_workers(write_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = read_recipe_file(write_recipe("def recipe(): ...", "free_name.py", shared=False))
    assert file.module.__name__ == "free_name"
    assert importlib.import_module("free_name") is file.module
    assert str(tmp_path) in sys.path


@pytest.mark.parametrize("name", ["wave.py", "json.py", "kdkit_ecg.py", "kdkit.py", "my recipe.v2.py"])
def test_a_file_with_the_name_of_another_module_does_not_hide_it(name, write_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = write_recipe("def recipe(): ...", name, shared=False)
    file = read_recipe_file(path)
    assert file.module.__name__ == f"kdkit_recipe_{path.stem}"
    assert str(tmp_path) not in sys.path  # where `import json` would find this file
    if path.stem.isidentifier():
        assert Path(str(importlib.import_module(path.stem).__file__)) != path


def test_a_file_that_cannot_be_read_leaves_no_module(write_recipe, tmp_path):
    before = set(sys.modules), list(sys.path)
    with pytest.raises(RecipeError):
        read_recipe_file(write_recipe("1 / 0", "broken_name.py", shared=False))
    assert "broken_name" not in set(sys.modules) - before[0]
    assert sys.path == before[1]


@pytest.mark.slow
def test_spawned_data_loader_workers_import_the_recipe_file(kdkit_process, write_recipe, tmp_path):
    (tmp_path / "recipes").mkdir()  # not the working directory, from which Python imports in any case
    path = write_recipe(
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
    result = kdkit_process("run", path, "--device", "cpu", "--out", "run")
    assert result.code == 0, result
    assert "Metrics on validation" in result.out


MARKED = """
    def recipe() -> Recipe:
        teacher, student = Net("teacher", Wide(7), trained=True), Net("student", Wide(4))

        class Listed(kdkit.metrics.Accuracy().__class__):
            name = "[/score]"

        objective = Truth(nn.CrossEntropyLoss(), label="[/x]") + Match(teacher, SoftTargets(), label="[kd] :x:")
        schedule = [Stage({student: objective}, Training(epochs=1, batch_size=8))]
        return Recipe(data=tiny_data(), schedule=schedule, metrics=(Listed(),), name="[b]mine[/b]")
"""


def test_names_with_brackets_are_printed_unchanged(kdkit_here, write_recipe):
    path = write_recipe(MARKED)
    result = kdkit_here("check", path)
    assert result.code == 0, result
    assert "1 x [/x]: " in result.out
    assert "1 x [kd] :x:: " in result.out
    result = kdkit_here("run", path, "--out", "run")
    assert result.code == 0, result
    for word in ("[b]mine[/b]: student", "[/x] ", "[kd] :x: ", "validation [/score] ", " [/score] ┃"):
        assert word in result.out, result.out


@pytest.mark.parametrize(("precision", "code"), [("fp32", 0), ("bf16", 0), ("foo", 2)])
def test_a_plan_is_checked_in_the_precision_of_the_run(precision, code, kdkit_here, write_recipe):
    result = kdkit_here("check", write_recipe(GOOD), "--precision", precision)
    assert result.code == code, result
    assert code == 0 or "bf16, fp16, fp32" in result.err


def test_check_prints_the_plan_without_training(kdkit_here, write_recipe, tmp_path):
    result = kdkit_here("check", write_recipe(GOOD))
    assert result.code == 0, result
    for word in ("1. teacher", "2. student", "labels, teacher", "body (4, 4)", "teacher body (4, 7)", "Hint"):
        assert word in result.out, result.out
    # The projector of the hint, from 4 to 7 channels: 4 x 7 weights and 7 biases.
    assert "student body (4, 4) <- teacher body (4, 7) by Hint" in result.out
    assert ", trains 35 parameters" in result.out
    # Of the teacher: body and head, and "idle" of 2 x 2 weights and 2 biases.
    modules = nn.Linear(6, 7), nn.Linear(7, 3)
    parameters = sum(parameter.numel() for module in modules for parameter in module.parameters()) + 6
    assert str(parameters) in result.out
    assert "no problems found" in result.out
    assert files_in(tmp_path) == {"mine.py"}


def test_a_plan_has_multiply_adds_times_projectors_and_cached_outputs_in_lines_of_100_columns(kdkit_here, write_recipe):
    path = write_recipe(GOOD)
    result = kdkit_here("check", path, "--epochs", 2)  # so that outputs are needed again
    assert "multiply-adds for one sample: student" in result.out
    assert "per epoch of" in result.out
    assert "about" in result.out
    assert "on the CPU" in result.out
    assert "Projector (4, 4) -> (4, 7), 35 parameters" in result.out
    assert re.search(r"the outputs of teacher will be cached in runs/teacher_cache, [\d.]+ [kM]?B\b", result.out)
    assert max(map(len, result.out.splitlines())) <= 100
    result = kdkit_here("check", path, "--epochs", 2, "--teacher-cache", "off")
    assert "its outputs are not cached, because the cache is off" in " ".join(result.out.replace("│", " ").split())


def test_check_advises_which_layers_to_pair(kdkit_here, write_recipe):
    result = kdkit_here("check", write_recipe(GOOD), "--pairs")
    assert result.code == 0, result
    assert "Layers of student and teacher" in result.out
    assert "student=Tap(student.module.body), target=Tap(teacher.module.body)" in result.out
    assert "a projector 4 -> 7" in result.out
    assert "note: CKA was computed with the initial weights of student and teacher" in result.out
    assert max(map(len, result.out.splitlines())) <= 100


def test_check_draws_the_plan_also_if_it_has_problems(kdkit_here, write_recipe, tmp_path):
    result = kdkit_here("check", write_recipe(GOOD), "--svg", "plans/mine.svg")
    assert result.code == 0, result
    assert "saved to plans/mine.svg" in result.out
    drawing = (tmp_path / "plans" / "mine.svg").read_text()
    assert drawing.startswith("<svg")
    assert "CrossEntropyLoss" in drawing
    assert kdkit_here("check", write_recipe(GOOD), "--svg", "mine.py/plan.svg").code == 2
    broken = write_recipe(GOOD.replace("Tap(net.module.body)", "Tap(master.module.body)"))
    assert kdkit_here("check", broken, "--svg", "broken.svg").code == 2
    assert "not run, because of a problem" in (tmp_path / "broken.svg").read_text()


def test_run_prints_a_line_per_epoch_and_a_table_and_writes_a_run_folder(kdkit_here, write_recipe, tmp_path):
    result = kdkit_here("run", write_recipe(GOOD), "--epochs", 2, "--seed", 5, "--device", "cpu")
    assert result.code == 0, result
    assert result.out.count("epoch   1") == result.out.count("epoch   2") == 2
    assert "Metrics on test" in result.out
    (run,) = (tmp_path / "runs").glob("mine-*")
    assert run.name.startswith("mine-")
    assert str(run.relative_to(tmp_path)) in result.out
    assert {"recipe.py", "run.json", "metrics.json", "1-teacher", "2-student"} <= {file.name for file in run.iterdir()}
    record = json.loads((run / "run.json").read_text())
    assert (record["options"], record["seed"], record["device"]) == ({"epochs": "2"}, 5, "cpu")
    assert len((run / "2-student" / "history.jsonl").read_text().splitlines()) == 2
    assert not [file for file in files_in(run) if file.endswith(".tmp")]  # temporary files


def test_quiet_prints_nothing(kdkit_here, write_recipe):
    result = kdkit_here("run", write_recipe(GOOD), "--quiet", "--out", "run")
    assert (result.code, result.out, result.err) == (0, "", "")


def test_list_names_the_plugin_of_each_entry(kdkit_here, write_recipe):
    result = kdkit_here("list")
    assert result.code == 0
    rows = {line.split()[0]: line.split()[1] for line in result.out.splitlines() if len(line.split()) > 1}
    assert (rows["soft_targets"], rows["lrhnet"], rows["accuracy"]) == ("kdkit", "ecg", "kdkit")
    path = write_recipe(
        """
        @kdkit.hookimpl
        def register_losses(register):
            register("of_mine", lambda student, target: (student - target).mean())
        def recipe(): ...
        """
    )
    assert any(line.split()[:2] == ["of_mine", "mine.py"] for line in kdkit_here("list", path).out.splitlines())


def test_one_kind_is_listed_alone(kdkit_here):
    lines = kdkit_here("list", "metrics").out.splitlines()
    assert lines[0] == "metrics"
    assert json.loads(kdkit_here("list", "metrics", "--json").out).keys() == {"metrics"}
    assert len(list(filter(None, lines))) - 1 == len(registry("metrics"))


def test_a_recipe_file_that_registers_a_taken_name_is_refused(kdkit_here, write_recipe):
    path = write_recipe(
        """
        @kdkit.hookimpl
        def register_losses(register):
            register("hint", lambda student, target: (student - target).mean())
        def recipe():
            return kdkit.registry("losses")["hint"]
        """
    )
    assert_refused(kdkit_here("list", path), "'hint'", "'mine.py'", "'kdkit' already has", "choose another name")
    assert_refused(kdkit_here("run", path), "'hint'", "'mine.py'")


@pytest.mark.slow
def test_python_m_kdkit_runs_the_command_line(kdkit_process, write_recipe):
    command = [sys.executable, "-m", "kdkit", "check", write_recipe(GOOD)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120, check=False)
    assert done.returncode == 0, done
    assert "no problems found" in done.stdout
    assert all(line.endswith(" ...") for line in done.stderr.splitlines()), done.stderr  # nothing at the exit
    script = Path(sys.executable).with_name("kdkit")
    if script.exists():  # if kdkit is installed, and not only on the path
        done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True, env=environment())
        assert done.stdout == kdkit_process("--version").out


def test_a_mistake_exits_with_2_in_a_child_process(kdkit_process, write_recipe, tmp_path):
    result = kdkit_process("run", write_recipe("def recipe():\n    return 3"))
    assert_refused(result, "error: ", "returns a int")
    assert files_in(tmp_path) == {"mine.py"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full, as Linux has")
@pytest.mark.parametrize("args", [["--version"], ["list"], ["list", "--json"]], ids=" ".join)
def test_output_to_a_full_disk_is_one_message(kdkit_here, monkeypatch, args):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert_refused(kdkit_here(*args), "the output cannot be written: No space left on device; free some space")


def test_ctrl_c_while_the_command_line_is_imported_is_no_traceback(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        dedent("""
        import os, signal, sys

        def interrupt(event, arguments):
            if event == "import" and arguments[0] == "click":
                os.kill(os.getpid(), signal.SIGINT)

        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.addaudithook(interrupt)
        """)
    )
    command = [sys.executable, "-m", "kdkit", "--version"]
    variables = environment(PYTHONPATH=str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["run", "--help"], ["run", "missing.py"], []], ids=" ".join
)
def test_help_and_a_missing_file_do_not_import_torch(args):
    code = (
        f"import sys, kdkit.cli.main; kdkit.cli.main.call({args!r}); "
        "print([name for name in ('torch', 'timm', 'sklearn', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment(), timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_run_whose_data_has_moved_is_exported_with_an_option_of_the_recipe(tmp_path, kdkit_here):
    torch.save((torch.randn(12, 4), torch.arange(12) % 3), tmp_path / "data.pt")
    (tmp_path / "moving.py").write_text(
        "import torch, kdkit\n"
        "from pathlib import Path\n"
        "def recipe(data: Path = Path('data.pt')):\n"
        "    samples = torch.utils.data.TensorDataset(*torch.load(data, weights_only=True))\n"
        "    truth = kdkit.Truth(torch.nn.CrossEntropyLoss())\n"
        "    student = kdkit.Net('student', torch.nn.Linear(4, 3))\n"
        "    stage = kdkit.Stage({student: truth}, kdkit.Training(epochs=1))\n"
        "    return kdkit.Recipe(data=kdkit.TorchData(samples, samples), schedule=[stage])\n"
    )
    assert kdkit_here("run", "moving.py", "--out", "run", "--no-measure", "-q", "--device", "cpu").code == 0
    (tmp_path / "data.pt").rename(tmp_path / "moved.pt")
    assert_refused(kdkit_here("export", "run", "--to", "pt2"), "FileNotFoundError", "data.pt")
    assert_refused(kdkit_here("export", "run", "--to", "pt2", "--dat", "moved.pt"), "No such option '--dat'", "--data")
    assert_refused(kdkit_here("export", "run", "--tolerence", "1"), "'--tolerence'. Did you mean '--tolerance'?")
    assert_refused(kdkit_here("export", "run", "--seed", "1"), "No such option '--seed'")  # one of `kdkit run`
    assert_refused(kdkit_here("export", "--data", "moved.pt", "run"), "RUN comes before --data")
    done = kdkit_here("export", "run", "--to", "pt2", "--data", "moved.pt")
    assert done.code == 0, done.err
    assert "passed its gates" in done.out
    card = tmp_path / "run" / "export" / "student.md"
    assert "other data" not in card.read_text()
    torch.save((torch.randn(12, 4), torch.arange(12) % 3), tmp_path / "other.pt")
    kdkit_here("export", "run", "--to", "pt2", "--data=other.pt")
    assert "scores are of other data or splits than those of the run" in card.read_text()
    code = (tmp_path / "moving.py").read_text()
    assert kdkit_here("run", "moving.py", "--data", "moved.pt", "--out", "two", "-q", "--device", "cpu").code == 0
    (tmp_path / "moving.py").write_text(code.replace("data: Path", "path: Path").replace("load(data", "load(path"))
    refused = kdkit_here("export", "two", "--to", "pt2", "--trust")
    assert_refused(refused, "the run in two was started with --data, but", "has no such option now")


def test_a_warning_of_kdkit_is_one_line_and_one_of_user_code_names_its_line(tmp_path, kdkit_process):
    (tmp_path / "warned.py").write_text(
        "import math, warnings, torch, kdkit\n"
        "class Undefined:\n"
        "    name = 'undefined'\n"
        "    def fit(self, validation): return self\n"
        "    def compute(self, test): return kdkit.MetricResult(value=math.nan)\n"
        "def recipe():\n"
        "    warnings.warn('of the recipe')\n"
        "    samples = torch.utils.data.TensorDataset(torch.randn(8, 4), torch.arange(8) % 2)\n"
        "    truth = kdkit.Truth(torch.nn.CrossEntropyLoss())\n"
        "    student = kdkit.Net('student', torch.nn.Linear(4, 2))\n"
        "    stage = kdkit.Stage({student: truth}, kdkit.Training(epochs=1))\n"
        "    data = kdkit.TorchData(samples, samples)\n"
        "    return kdkit.Recipe(data=data, schedule=[stage], metrics=(Undefined(),))\n"
    )
    done = kdkit_process("run", "warned.py", "--no-measure")
    assert done.code == 0
    (line,) = (line for line in done.err.splitlines() if "was undefined on the validation split" in line)
    assert line.startswith("warning: ")
    assert "trainer.py" not in done.err
    assert "warned.py:7: UserWarning: of the recipe" in done.err
