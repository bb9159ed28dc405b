"""Every `kdkit` command of the docs and of help texts parses, and every option is described, and on its page."""

import importlib.util
import re
import shlex
import sys
from dataclasses import dataclass

import click
import pytest

from kdkit.cli.main import add_plugin_commands, cli
from kdkit.cli.recipe_command import RecipeCommand
from kdkit.errors import KdkitError
from kdkit.plugins.recipe_outline import read_outline
from tests.helpers.command_line import ROOT
from tools import make_command_line_page as page_tool

PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("examples/**/*.md")]
)
HISTORY = ROOT / "CHANGELOG.md"  # which also names what was removed
# Words that stand for values, and values that may stand there.
PLACEHOLDERS = {"FILE": "examples/hinton.py", "N": "1", "SHELL": "bash"}
OPERATORS = {"|", "||", "&&", ";", ">", "&"}


@dataclass(frozen=True)
class Command:
    """A command of a page, by the line at which it is, or in which its block begins."""

    page: str
    text: str
    is_whole: bool  # not in a sentence, which may leave out arguments


def commands_of(text, page="page"):
    """Yield the commands of a page: lines of its console blocks, and code in its sentences."""
    blocks = re.compile(r"^ *```(\w*).*?\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
    for language, block in blocks.findall(text):
        lines = block.replace("\\\n", " ").splitlines() if language == "console" else []
        if any(line.startswith("$ ") for line in lines):  # the others are output
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        yield from (Command(page, part, is_whole=True) for line in lines for part in kdkit_parts(line))
    for code in re.findall(r"`([^`]+)`", blocks.sub("", text)):
        # "kdkit ..." begins a command only with the name of one, or is a sentence
        yield from (Command(page, part, is_whole=False) for part in kdkit_parts(" ".join(code.split())))


def kdkit_parts(line):
    """Yield the commands of kdkit in a line of a shell, without what they are joined to."""
    yield from re.findall(r"\$\((kdkit [^)]*)\)", line)
    words: list[str] = []
    for word in [*_words(line), ";"]:
        if word in OPERATORS:
            if words[:1] == ["kdkit"] and len(words) > 1:
                yield shlex.join(words)
            words = []
        else:
            words.append(word)


def _words(line):
    try:
        lexer = shlex.shlex(line.replace("\\|", "|"), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        return list(lexer)
    except ValueError:  # a quote that is not closed, as in a sentence
        return []


def parse(command):
    """Parse a command without running it, or reading more of its recipe file than the text. Raises click's errors."""
    words = [part for word in shlex.split(command.text)[1:] for part in _values(word)]
    current: click.Command = cli
    while isinstance(current, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        if name == "COMMAND":  # any
            return
        if name not in current.commands:
            raise click.UsageError(f"no command {name!r} in {current.name}")
        current = current.commands[name]
    if isinstance(current, click.Group):
        return
    if isinstance(current, RecipeCommand):
        path = _recipe_file(words)
        is_unknown = path is None  # a file of the reader, with options that are not known
        outline = read_outline(path or ROOT / PLACEHOLDERS["FILE"])
        options = [current._make_option(parameter) for parameter in outline.parameters]
        current = click.Command(
            current.name,
            params=[*current.command_params, *options],
            context_settings={
                **current.context_settings,
                "ignore_unknown_options": is_unknown,
                "allow_extra_args": is_unknown,
            },
        )
    try:
        current.make_context(current.name, words)
    except click.MissingParameter:
        if command.is_whole:
            raise
    except click.BadParameter as error:
        if not isinstance(error.param.type, click.Path):  # files and folders of the reader
            raise


def _recipe_file(words):
    """Return the recipe file of a command, as it is named or copied from a template; None for one of the reader."""
    files = [word for word in words if word.endswith(".py")] or [PLACEHOLDERS["FILE"]]
    paths = [path for file in files for path in (ROOT / file, *ROOT.glob(f"*/templates/{file}"))]
    return next((path for path in paths if path.is_file()), None)


def _values(word):
    """Yield what a word stands for: nothing for "..." and optional brackets, and a value for a placeholder."""
    word = word.strip("[]").removesuffix("...")
    if word not in ("", "--help"):  # which would print the help and exit
        yield PLACEHOLDERS.get(word, word)


@pytest.fixture(scope="module", autouse=True)
def _plugin_commands():
    add_plugin_commands()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != HISTORY], ids=lambda page: str(page.relative_to(ROOT))
)
def test_the_commands_of_a_page_parse(page):
    for command in commands_of(page.read_text("utf-8"), page.name):
        try:
            parse(command)
        except click.UsageError as error:
            pytest.fail(f"{page.relative_to(ROOT)}: `{command.text}`: {error.format_message()}")


def test_the_page_has_every_option():
    text = page_tool.PAGE.read_text("utf-8")
    assert page_tool.updated(text) == text, f"stale: run python {page_tool.__file__}"
    with pytest.raises(KdkitError, match="put it back"):
        page_tool.updated("# Command line\n")


def test_every_help_text_begins_with_examples_that_parse():
    for name, command in page_tool.commands():
        _summary, examples, *_details = command.help.split("\n\n")
        lines = [line.strip() for line in examples.replace("\b", "").splitlines() if line.strip()]
        if name == "kdkit completion":  # whose example has a sentence before it
            continue
        assert all(line.startswith(f"{name} ") or line == name for line in lines), (name, lines)
        shown = command.get_help(click.Context(command, info_name=name))
        for line in lines:
            parse(Command(name, line, is_whole=True))
            assert f"\n      {line}\n" in shown  # not joined to a paragraph


def test_the_same_option_has_the_same_text_in_each_command():
    texts = {}
    for name, command in page_tool.commands():
        is_of_plugin = name.startswith(("kdkit ecg", "kdkit predict"))  # whose options are about other things
        for option in page_tool.options(command):
            assert re.fullmatch(r"[A-Z].*\.", option.help or ""), (name, option.name, option.help)
            if not is_of_plugin:
                texts.setdefault(option.opts[0], set()).add(option.help)
    # Those of one or several runs, of files and folders, and JSON with or without descriptions.
    assert {flag for flag, helps in texts.items() if len(helps) > 1} == {"--out", "--json", "--quiet"}


@pytest.mark.parametrize("columns", [80, 120])
def test_the_help_fits_its_terminal_and_cuts_no_sentence(columns):
    groups = [("kdkit", cli), *((f"kdkit {name}", command) for name, command in cli.commands.items())]
    for name, command in [*groups, *page_tool.commands()]:
        context = click.Context(command, info_name=name, terminal_width=columns)
        for line in command.get_help(context).splitlines():
            assert len(line) <= columns, line
            assert not re.search(r"[a-z]\.\.\.$", line), line


def test_programs_of_console_blocks_exist():
    for page in PAGES:
        for block in re.findall(r"^```console\n(.*?)^```$", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL):
            for module, file in re.findall(
                r"^(?:\$ )?python (?:-m ([\w.]+)|([\w]+/[\w/]+\.py))", block, flags=re.MULTILINE
            ):
                if module.partition(".")[0] in sys.stdlib_module_names and importlib.util.find_spec(module):
                    continue
                path = ROOT / (f"{module.replace('.', '/')}.py" if module else file)
                assert path.is_file() or (path.with_suffix("") / "__main__.py").is_file(), (page.name, module or file)


@pytest.mark.parametrize(
    "text",
    [
        "kdkit nothing FILE",
        "kdkit run FILE --no-such-option",
        "kdkit run examples/hinton.py --no-such-option 3",
        "kdkit sweep FILE --temprature 2,4",
        "kdkit ecg nothing",
        "kdkit run",
        "kdkit check FILE --device",
        "kdkit run FILE --jobs none",
        "kdkit completion powershell",
    ],
)
def test_commands_that_would_fail_are_found(text):
    (command,) = commands_of(f"```console\n$ pip install kdkit && {text}\nsome output\n```\n")
    with pytest.raises(click.UsageError):
        parse(command)


def test_all_forms_of_commands_are_found():
    text = """Read `kdkit list` and `kdkit run FILE --out runs/mine`, not `pip install kdkit`, nor kdkit check.

```console
eval "$(kdkit completion bash)"     # in ~/.bashrc
kdkit new recipe lrhnet && kdkit run lrhnet.py
kdkit run FILE \\
  --quiet | head -1
```
"""
    assert [command.text for command in commands_of(text)] == [
        "kdkit completion bash",
        "kdkit new recipe lrhnet",
        "kdkit run lrhnet.py",
        "kdkit run FILE --quiet",
        "kdkit list",
        "kdkit run FILE --out runs/mine",
    ]
