"""Names from data reach a terminal with their control characters escaped, and files as they are."""

import json
import re
from textwrap import dedent

import pytest

from tests.hostile.make_corpus import NAMES, unharmed_corpus

# What rich itself writes to a terminal: colours, to show and hide the cursor, and to erase the lines of a progress bar.
OF_RICH = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[hl]|1A|2K)|\r")
CLASSES = [name for kind, name in NAMES.items() if kind != "not UTF-8"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    with unharmed_corpus(folder, "names"):
        yield folder / "names"


@pytest.fixture(params=["pipe", "terminal"])
def printed(request, kdkit_process):
    """Run a command, require that its output has no control character, and return the output."""

    def run(*arguments, code=0):
        variables = {"FORCE_COLOR": "1"} if request.param == "terminal" else {}
        result = kdkit_process(*arguments, **variables)
        assert result.code == code, result
        text = OF_RICH.sub("", result.out + result.err) if variables else result.out + result.err
        assert {character for character in text if not character.isprintable()} <= {"\n", "\t"}
        return text

    return run


# These commands take seconds: the suite has time for one kind of output.
OF_SLOW_COMMANDS = pytest.mark.parametrize(
    "printed", [pytest.param("pipe", marks=pytest.mark.slow), "terminal"], indirect=True
)


@OF_SLOW_COMMANDS
def test_the_doctor_escapes_names_and_writes_them_to_json_as_they_are(printed, corpus, tmp_path):
    for options in ([], ["--all"]):
        text = printed("ecg", "doctor", corpus, "--json", "report.json", "--jobs", 1, *options, code=1)
    for escaped in (r"a\x1b]0;owned\x07b", r"a\x1b[2J\x1b[Hb", r"a\x9b2Jb", r"a\x7f\x08\x08b", r"a\u202egpj.b"):
        assert escaped in text
    for escaped in (r"a\u200b\u200d\ufeffb", r"a\u2028b\u2029", r"a\udcffb", r"a\n0 bad records", "[red]x[bold]"):
        assert escaped in text
    records = json.loads((tmp_path / "report.json").read_text())["records"]
    assert {NAMES["title"], NAMES["not UTF-8"]} <= {record["database"] for record in records}


@OF_SLOW_COMMANDS
def test_prepare_folds_and_store_escape_names(printed, corpus, tmp_path):
    text = printed("ecg", "prepare", corpus, "--store", "stores")
    assert r"excluded, no header next to the signal: names/" in text
    assert r"names/a\n0 bad records3, ..." in text
    assert r"a\n0 bad records: " in printed("ecg", "folds", corpus, "--out", "folds.csv", "-k", 3)
    assert NAMES["title"] in (tmp_path / "folds.csv").read_text()
    hostile = tmp_path / NAMES["clear"]
    printed("ecg", "prepare", corpus / NAMES["direction"], "--store", hostile)
    assert r"a\x1b[2J\x1b[Hb" in printed("ecg", "store", "--store", hostile)


def test_errors_escape_names(printed, tmp_path):
    name = NAMES["title"]
    assert r"\x1b]0;owned" in printed("ecg", "doctor", name, code=2)
    (tmp_path / name).mkdir()
    assert r"\x1b]0;owned" in printed("ecg", "doctor", name, code=2)
    assert r"\x1b]0;owned" in printed("classes", name, code=2)
    assert r"\x1b]0;owned" in printed("ecg", "fetch", "ptb-xl", "data", "--base-url", name, code=2)
    assert r"\x1b]0;owned" in printed(f"no {name}", code=2)


@pytest.fixture
def recipe(tmp_path):
    """The path of a recipe whose classes have hostile names; one of them has no positives in the test split."""
    path = tmp_path / "recipe.py"
    path.write_text(
        dedent(
            f"""
            import torch
            from torch import nn
            from torch.utils.data import TensorDataset
            from kdkit import Net, Recipe, Stage, TorchData, Training, Truth

            CLASSES = {CLASSES!r}

            def samples(rows, seed):
                generator = torch.Generator().manual_seed(seed)
                labels = (torch.rand(rows, len(CLASSES), generator=generator) > 0.5).float()
                labels[:, 0] = float(seed == 0)
                return TensorDataset(torch.randn(rows, 4, generator=generator), labels)

            def recipe(width: str = "4"):
                net = Net("student", nn.Sequential(nn.Linear(4, 4), nn.Linear(4, len(CLASSES))))
                data = TorchData(samples(16, 0), samples(12, 1), samples(12, 2), classes=CLASSES, task="multilabel")
                stage = Stage({{net: Truth(nn.BCEWithLogitsLoss())}}, Training(epochs=1, batch_size=4))
                return Recipe(data=data, schedule=[stage])
            """
        )
    )
    return path


def test_the_commands_of_a_run_escape_the_names_of_classes(printed, recipe):
    printed("check", recipe)
    printed("run", recipe, "--out", "run")
    text = printed("classes", "run", "--resamples", 10)
    assert r"no positives in test: a\x1b]0;owned\x07b" in text
    # Long names are wrapped in a narrow column.
    assert "[red]x" in text
    assert "<script>" in text
    printed("evaluate", recipe, "--weights", "run")


def test_a_study_escapes_the_values_of_options(printed, recipe):
    values = f"{NAMES['clear']},{NAMES['direction']},{NAMES['markup']}"
    text = printed("sweep", recipe, "--width", values, "--seeds", 1, "--out", "study")
    assert r"a\x1b[2J\x1b[Hb" in text
    assert "[red]x[bold]" in text
