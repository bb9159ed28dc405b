"""The log in docs/first-hour.md is true: its commands print what it shows."""

import re

import pytest

from tests.helpers.command_line import environment
from tests.helpers.modules import load_module
from tests.helpers.processes import ForkedPython

tool = load_module("tools/make_first_hour.py")


def forked(arguments, folder):
    # without the fixed width of other tests, and without a GPU
    variables = {name: value for name, value in environment().items() if name not in ("COLUMNS", "LINES")}
    variables["CUDA_VISIBLE_DEVICES"] = ""
    return ForkedPython(arguments, folder, variables, merged=True)


# The sweep at the end takes as long as a third of the page.
@pytest.mark.parametrize("last", ["kdkit run --resume", pytest.param("python predict.py", marks=pytest.mark.slow)])
def test_every_command_of_the_log_prints_what_it_shows(last, tmp_path):
    page = tool.PAGE.read_text(encoding="utf-8")
    page = page[: page.index("```\n", page.index(f"$ {last}")) + 4]
    steps = list(tool.execute(page, tmp_path, forked))
    assert [step.command for step in steps] == re.findall(r"^\$ (.*)$", page, re.MULTILINE)
    stale = [f"$ {step.command}\n{step.actual}" for step in steps if tool.aligned(step.expected, step.actual) is None]
    assert not stale, "run `python tools/make_first_hour.py`: docs/first-hour.md does not have\n" + "\n".join(stale)
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    ("expected", "actual", "is_match"),
    [
        ("accuracy 0.9000 *  0.1 s\n", "accuracy 0.9100  12 s\n", True),
        ("accuracy 0.9000\n", "accuracy 0.3000\n", False),
        ("accuracy 0.9000\n", "precision 0.9000\n", False),
        ("+2.5 points: better\n", "+1.9 points: better\n", True),
        ("+2.5 points: better\n", "+1.9 points: worse\n", False),
        ("4 batches\n", "5 batches\n", False),
        ("first\n...\nlast\n", "first\nmore\nmore\nlast\n", True),
        ("first\n...\nlast\n", "first\nlast\nmore\n", False),
        ("first\n...\n", "other\nfirst\n", False),
        ("first\n...\n", "first\nmore\n", True),
        ("one\n", "one\ntwo\n", False),
    ],
)
def test_outputs_may_differ_in_times_and_slightly_in_metrics(expected, actual, is_match):
    assert (tool.aligned(expected, actual) is not None) == is_match


def test_a_diff_replaces_lines_that_are_there_once():
    assert tool.changed("a\n\nb\nc\n", " a\n\n-b\n+d\n") == "a\n\nd\nc\n"
    with pytest.raises(ValueError, match="they are there 2 times"):
        tool.changed("a\na\n", "-a\n+b\n")


def test_outputs_are_replaced_and_the_same_lines_left_out(tmp_path):
    program = '```python title="say.py"\nprint("1.0\\n2\\n3")\n```\n'
    page = f"{program}\n```console\n$ python say.py\n1.1\n...\n$ python say.py\n8\n```\n"
    assert tool.updated(page, tmp_path, forked) == page.replace("1.1\n", "1.0\n").replace("8\n", "1.0\n2\n3\n")
