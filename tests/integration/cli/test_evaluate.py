"""`kdkit evaluate` gives the metrics of the run that wrote the weights, and of weights from elsewhere."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.numpy import load_file
from sklearn.metrics import f1_score
from torch import nn
from torch.utils.data import random_split

import kdkit
from kdkit import Match, Net, Recipe, RecipeError, TorchData, Truth
from kdkit.engine.storage.run_folder import read_record
from kdkit.losses import SoftTargets
from kdkit.metrics import CrossEntropy, MacroF1
from kdkit.metrics.thresholds import best_f1_threshold
from kdkit.utils.sealed import json_parts
from tests.helpers.tiny import Mlp, one_stage, plain_goal, samples, tiny_data

RECIPE = """
import torch
from torch import nn
from kdkit import *
from kdkit.losses import SoftTargets
from torch.utils.data import random_split
from kdkit.utils.sealed import json_parts
from tests.helpers.tiny import Mlp, samples

def recipe(hidden: int = 5, rows: int = 84) -> Recipe:
    teacher, student = Net("teacher", Mlp(hidden=7)), Net("student", Mlp(hidden=hidden))
    training = Training(epochs=2, batch_size=4)
    return Recipe(
        data=TorchData(*random_split(samples(rows=rows), (24, 30, rows - 54)), classes=["a", "b", "c"]),
        schedule=Sequential(
            teacher, student, truth=Truth(nn.CrossEntropyLoss()), kd_loss=SoftTargets(), training=training
        ),
    )
"""


@pytest.mark.parametrize("net", ["teacher", "student"])
def test_the_metrics_of_a_run_are_computed_again_from_its_weights(net, kdkit_here, tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE)
    run = kdkit_here("run", "recipe.py", "--out", "run", "--device", "cpu", "-q", "--seed", "3")  # of the random split
    assert run.code == 0, run.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"][net]
    result = kdkit_here("evaluate", "recipe.py", "--weights", "run", "--net", net, "--device", "cpu")
    assert result.code == 0, result.err
    assert "run on test" in result.out
    for name, metric in metrics.items():
        (line,) = [line for line in result.out.splitlines() if f" {name} " in line]
        assert f"{metric['value']:.4f}" in line
    assert "other data or splits" not in result.out
    assert "options" not in result.out
    other = kdkit_here("evaluate", "recipe.py", "--weights", "run", "--rows", "85", "--device", "cpu")
    assert "note: the run that wrote the weights had other data or splits; it may have trained on" in other.out
    assert "note: options of the run that wrote the weights were rows=84\n" in other.out
    wrong = kdkit_here("evaluate", "recipe.py", "--weights", "run", "--hidden", "6", "--device", "cpu")
    assert wrong.code == 2
    assert "do not fit net 'student'" in wrong.err


def test_the_training_samples_of_a_teacher_are_not_those_of_the_net_that_is_evaluated(kdkit_here, tmp_path):
    text = RECIPE.replace("rows: int = 84)", "rows: int = 84, trained: str | None = None)")
    text = text.replace("Mlp(hidden=7))", "Mlp(hidden=7), weights=trained)").replace("return Recipe(", "made = Recipe(")
    names = "lambda rows: [str(row) for row in rows.tolist()]"
    text += f"    made.data.train.report_names = made.data.test.report_names = {names}\n    return made\n"
    (tmp_path / "recipe.py").write_text(text)
    assert kdkit_here("run", "recipe.py", "--out", "run", "--device", "cpu", "-q").code == 0
    shutil.copytree(tmp_path / "run", tmp_path / "old")
    (tmp_path / "old" / "training-names.safetensors").unlink()  # of a run of an earlier version
    known, unknown = (
        kdkit_here("evaluate", "recipe.py", "--rows", "85", "--weights", run, "--trained", "run", "--device", "cpu").out
        for run in ("run", "old")
    )
    assert "the run that wrote the weights had other data or splits\n" in known
    assert "had other data or splits; it may have trained on this split\n" in unknown


def test_a_recipe_that_splits_its_data_at_random_is_evaluated_on_the_test_split_of_the_run(tmp_path):
    def recipe():
        train, validation, test = random_split(samples(rows=60), [20, 20, 20])
        return one_stage(Net("student", Mlp()), plain_goal(), TorchData(train, validation, test, classes=list("abc")))

    options = kdkit.RunOptions(device="cpu", seed=1, out=tmp_path / "run", measure=False)
    metrics = kdkit.run(recipe, options).metrics["student"]
    torch.rand(3)
    again = kdkit.evaluate(recipe, tmp_path / "run", options=kdkit.RunOptions(device="cpu", seed=1))
    assert {name: result.value for name, result in again.items()} == {
        name: result.value for name, result in metrics.items()
    }


class Noisy(Mlp):
    """A network that draws random numbers, also in eval mode."""

    def forward(self, inputs):
        return super().forward(inputs + torch.randn_like(inputs))


def test_a_network_that_draws_random_numbers_is_evaluated_with_those_of_the_run(tmp_path):
    def recipe():
        teacher, student = Net("teacher", Mlp(), trained=True), Net("student", Noisy())
        objective = plain_goal() + Match(teacher, SoftTargets())
        return replace(one_stage(student, objective), metrics=(CrossEntropy(),))

    metrics = kdkit.run(recipe, device="cpu", seed=1, out=tmp_path / "run", measure=False).metrics["student"]
    options = kdkit.RunOptions(device="cpu", seed=1)
    for make in (recipe, recipe()):
        again = kdkit.evaluate(make, tmp_path / "run", options=options)
        assert again["cross_entropy"].value == metrics["cross_entropy"].value


def test_weights_of_another_program_are_evaluated_in_python(tmp_path):
    torch.manual_seed(0)
    module = Mlp()
    torch.save({"state_dict": module.state_dict()}, tmp_path / "weights.ckpt")
    recipe = one_stage(Net("student", Mlp()), plain_goal())
    results = kdkit.evaluate(recipe, tmp_path / "weights.ckpt", options=kdkit.RunOptions(device="cpu"))
    inputs, labels = samples(rows=6, seed=2).tensors  # the test split
    expected = (module.eval()(inputs).argmax(1) == labels).float().mean().item()
    assert results["accuracy"].value == pytest.approx(expected)


def test_a_recipe_function_is_called_and_anything_else_refused(tmp_path):
    torch.save(Mlp().state_dict(), tmp_path / "weights.pt")
    results = kdkit.evaluate(
        lambda: one_stage(Net("student", Mlp()), plain_goal()),
        tmp_path / "weights.pt",
        options=kdkit.RunOptions(device="cpu"),
    )
    assert "accuracy" in results
    for function in (kdkit.run, lambda recipe: kdkit.evaluate(recipe, tmp_path / "weights.pt")):
        with pytest.raises(RecipeError, match=r"takes a kdkit.Recipe, or a function that returns one; got a str"):
            function("recipe.py")


def test_data_without_a_test_split_is_evaluated_on_the_validation_split(tmp_path):
    module = Mlp()
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    data = TorchData(samples(rows=8), samples(rows=6, seed=1), classes=["a", "b", "c"])
    recipe = one_stage(Net("student", Mlp()), plain_goal(), data=data)
    inputs, labels = samples(rows=6, seed=1).tensors
    expected = (module.eval()(inputs).argmax(1) == labels).float().mean().item()
    results = kdkit.evaluate(recipe, tmp_path / "weights.pt", options=kdkit.RunOptions(device="cpu"))
    assert results["accuracy"].value == pytest.approx(expected)


def test_a_net_that_the_recipe_does_not_have_is_refused(tmp_path):
    recipe = one_stage(Net("student", nn.Linear(4, 3)), plain_goal(), data=tiny_data())
    assert isinstance(recipe, Recipe)
    with pytest.raises(RecipeError, match="the recipe has no net 'studnt'; did you mean 'student'"):
        kdkit.evaluate(recipe, tmp_path, net="studnt")


def test_weights_of_a_run_with_other_classes_are_refused_unless_these_are_named(tmp_path):
    def recipe(of_data, objective=None, **options):
        net = Net("student", Mlp(), **options)
        return one_stage(net, objective or plain_goal(), tiny_data(classes=list(of_data)))

    run, options = tmp_path / "run", kdkit.RunOptions(device="cpu")
    kdkit.run(recipe("abc"), replace(options, out=run, measure=False))
    conflict = "output 1 of net '{}' is the class 'b' in the run that trained its weights, but 'c' in the data"
    with pytest.raises(RecipeError, match=conflict.format("student") + "; pass the class of each output, by its name"):
        kdkit.evaluate(recipe("acb"), run, options=options)
    assert "accuracy" in kdkit.evaluate(recipe("acb", classes=list("abc")), run, options=options)
    assert "accuracy" in kdkit.evaluate(recipe("ABC", classes=list("ABC")), run, options=options)  # other names
    assert "accuracy" in kdkit.evaluate(recipe("012"), run, options=options)  # classes without names
    # A student may learn other classes, but a frozen teacher must know those that it teaches.
    assert any(conflict.format("student") in notice for notice in kdkit.check(recipe("acb", weights=run)).notices)
    for names, count in ((None, 1), (list("abc"), 0)):
        teacher = Net("teacher", Mlp(), weights=run, weights_key="student", classes=names)
        problems = kdkit.check(recipe("acb", Match(teacher, SoftTargets()))).problems
        assert sum(conflict.format("teacher") in problem for problem in problems) == count == len(problems)


@pytest.mark.parametrize(
    ("classes", "note"),
    [
        ("ab", "net 'student' has 2 of the 3 classes, and its metrics leave out samples of the others"),
        ("abcde", "the metrics of net 'student' tell how well it chooses among 3 of its 5 classes"),
    ],
)
def test_metrics_of_weights_with_fewer_or_more_classes_than_the_data_have_a_note(tmp_path, classes, note):
    net = Net("student", nn.Linear(4, len(classes)), classes=list(classes))
    torch.save(net.module.state_dict(), tmp_path / "old.pt")
    recipe = one_stage(net, plain_goal(), tiny_data(classes=list("abc")))
    metrics = kdkit.evaluate(recipe, tmp_path / "old.pt", options=kdkit.RunOptions(device="cpu"))
    assert note in metrics["accuracy"].note


def test_later_data_are_evaluated_with_the_thresholds_of_the_run(tmp_path):
    def recipe(*seeds, name="student", **options):
        splits = [samples("multilabel", 20, seed=seed) for seed in seeds]
        net = Net(name, Mlp(), **options)
        data = TorchData(*splits, classes=["a", "b", "c"])
        return replace(one_stage(net, Truth(nn.BCEWithLogitsLoss()), data), metrics=(MacroF1(),))

    torch.manual_seed(0)
    run, options = tmp_path / "run", kdkit.RunOptions(device="cpu")
    kdkit.run(recipe(0, 1, 2), replace(options, out=run, measure=False))
    later = recipe(0, 3, 3)
    result = kdkit.evaluate(later, run / "1-student", thresholds="run", options=options)["macro_f1"]
    validation = load_file(run / "1-student" / "predictions-student-validation.safetensors")
    network = next(iter(later.stages[0].objectives)).module
    inputs, labels = samples("multilabel", 20, seed=3).tensors
    outputs, columns = network.eval()(inputs).detach().numpy(), range(3)
    cuts = [best_f1_threshold(validation["labels"][:, k], validation["outputs"][:, k]) for k in columns]
    assert result.value == pytest.approx(f1_score(labels, outputs >= cuts, average="macro", zero_division=0))
    assert result.value != kdkit.evaluate(recipe(0, 3, 3), run, options=options)["macro_f1"].value
    renamed, file = recipe(0, 3, 3, name="small"), run / "1-student" / "weights.safetensors"
    assert kdkit.evaluate(renamed, file, thresholds="run", options=options)["macro_f1"].value == result.value

    with pytest.raises(RecipeError, match=r"the thresholds of the run are for the classes a, b, c, .* have a, b;"):
        kdkit.evaluate(recipe(0, 1, 2, classes=["a", "b", "d"]), run, thresholds="run", options=options)
    torch.save(Mlp().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(RecipeError, match=r"need weights in the folder of a run, but .*weights\.pt is not in one"):
        kdkit.evaluate(recipe(0, 1, 2), tmp_path / "weights.pt", thresholds="run", options=options)
    with pytest.raises(RecipeError, match="thresholds must be 'validation' or 'run'; got 'test'"):
        kdkit.evaluate(recipe(0, 1, 2), run, thresholds="test", options=options)


def test_inputs_that_differ_from_those_of_the_run_are_named(tmp_path):
    def recipe(rate, length, **options):
        data = tiny_data()
        data.preparation = {"rate": rate, "length": length, "leads": ("I", "II")}
        return one_stage(Net("student", Mlp(), **options), plain_goal(), data)

    run, options = tmp_path / "run", kdkit.RunOptions(device="cpu")
    kdkit.run(recipe(100, 500), replace(options, out=run, measure=False))
    kdkit.evaluate(recipe(100, 250), run, options=options)  # without a warning
    text = "the weights of net 'student' were trained on other inputs: rate 100, now 125"
    with pytest.warns(UserWarning, match=rf"{text}$") as warned:
        kdkit.evaluate(recipe(125, 250), run, options=options)
    assert warned[0].filename == __file__
    assert text not in kdkit.check(recipe(100, 500, weights=run)).notices
    assert text in kdkit.check(recipe(125, 500, weights=run)).notices
    record = read_record(run) | {"classes": {"student": 3}, "preparations": {"student": "x"}}  # by another program
    (run / "run.json").write_bytes(b"".join(map(bytes, json_parts(record))))
    kdkit.evaluate(recipe(125, 250), run, options=options)  # without a warning
