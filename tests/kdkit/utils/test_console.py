"""Tests of the console of the command line."""

import ast
import io
from pathlib import Path

import pytest
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

import kdkit
import kdkit_ecg
from kdkit.utils.console import PrintableConsole, Status, format_number, make_console
from kdkit.utils.printable import echo, printable

HOSTILE = "a\x1b]0;owned\x07\x9b2J\x7f\u202e\u2066\u200b\u2028\udcffb"
ESCAPED = r"a\x1b]0;owned\x07\x9b2J\x7f\u202e\u2066\u200b\u2028\udcffb"


def test_output_that_goes_to_no_terminal_is_120_columns_wide_and_unchanged(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # which rich would follow if no width was set
    console = make_console()
    assert not console.is_terminal
    assert console.width == 120
    console.print("the label :x: has 3 of 4")
    assert capsys.readouterr().out == "the label :x: has 3 of 4\n"


@pytest.mark.parametrize(("value", "text"), [(0.0, "0.0000"), (4e-4, "0.0004"), (-1.234e-5, "-1.23e-05"), (123, "123")])
def test_a_small_number_is_not_shown_as_zero(value, text):
    assert format_number(value) == text


def test_only_characters_that_do_not_print_themselves_are_escaped():
    assert printable(HOSTILE) == ESCAPED
    assert printable("V1 [red] \u00b5V, caf\u00e9, \u5fc3\u96fb\u56f3 \U0001f493\u00a0\\x1b") == (
        "V1 [red] \u00b5V, caf\u00e9, \u5fc3\u96fb\u56f3 \U0001f493\u00a0\\x1b"
    )
    assert printable("a\n\tb\rc") == r"a\n\tb\rc"
    assert printable("a\n\tb\rc", keep="\n\t") == "a\n\tb\\rc"


def test_a_second_escape_changes_nothing():
    assert printable(printable(HOSTILE)) == ESCAPED


def test_echo_escapes_and_keeps_lines(capsys):
    echo(f"first\n{HOSTILE}")
    echo(HOSTILE, err=True)
    assert capsys.readouterr() == (f"first\n{ESCAPED}\n", f"{ESCAPED}\n")


def test_characters_that_the_encoding_of_a_file_lacks_are_escaped(monkeypatch):
    file = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")  # as a file or a pipe on Windows
    table = Table("class \u5fc3", "\u00b5V \u2192")
    table.add_row("\u96fb", Text("\u96fb"))
    PrintableConsole(file=file, width=80).print("R\u00b2", table)
    monkeypatch.setattr("sys.stdout", file)
    echo("\u5fc3 caf\u00e9")
    file.flush()
    text = file.buffer.getvalue().decode("cp1252")
    for expected in ("R\u00b2\n", r"class \u5fc3", "\u00b5V \\u2192", r"\u96fb", "\\u5fc3 caf\u00e9\n"):
        assert expected in text
    echo("\u2192")
    monkeypatch.setattr("sys.stdout", io.StringIO())  # which has no encoding
    echo("\u5fc3")


@pytest.mark.parametrize(("rank", "out"), [("0", "first\nsecond\n"), ("1", "")])
def test_one_process_of_torchrun_prints_to_stdout_and_all_print_errors(capsys, monkeypatch, rank, out):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("RANK", rank)
    echo("first")
    make_console().print("second")
    echo("third", err=True)
    make_console(stderr=True).print("fourth")
    assert capsys.readouterr() == (out, "third\nfourth\n")


def test_a_console_prints_nothing_to_a_closed_stream(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    console = make_console()
    console.print("one")
    assert stream.getvalue() == "one\n"
    stream.close()
    console.print("two")
    assert console.quiet


def test_the_title_of_a_table_is_one_line_even_if_the_table_is_narrow(capsys):
    table = Table("a", title="runs/a-long-name/seed=0 on test")
    for _ in range(2):
        make_console().print(table)
    assert capsys.readouterr().out.count("runs/a-long-name/seed=0 on test\n┏━━━┓\n") == 2


@pytest.mark.parametrize("markup", [True, False])
def test_a_console_escapes_texts_of_every_kind(markup, capsys):
    console = make_console(markup=markup)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE))
    for renderable in (HOSTILE, Text(HOSTILE), table, f"first\n{HOSTILE}"):
        console.print(renderable)
    console.out(HOSTILE)
    console.log(HOSTILE)
    out = capsys.readouterr().out
    assert {character for character in out if not character.isprintable()} == {"\n"}
    assert out.count(ESCAPED) == 7
    assert out.count(ESCAPED.replace(r"\x07", "")) == 2  # rich itself removes five control characters from a Text


def test_a_console_escapes_names_and_keeps_its_own_styles():
    console = PrintableConsole(force_terminal=True, color_system="standard", highlight=False, width=100)
    with console.capture() as capture:
        console.print(f"[bold]{HOSTILE}[/bold] [red]x[/red]")
    assert capture.get() == f"\x1b[1m{ESCAPED}\x1b[0m \x1b[31mx\x1b[0m\n"


def test_a_column_is_as_wide_as_its_escaped_names():
    console = PrintableConsole(width=200, highlight=False)
    table = Table("name", "value")
    table.add_row("\x1b" * 20, "1")
    with console.capture() as capture:
        console.print(table)
    lines = capture.get().splitlines()
    assert r"\x1b" * 20 in lines[3]
    assert len({len(line) for line in lines}) == 1


def test_progress_bars_and_status_lines_escape_names(capsys):
    console = PrintableConsole(force_terminal=True, width=200)
    with console.capture() as capture, Progress(TextColumn("{task.description}"), console=console) as progress:
        progress.add_task(HOSTILE.replace("[", "("), total=1)
    assert "\x1b]0;" not in capture.get()
    assert r"\x1b]0;" in capture.get()  # cut to the width that rich measured before
    with Status() as status:
        status.show(HOSTILE)
    assert capsys.readouterr().err == f"{ESCAPED} ...\n"


@pytest.mark.parametrize("package", [kdkit, kdkit_ecg])
def test_nothing_prints_but_through_the_console_and_echo(package):
    """A call of print, click.echo or rich's Console would print names as they are."""
    folder = Path(package.__file__).parent
    # `__main__` has a line to print when an import is interrupted, which may be that of `echo`.
    allowed = ("printable.py", "__main__.py")
    printers = ("print", "Console", "rich.print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write")
    calls = {
        f"{path.relative_to(folder)}:{node.lineno} {ast.unparse(node.func)}"
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in printers and path.name not in allowed
    }
    assert not calls
