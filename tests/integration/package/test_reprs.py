"""Tests of the reprs of public objects: short, useful, on one screen, and without addresses."""

import copy
import pickle
from dataclasses import fields
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdkit
from kdkit import Match, Net, Stage, Tap, Training, Truth
from kdkit.engine.options import RunFields
from kdkit.losses import Hint, SoftTargets
from kdkit.report import write_report


def named_function(**_options):
    return None


SAMPLES = TensorDataset(torch.randn(48, 6), torch.arange(48) % 3)
BODY = nn.Sequential(*(nn.Linear(6, 6) for _ in range(40)))
TEACHER, STUDENT = Net("teacher", nn.Sequential(BODY, nn.Linear(6, 3)), trained=True), Net("student", nn.Linear(6, 3))
TRUTH = Truth(nn.CrossEntropyLoss())
OBJECTIVE = 0.3 * TRUTH + kdkit.LinearRamp(start=1, end=0) * Match(TEACHER, SoftTargets()) + 0.1 * Match(
    TEACHER, Hint(), student=Tap(STUDENT.module), target=Tap(BODY, "input")
)  # fmt: skip
GUIDANCE = {"truth": TRUTH, "kd_loss": SoftTargets(), "training": Training(epochs=2)}
DATA = kdkit.TorchData(SAMPLES, SAMPLES, classes=("a", "b", "c"))


def predictions():
    names = tuple(f"class {number}" for number in range(1000))
    return kdkit.Predictions(labels=np.zeros(500, np.int64), outputs=np.zeros((500, 1000)), classes=names)


def recipe():
    return kdkit.Recipe(data=DATA, schedule=[Stage({STUDENT: OBJECTIVE}, Training(epochs=2))], name="mine")


def result():
    return kdkit.distill(TEACHER, Net("student", nn.Linear(6, 3)), SAMPLES, SAMPLES, epochs=1, device="cpu")


def sweep():
    return kdkit.Sweep(lambda width=4: recipe(), {"width": [4, 8]}, folder="s", seeds=3)


def feature():
    with kdkit.tap(BODY[0]) as feature:
        return feature


def report(folder):
    kdkit.distill(
        TEACHER, Net("student", nn.Linear(6, 3)), SAMPLES, SAMPLES, epochs=1, device="cpu", out=folder / "run"
    )
    return write_report(folder / "run", folder / "report.html")


def distiller_output():
    student = Net("student", nn.Linear(6, 3))
    distiller = kdkit.Distiller(
        student, TRUTH + Match(TEACHER, SoftTargets()), (torch.randn(4, 6), torch.arange(4) % 3)
    )
    return distiller(torch.randn(4, 6), torch.arange(4) % 3)


# What creates an object, and words of its repr.
OBJECTS = {
    "registry": (lambda: kdkit.registry("losses"), ["losses", "soft_targets", "wttm"]),
    "net": (lambda: TEACHER, ["Net('teacher', Sequential)"]),
    "data": (lambda: DATA, ["TorchData(multiclass, 3 classes (a, b, c)", "train: DatasetSplit(48 samples)"]),
    "split": (lambda: DATA.train, ["DatasetSplit(48 samples)"]),
    "loader": (lambda: kdkit.LoaderSplit(DataLoader(SAMPLES)), ["LoaderSplit(DataLoader of TensorDataset)"]),
    "tap": (lambda: Tap(BODY, "input"), ["Tap(Sequential, at='input')"]),
    "truth": (lambda: TRUTH, ["Truth(CrossEntropyLoss)"]),
    "match": (lambda: Match(TEACHER, SoftTargets(), label="kd"), ["Match('teacher', SoftTargets(", "label='kd'"]),
    "objective": (lambda: OBJECTIVE, ["0.3 * Truth(Cross", "+ LinearRamp(start=1", "0.1 * Match('teacher', Hint"]),
    "stage": (lambda: recipe().stages[0], ["Stage('student', 2 epochs", "student learns 0.3 * Truth("]),
    "recipe": (recipe, ["Recipe('mine'", "metrics: accuracy", "student learns 0.3 * Truth("]),
    "parallel": (lambda: kdkit.Parallel(TEACHER, STUDENT, **GUIDANCE), ["Parallel(teacher, student"]),
    "predictions": (predictions, ["500 samples, 1,000 classes", "outputs float64 (500, 1000)"]),
    "batch": (lambda: kdkit.Batch({"x": torch.zeros(4, 900)}, torch.zeros(4)), ["inputs={x: float32 (4, 900)}"]),
    "teacher output": (lambda: kdkit.TeacherOutput(torch.zeros(9, 900)), ["TeacherOutput(output=float32 (9, 900)"]),
    "metric result": (
        lambda: kdkit.MetricResult(value=1 / 3, by_class=dict.fromkeys("abc", 0.1), interval=(0.1, 0.5)),
        ["MetricResult(0.3333 (0.1 to 0.5), by_class: 3 values)"],
    ),
    "trial": (lambda: kdkit.Trial(name="t", recipe=named_function, options={"x": 3}), ["recipe=named_function, x=3"]),
    "sweep": (sweep, ["Sweep('s', 6 trials, 2 combinations of width)"]),
    "tap by function": (lambda: Tap(BODY, element=named_function), ["element=named_function"]),
    "feature": (feature, ["Feature(Tap(Linear))"]),
    "lr schedule": (
        lambda: kdkit.LRSchedule(torch.optim.lr_scheduler.LambdaLR, lr_lambda=named_function),
        ["LRSchedule(LambdaLR, interval='epoch', lr_lambda=named_function)"],
    ),
    "unlabelled": (lambda: kdkit.Unlabelled(SAMPLES), ["Unlabelled(TensorDataset)"]),
    "logger": (kdkit.loggers.CsvLogger, ["CsvLogger()"]),
    "study": (
        lambda: kdkit.Study("s", [kdkit.Trial(name=f"t{count}", recipe=named_function) for count in range(99)]),
        ["Study('s', 99 trials: t0, t1,", "..., t98)"],
    ),
    "plan": (lambda: kdkit.check(recipe(), torch.device("cpu")), ["1 stage: student", "no problems"]),
    "result": (result, ["student 'student'", "metrics on validation", "accuracy 0."]),
    "distiller output": (distiller_output, ["DistillerOutput(loss=float32 (), terms: truth, teacher/soft_targets"]),
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTS)
def test_the_repr_of_a_public_object_is_short_and_useful(name):
    make, words = OBJECTS[name]
    text = repr(make())
    assert len(text) <= 1500, text
    assert len(text.splitlines()) <= 20
    assert " at 0x" not in text
    for word in words:
        assert word in text


def test_the_repr_of_a_report_is_short(tmp_path):
    made = report(tmp_path)
    assert repr(made) == "Report(1 run: run; 1 verdict)"
    assert repr(made.runs[0]).startswith("ReportedRun('run', nets: teacher, student, in ")
    assert len(repr(made.verdicts[0])) < 1500


# Named tuples compare their tensors, as tuples do, and some objects hold functions or graphs.
NOT_COMPARED = {"registry", "sweep", "feature", "teacher output", "distiller output"}


@pytest.mark.parametrize("name", sorted(OBJECTS.keys() - NOT_COMPARED))
def test_a_public_object_can_be_copied_pickled_and_compared(name):
    made = OBJECTS[name][0]()
    for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert repr(copied) == repr(made)
        assert isinstance(copied == made, bool)
    assert made == made


@pytest.mark.parametrize(
    "call", [partial(kdkit.run, recipe), partial(kdkit.distill, TEACHER, STUDENT, SAMPLES, SAMPLES)]
)
def test_an_option_that_does_not_exist_is_refused_with_the_nearest_one(call):
    name = call.func.__name__
    for wrong, near in (("sed", "seed"), ("callback", "callbacks")):
        with pytest.raises(kdkit.RecipeError, match=f"{name} has no option '{wrong}'; did you mean '{near}'"):
            call(**{wrong: 3})


def test_an_option_of_distill_is_the_nearest_one_to_a_wrong_option():
    with pytest.raises(kdkit.RecipeError, match="distill has no option 'lable_weight'; did you mean 'label_weight'"):
        kdkit.distill(TEACHER, STUDENT, SAMPLES, SAMPLES, lable_weight=0.3)


def test_an_option_of_the_training_is_named_with_its_place():
    with pytest.raises(kdkit.RecipeError, match=r"'lr', which belongs to Training\(epochs=..., optimizer=Optimizer\("):
        kdkit.distill(TEACHER, STUDENT, SAMPLES, SAMPLES, lr=0.1)
    with pytest.raises(kdkit.RecipeError, match=r"run has no option 'epochs', which belongs to Training\(epochs=...\)"):
        kdkit.run(recipe, epochs=3)


def test_an_argument_of_the_recipe_function_is_no_option_of_a_run():
    def made(width=4):
        return recipe()

    with pytest.raises(kdkit.RecipeError, match=r"'width', which is an argument of the recipe function; .*width=...\)"):
        kdkit.run(made, width=8)
    for wrong in (8, {"width": 8}):
        with pytest.raises(kdkit.RecipeError, match=r"must be RunOptions, .* pass lambda: recipe\(...\)"):
            kdkit.run(made, wrong)


def test_the_keywords_of_run_are_the_fields_of_run_options():
    assert list(RunFields.__annotations__) == [field.name for field in fields(kdkit.RunOptions)]
