"""Every example runs through the command line, with the smallest values of its options."""

import ast
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from kdkit.plugins.recipe_outline import read_outline
from tests.helpers.command_line import ROOT, environment
from tests.helpers.processes import run_python

EXAMPLES = ROOT / "examples"

TINY = {
    "fitnet": ["--epochs", "1", "--records", "32"],
    "hinton": ["--epochs", "1"],
    "lrhnet_pmlkd": ["--epochs", "1", "--width", "4", "--records", "64"],
    "lrhnet_smlkd": ["--epochs", "1", "--width", "4", "--records", "64"],
    "custom_loss": ["--epochs", "1"],
    "segmentation": ["--epochs", "1", "--images", "32"],
    "text": ["--epochs", "1", "--count", "64"],
    "text_classifier": ["--epochs", "1"],
    "detection": ["--epochs", "1", "--train", "64"],
    "http_teacher": ["--epochs", "1"],
    "own_data": ["--epochs", "1"],
    "ecg_records": ["--epochs", "1", "--width", "4", "--samples", "64"],
    "ptbxl": ["--epochs", "1", "--width", "4", "--samples", "64"],
    "timm_digits": ["--epochs", "1"],
    "images": ["--epochs", "1", "--images", "32"],
    "all_losses": ["--epochs", "1", "--data", "ecg", "--samples", "16"],
}
SLOW = {"timm_digits", "images", "lrhnet_pmlkd", "ptbxl"}


# No recipes, but programs, with the least accuracy of the student that they print.
SCRIPTS = {"own_loop": 0.85, "lightning_loop": 0.85, "hf_trainer": 0.9, "on_policy": 0.7}


def test_every_example_has_tiny_settings():
    others = {"predict_without_torch"}  # needs an exported file: tests/integration/ecg/test_ecg_predict.py
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(TINY) | set(SCRIPTS) | others


# The frameworks are tested by test_frameworks.py too: the suite has time for one program.
@pytest.mark.parametrize(
    ("name", "least"),
    [pytest.param(*script, marks=[pytest.mark.slow] * (script[0] != "own_loop")) for script in SCRIPTS.items()],
)
def test_a_loop_of_a_user_or_a_framework_distils_most_of_the_teacher(name, least, tmp_path):
    done = run_python([EXAMPLES / f"{name}.py"], tmp_path, environment())
    assert done.returncode == 0, done.stderr
    printed = [line.split() for line in done.stdout.splitlines()]
    accuracies = {words[0]: float(words[-1]) for words in printed if words and words[0] in ("teacher", "student")}
    assert accuracies["teacher"] > least
    assert accuracies["student"] > least


def test_a_student_learns_from_texts_that_it_writes(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import on_policy

    torch.manual_seed(0)
    texts = on_policy.texts(32, seed=0)
    assert torch.equal(texts[:, -on_policy.LENGTH :], texts[:, : on_policy.LENGTH].sort(1).values)
    teacher = on_policy.train_teacher(texts, epochs=1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    written = on_policy.complete(teacher, texts[:, : on_policy.PROMPT], sample=True)
    assert torch.equal(written[:, : on_policy.PROMPT], texts[:, : on_policy.PROMPT])
    assert not torch.equal(written, texts)
    # From the same weights, other texts lead to other weights, and the teacher stays as it is.
    students = []
    for lmbda in (0.0, 1.0):
        torch.manual_seed(1)
        students.append(on_policy.distil(teacher, texts, lmbda=lmbda, epochs=1).lm_head.weight)
    assert (students[0] - students[1]).abs().max() > 1e-5
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_masks_in_a_folder_are_cropped_with_their_images_and_keep_their_classes(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(EXAMPLES)
    import segmentation

    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    colours = np.zeros((40, 50, 3), np.uint8)
    colours[:, :20] = 200
    Image.fromarray(colours).save(tmp_path / "images" / "a.jpg")
    mask = Image.fromarray((colours[..., 0] // 100).astype(np.uint8))
    mask.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])  # as in Pascal VOC: the classes are not the colours
    mask.save(tmp_path / "masks" / "a.png")
    (tmp_path / "images" / ".DS_Store").touch()
    for augment in (False, True):
        ((image, classes),) = segmentation.Scenes(tmp_path, size=16, augment=augment)
        assert (image.shape, image.dtype, classes.shape, classes.dtype) == (
            (3, 16, 16),
            torch.uint8,
            (16, 16),
            torch.int64,
        )
        assert set(classes.unique().tolist()) <= {0, 2}
        assert ((image[0] > 100) == (classes == 2)).float().mean() > 0.85


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in TINY])
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_an_example_runs(name, kdkit_here, tmp_path):
    result = kdkit_here("run", EXAMPLES / f"{name}.py", *TINY[name], "--device", "cpu", "--out", "run")
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert len(report["metrics"]) >= 2
    assert all(metrics for metrics in report["metrics"].values())
    assert "Metrics on" in result.out


@pytest.mark.parametrize("name", TINY)
def test_the_help_of_an_example_has_its_command_and_its_options(name, kdkit_here):
    result = kdkit_here("run", EXAMPLES / f"{name}.py", "--help")
    assert result.code == 0
    assert f"kdkit run examples/{name}.py" in result.out
    assert TINY[name][0] in result.out


@pytest.mark.parametrize("name", TINY)
def test_every_option_of_an_example_has_its_help(name):
    path = EXAMPLES / f"{name}.py"
    function = next(
        node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef) and node.name == "recipe"
    )
    described = re.findall(r"^ *(\w+): \S", ast.get_docstring(function) or "", flags=re.MULTILINE)
    outline = read_outline(path)
    assert outline is not None
    # In the order of the parameters, so that no description stands at another one.
    assert described == [parameter.name for parameter in outline.parameters]
    assert all(len(parameter.help.split()) >= 2 for parameter in outline.parameters)


def test_a_user_defined_loss_takes_at_most_fifteen_lines():
    text = (EXAMPLES / "custom_loss.py").read_text()
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name != "recipe"]
    assert any(node.decorator_list for node in functions)
    # A function starts at its first decorator.
    spans = [
        (min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]), node.end_lineno)
        for node in functions
    ]
    assert sum(last - first + 1 for first, last in spans if last is not None) <= 15
