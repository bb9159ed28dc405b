"""Tests of names in folders: with dots and signs they are written and read back, and the folder of a study is named."""

import json

import pytest
from torch import nn

import kdkit
from kdkit import Match, Net, Recipe, RecipeError, Stage, Study, Trial, Truth
from kdkit.errors import RunFolderError
from kdkit.losses import SoftTargets
from kdkit.plugins.recipe_file import _near_file
from tests.helpers.command_line import ROOT
from tests.helpers.stages import Small, copied, data, same, training

BIG, SMALL, STAGE = "resnet18.a1_in1k", "v1.0", "stage 2.1"


def recipe(alpha: float = 0.5):
    big, small = Net(BIG, Small(8)), Net(SMALL, Small(4))
    truth = Truth(nn.CrossEntropyLoss())
    objective = alpha * truth + (1 - alpha) * Match(big, SoftTargets())
    stages = [Stage({big: truth}, training()), Stage({small: objective}, training(), name=STAGE)]
    return Recipe(data=data(), schedule=stages)


def student_of(teacher):
    """Return the recipe of a trial that gets the folder of another trial."""
    big, small = Net(BIG, Small(8), weights=teacher), Net(SMALL, Small(4))
    return Recipe(data=data(), schedule=[Stage({small: Match(big, SoftTargets())}, training())])


def two_trials():
    first = Trial(name="alpha=0.25,seed=1", recipe=recipe, options={"alpha": 0.25}, seed=1)
    return first, Trial(name="x.y", recipe=student_of, needs={"teacher": first.name})


def test_names_with_dots_are_written_and_read_back(tmp_path, kdkit_here):
    out = tmp_path / "run"
    result = kdkit.run(recipe, device="cpu", out=out)
    assert {path.name for path in out.iterdir()} >= {f"1-{BIG}", f"2-{STAGE}"}
    for name, module in ((BIG, Small(8)), (SMALL, Small(4))):
        loaded = Net(name, module, weights=out)
        assert same(copied(loaded.network), copied(result.nets[name].network))
    assert same(copied(Net("any", Small(4), weights=out, weights_key=SMALL).network), copied(result.student.network))
    resumed = kdkit.run(recipe, device="cpu", out=out, resume=True)
    assert {net: metrics["accuracy"].value for net, metrics in resumed.metrics.items()} == {
        net: metrics["accuracy"].value for net, metrics in result.metrics.items()
    }
    done = kdkit_here("classes", out, "--resamples", 10)
    assert done.code == 0, done.err
    assert f"{BIG}, on test" in done.out
    assert f"{SMALL}, on test" in done.out


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_name_of_a_trial_may_hold_its_options(tmp_path, jobs):
    study = Study(tmp_path, two_trials())
    options = kdkit.RunOptions(device="cpu", keep_checkpoints=1)
    assert [result.state for result in study.run(options, jobs=jobs)] == ["finished", "finished"]
    assert [result.state for result in study.run(options)] == ["skipped", "skipped"]
    assert study.metrics("alpha=0.25,seed=1").keys() == {BIG, SMALL}
    assert len(study.predictions("x.y", SMALL).test.labels) == 24
    assert (tmp_path / "x.y" / f"1-{SMALL}" / "epoch-1.safetensors").is_file()


@pytest.mark.parametrize("name", ["a.", ".a", "a..b", "a/b", "a=b"])
def test_the_name_of_a_stage_that_cannot_be_a_folder_is_refused(name):
    with pytest.raises(RecipeError, match="the name of a stage may have letters"):
        Stage({Net("net", Small(4)): Truth(nn.CrossEntropyLoss())}, training(), name=name)


def test_the_folder_of_a_study_is_named_where_a_run_is_expected(tmp_path, kdkit_here):
    study = tmp_path / "study"
    for trial in ("alpha=0.5", "b", "c", "d"):
        (study / trial).mkdir(parents=True)
        (study / trial / "run.json").write_text(json.dumps({"format": 2}))
    hint = f"holds the runs 'alpha=0.5', 'b', 'c' and 1 more; choose one of them: {study / 'alpha=0.5'}"
    done = kdkit_here("classes", study)
    assert done.code == 2
    assert f"{study} is not the folder of one run: it {hint}" in done.err
    with pytest.raises(RunFolderError, match="is not the folder of one run"):
        kdkit.run(recipe, device="cpu", out=study, resume=True)
    with pytest.raises(RecipeError, match=r"the folder .* of weights of net 'net' holds the runs") as caught:
        Net("net", Small(4), weights=study)
    assert hint in str(caught.value)
    resumed = kdkit_here("run", "--resume", study)
    assert resumed.code == 2
    assert f"{study} holds several runs; start the command or script that wrote them again, which" in resumed.err
    assert f"started can also be resumed alone: kdkit run --resume {study / 'alpha=0.5'}" in resumed.err
    evaluated = kdkit_here("evaluate", ROOT / "examples" / "hinton.py", "--weights", study)
    assert evaluated.code == 2
    assert hint in evaluated.err


def test_the_examples_are_found_from_another_folder(tmp_path, kdkit_here):
    done = kdkit_here("run", "examples/hinton.py")
    assert done.code == 2
    assert f"no such recipe file; did you mean {ROOT / 'examples' / 'hinton.py'}?" in done.err
    assert f"no such recipe file; the examples are in {ROOT / 'examples'}" in kdkit_here("run", "examples/x.py").err
    assert kdkit_here("run", "mine.py").err.endswith("no such recipe file\n")


def test_an_installed_package_names_the_repository_of_the_examples(tmp_path):
    installed = tmp_path / "site-packages"
    (installed / "examples").mkdir(parents=True)
    (installed / "examples" / "hinton.py").touch()
    assert "the folder `examples` of kdkit's repository" in _near_file(
        ROOT / "no" / "examples" / "hinton.py", installed
    )
    assert _near_file(ROOT / "no" / "hinton.py", installed) == ""
