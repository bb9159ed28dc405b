"""Tests of the console of the command line."""

from kdkit.utils.console import make_console


def test_output_that_goes_to_no_terminal_is_120_columns_wide_and_unchanged(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # which rich would follow if no width was set
    console = make_console()
    assert not console.is_terminal
    assert console.width == 120
    console.print("the label :x: has 3 of 4")
    assert capsys.readouterr().out == "the label :x: has 3 of 4\n"
