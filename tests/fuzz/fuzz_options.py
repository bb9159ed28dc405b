"""Call commands with options of any text, on recipe files of any parameters and on run folders of any record.

recipe() raises in the end, so that nothing is trained.
"""

import contextlib
import hashlib
import io
import os
import warnings
from pathlib import Path

from hypothesis import strategies as st

from kdkit.cli.main import call
from kdkit.engine.storage.run_files import FORMAT
from kdkit.plugins.manager import installed
from kdkit.utils.sealed import json_parts
from tests.fuzz.damage import VALUES
from tests.fuzz.meter import for_inputs

MARKER = "marker"  # created by the recipe in a run folder, which is not to be executed
RECIPE = '''
"""A recipe with an option of each type."""
from pathlib import Path
from typing import Literal

def recipe(
    width: int = 8, rate: float = 0.1, name: str = "a", deep: bool = False, file: Path = Path("x"),
    mode: Literal["first", "second"] = "first", leads: Literal[12, 6, 3] = 12, sizes: tuple[int, ...] = (1, 2),
    names: list[str] = (), share: float | None = None, parts: tuple[Path, ...] | None = None,
):
    """Raise an error.

    width: of the net.
    """
    raise ValueError((width, rate, name, deep, file, mode, leads, sizes, names, share, parts))
'''
OF_RECIPE = ("width", "rate", "name", "deep", "file", "mode", "leads", "sizes", "names", "share", "parts")
# Of commands: not --jobs, which starts processes, nor --trust, which executes a recipe on request.
OF_COMMANDS = (
    "seed", "precision", "device", "compile", "capture", "device-data", "teacher-cache", "teacher-cache-size",
    "checkpoint-every", "gradients", "keep-checkpoints", "deterministic", "quiet", "seeds", "metric", "net", "out",
    "resume", "force", "weights", "resamples", "keep", "help", "no-deep", "unknown",
)  # fmt: skip
LONG = ("9" * 5000, "1," * 2000, "0." + "0" * 5000 + "1", "x" * 20_000)
TEXTS = st.one_of(
    st.sampled_from(
        ["0", "1", "-1", "2", "0.5", "nan", "inf", "-inf", "1e999", "1e-320", "true", "None", "", " ", ",", "1,2,3",
         "1,1", "1,,2", "a,b", "auto", "off", "cpu", "cuda", "cuda:99", "meta", "mps", "fp16", "bf16", "first",
         "second", "12", "10min", "99999999999999h", "30s", "1_0", "٣", "0x10", "100000000000000000000",
         "9223372036854775808", "1000000",
         "\x1b]0;title\a", "\x1b[2J", "\u202e", "\udcff", "[red]x[/red]", "[/]", "<script>", "a\nb", "-", "--", "=",
         "'"]
    ),
    st.sampled_from(LONG),
    st.integers().map(str),
    st.floats().map(str),
    st.text(st.characters(exclude_characters="/\0."), max_size=12),
)  # fmt: skip
ARGUMENTS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(OF_RECIPE), TEXTS).map(lambda option: [f"--{option[0]}", option[1]]),
        st.tuples(st.sampled_from(OF_COMMANDS), TEXTS).map(lambda option: [f"--{option[0]}", option[1]]),
        st.tuples(st.sampled_from([*OF_RECIPE, *OF_COMMANDS]), TEXTS).map(
            lambda option: [f"--{option[0]}={option[1]}"]
        ),
        st.sampled_from([*OF_RECIPE, *OF_COMMANDS]).map(lambda name: [f"--{name}"]),
        st.sampled_from(["-q", "-h", "--", "-x"]).map(lambda flag: [flag]),
        TEXTS.map(lambda text: [text]),
    ),
    max_size=4,
).map(lambda groups: [argument for group in groups for argument in group])
# Types and defaults of a parameter as a recipe file may have them, most of which cannot be an option.
TYPES = (
    "int", "float", "str", "bool", "Path", "int | None", "None", "list", "list[int]", "tuple[int, str]", "tuple[()]",
    "tuple[int, ...]", "tuple[int, int] | None", "Literal[1, 2]", "Literal['a', 'b']", "Literal[1, 'a']", "Literal[()]",
    "Literal[None]", "Literal[True]", "Literal[b'a']", "dict[str, int]", "'missing'", "'1 +'", "object", "...", "3",
    "list[list[int]]", "tuple[Literal[1, 2], ...]", "int | str", "Literal['a,b']", "Literal['\\x1b[2J']",
    "float | bool",
    "list[bool]", "tuple[bool, ...]",
)  # fmt: skip
DEFAULTS = ("", " = 0", " = 1.5", " = 'a'", " = None", " = ()", " = (1, 2)", " = True", " = object()", " = 'x' * 10**5",
            " = float('nan')", " = '\\x1b[2J'", " = [[]]", " = {}")  # fmt: skip
NAMES = ("width", "a", "seed", "help", "_", "no_deep", "é", "file", "options", "x" * 300, "self", "ctx", "out", "A")
SIGNATURES = st.one_of(
    st.lists(st.tuples(*map(st.sampled_from, (NAMES, TYPES, DEFAULTS))), max_size=3).map(
        lambda parts: ", ".join(f"{name}: {kind}{default}" for name, kind, default in parts)
    ),
    st.sampled_from(["width", "*args", "**options", "width: int, /", "*, width: int = 3", "a=1", "width: int = 3,"]),
)
COMMANDS = st.sampled_from(["run", "run", "check", "sweep", "sweep", "evaluate", "list"])
# What the record of a run may name instead of the recipe file and the arguments that were signed.
COMMAND_RECORDS = st.one_of(
    VALUES,
    st.fixed_dictionaries(
        {},
        optional={
            "arguments": st.one_of(
                VALUES,
                st.lists(st.one_of(TEXTS, st.sampled_from(["EVIL", "GOOD", "--out", ".", "--trust"])), max_size=4),
            ),
            "folder": st.one_of(st.just("HERE"), VALUES),
            "recipe_sha256": st.one_of(st.just("HASH"), VALUES),
            "signature": st.one_of(TEXTS, VALUES, st.just("\ud800")),
        },
    ),
)
ON_FOLDERS = st.sampled_from(
    [["run", "--resume", "RUN"], ["rerun", "RUN"], ["classes", "RUN"], ["run", "--resume", "RUN", "--force"],
     ["cache", "RUN"], ["sweep", "recipe.py", "--out", "RUN"], ["evaluate", "recipe.py", "--weights", "RUN"]]
)  # fmt: skip


def call_quietly(arguments):
    """Call the command line, and return its exit code and what it printed."""
    installed.cache_clear()  # the plugins of another recipe file
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = call(arguments)
    return code, output.getvalue()


def check_call(arguments):
    """Call the command line and return an outcome. Raises unless it ends with an exit code and a plain message."""
    code, text = call_quietly(arguments)
    assert code in (0, 1, 2), (code, text[-2000:])
    assert "Traceback" not in text, text[-2000:]
    hidden = {character for character in text if not (character.isprintable() or character in "\n\t")}
    assert not {character for character in hidden if not character.isspace()}, hidden
    return "read" if code == 0 else "refused"


@contextlib.contextmanager
def working_folder(folder):
    """Work in a folder, with a key of its own, and with the variables of the user restored afterwards."""
    before, variables = Path.cwd(), dict(os.environ)
    os.environ.update(XDG_STATE_HOME=str(folder / "state"), KDKIT_CACHE=str(folder / "cache"), COLUMNS="200")
    os.chdir(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(variables)


def fuzz(folder, meter, inputs, first_seed=0):
    """Call a command with this many lists of options, a quarter of them on recipe files of any signature."""
    (folder / "recipe.py").write_text(RECIPE)
    made = folder / "made.py"
    head = "from pathlib import Path\nfrom typing import Literal\n"
    signatures = st.one_of(st.none(), st.none(), st.none(), SIGNATURES)
    with working_folder(folder):

        @for_inputs(meter, inputs, first_seed, command=COMMANDS, signature=signatures, arguments=ARGUMENTS)
        def check(command, signature, arguments):
            if signature is not None:
                made.write_text(f"{head}def recipe({signature}):\n    raise ValueError(locals())\n")
            file = "recipe.py" if signature is None else "made.py"
            meter.read(lambda: check_call([command, file, *arguments]))


def fuzz_recorded(folder, meter, inputs, first_seed=0):
    """Resume and repeat this many runs whose record nobody signed, and require that nothing is executed."""
    run, marker = folder / "run", folder / MARKER
    run.mkdir()
    evil = f"open({str(marker)!r}, 'w').close()\n"
    for name in ("recipe.py", "evil.py"):
        (run / name).write_text(evil)
    (folder / "recipe.py").write_text(RECIPE)
    words = {
        "EVIL": str(run / "evil.py"),
        "GOOD": str(folder / "recipe.py"),
        "HERE": str(folder),
        "HASH": hashlib.sha256(evil.encode()).hexdigest(),
        "RUN": "run",
    }

    def filled(value):
        if isinstance(value, list):
            return [filled(item) for item in value]
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        return words.get(value, value) if isinstance(value, str) else value

    strategies = {
        "record": st.dictionaries(st.sampled_from(["stages", "nets", "options", "versions", "seed"]), VALUES),
        "command": COMMAND_RECORDS,
        "arguments": ON_FOLDERS,
    }
    with working_folder(folder):
        # A key: the signature of the record is not missing, but wrong.
        call_quietly(["run", "recipe.py"])

        @for_inputs(meter, inputs, first_seed, **strategies)
        def check(record, command, arguments):
            try:
                parts = json_parts({"format": FORMAT, **record, "command": filled(command)})
            except ValueError:  # a number that JSON does not have
                parts = [b"{}"]
            (run / "run.json").write_bytes(b"".join(parts))
            meter.read(lambda: check_call(filled(arguments)))
            assert not marker.exists(), "a recipe file was executed that nobody signed"
