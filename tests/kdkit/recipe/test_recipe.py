"""Stages and recipes: validated when they are created."""

from types import SimpleNamespace

import pytest
from torch import nn

from kdkit import Data, Match, Objective, Parallel, Recipe, RecipeError, Stage, Tap, Training, check
from kdkit.losses import SoftTargets
from kdkit.metrics import Accuracy, MacroF1
from kdkit.recipe.recipe import nets_of
from tests.helpers.tiny import plain_goal, tiny_data, tiny_net

TRAINING = Training(epochs=1)


def match_of(teacher, **taps):
    return Match(teacher, nn.MSELoss() if taps else SoftTargets(), **taps)


def recipe_with(**changes):
    """Return a recipe of one stage, with some of its arguments changed."""
    arguments = {"data": tiny_data(), "schedule": [Stage({tiny_net("net"): plain_goal()}, TRAINING)]}
    return Recipe(**{**arguments, **changes})


# Stages


def test_the_name_of_a_stage_is_that_of_the_nets_it_trains():
    first, second = tiny_net("one"), tiny_net("two")
    assert Stage({first: plain_goal(), second: plain_goal()}, TRAINING).name == "one+two"
    assert Stage({first: plain_goal()}, TRAINING, "warm up").name == "warm up"


def test_a_single_term_becomes_an_objective():
    net = tiny_net("net")
    assert isinstance(Stage({net: plain_goal()}, TRAINING).objectives[net], Objective)


def test_default_labels_that_several_terms_of_a_net_have_are_numbered():
    teacher, student = tiny_net("teacher", trained=True), tiny_net("student")
    soft = [Match(teacher, SoftTargets()), Match(teacher, SoftTargets(), label="mine"), Match(teacher, SoftTargets())]
    stage = Stage({student: plain_goal() + sum(0.5 * term for term in soft)}, TRAINING)
    labels = ["truth", "teacher/soft_targets 1", "mine", "teacher/soft_targets 2"]
    assert [term.label for term in stage.terms] == labels
    assert stage.objectives[student].weights(0) == dict(zip(labels, [1, 0.5, 0.5, 0.5], strict=True))
    assert [term.label for term in Stage({student: plain_goal()}, TRAINING).terms] == ["truth"]


@pytest.mark.parametrize(
    ("objectives", "training", "message"),
    [
        ({}, TRAINING, "a stage takes an objective for each net"),
        ([plain_goal()], TRAINING, "a stage takes an objective for each net"),
        ({"student": plain_goal()}, TRAINING, "a stage trains nets; got a str"),
        ({tiny_net("net"): nn.MSELoss()}, TRAINING, r"an objective is a sum of Truth\(\.\.\.\) .*; got MSELoss"),
        ({tiny_net("net"): plain_goal()}, 90, "a stage needs a Training; got int"),
    ],
)
def test_invalid_arguments_of_a_stage_are_refused(objectives, training, message):
    with pytest.raises(RecipeError, match=message):
        Stage(objectives, training)


def test_the_taps_on_a_teacher_are_collected_over_all_terms_without_duplicates():
    teacher, assistant, student = tiny_net("teacher"), tiny_net("assistant"), tiny_net("student")
    head, hidden = Tap(teacher.module.head), Tap(teacher.module.hidden)
    student_tap = Tap(student.module.head)
    objective = (
        match_of(teacher)
        + match_of(teacher, student=student_tap, target=head)
        + match_of(teacher, student=(student_tap, student_tap), target=(head, hidden))
        + match_of(assistant)
        + plain_goal()
    )
    stage = Stage({student: objective}, TRAINING)
    # In order of appearance; the index of a tap here is the index of its feature in a TeacherOutput.
    assert stage.teachers == {teacher: (head, hidden), assistant: ()}
    assert len(stage.matches) == 4


def test_nets_are_listed_once_and_teachers_before_their_students():
    teacher, student = tiny_net("teacher", trained=True), tiny_net("student")
    stages = [
        Stage({student: match_of(teacher)}, TRAINING),
        Stage({student: plain_goal()}, TRAINING, "again"),
    ]
    assert nets_of(stages) == (teacher, student)


# Recipes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": [1, 2]}, r"data must be a TorchData\(.*got a list$"),
        ({"schedule": Stage({tiny_net("net"): plain_goal()}, TRAINING)}, "schedule must be a list of stages"),
        ({"schedule": Parallel}, r"an object with a stages\(\) method; got the class Parallel; did you forget its"),
        (
            {"metrics": ("accuracy",)},
            "a metric must have a name, fit and compute; got 'accuracy'; use one of kdkit.metrics",
        ),
        (
            {"metrics": (SimpleNamespace(name=None, fit=print, compute=print),)},
            "a metric must have a name, fit and comp",
        ),
        ({"metrics": (Accuracy,)}, "the class Accuracy; did you forget"),
        ({"metrics": (MacroF1(), MacroF1())}, "two metrics have the same name: macro_f1"),
    ],
)
def test_invalid_arguments_of_a_recipe_are_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        recipe_with(**changes)


def test_a_metric_that_is_not_in_a_tuple_is_refused_as_a_recipe_error():
    with pytest.raises(RecipeError, match=r"metrics must be a tuple of metrics, such as \(MacroF1\(\),\)"):
        recipe_with(metrics=MacroF1())


@pytest.mark.parametrize(
    ("task", "first"), [("multiclass", "accuracy"), ("multilabel", "macro_auprc"), ("regression", "r2")]
)
def test_the_default_metrics_are_those_of_the_task(task, first):
    assert recipe_with(data=tiny_data(task)).metrics[0].name == first


def test_creating_a_recipe_does_not_read_the_data():
    class UnreadableData(Data):
        classes, task, draws = ("a",), "multiclass", 1

        # Loading a split may take minutes.
        @property
        def train(self):
            raise AssertionError("the data was read")

        validation = test = fingerprint = train

    assert recipe_with(data=UnreadableData()).metrics


def test_a_recipe_can_run_once():
    recipe = recipe_with()
    recipe.mark_used()
    with pytest.raises(RecipeError, match="has already run"):
        recipe.require_unused()
    recipe_with().require_unused()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (lambda: None, r"stages\(\) of the schedule Mine must return a list of Stage\(...\); got a NoneType"),
        (lambda: Stage({tiny_net("net"): plain_goal()}, TRAINING), r"must return a list of Stage\(...\); got a Stage"),
        (lambda: "net", "got a str"),
        (lambda: [][0], r"stages\(\) of the schedule Mine raises IndexError: .*\(.*test_recipe.py, line \d+\)"),
        (lambda: ([][number] for number in range(2)), "raises IndexError"),
    ],
)
def test_a_schedule_that_makes_no_stages_is_refused(stages, message):
    class Mine:
        def stages(self):
            return stages()

    recipe = recipe_with(schedule=Mine())
    with pytest.raises(RecipeError, match=message):
        check(recipe)
