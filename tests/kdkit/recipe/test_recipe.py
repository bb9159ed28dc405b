"""Stages and recipes: validated where they are made."""

import pytest
from torch import nn

from kdkit import Data, Match, Objective, Recipe, RecipeError, Stage, Tap, Training
from kdkit.losses import SoftTargets
from kdkit.metrics import Accuracy, MacroF1
from kdkit.recipe.recipe import nets_of
from tests.helpers.tiny import plain_goal, tiny_data, tiny_net

TRAINING = Training(epochs=1)


def guided(teacher, **taps):
    return Match(teacher, nn.MSELoss() if taps else SoftTargets(), **taps)


def test_a_stage_is_named_after_the_nets_it_trains():
    one, two = tiny_net("one"), tiny_net("two")
    assert Stage({one: plain_goal(), two: plain_goal()}, TRAINING).name == "one+two"
    assert Stage({one: plain_goal()}, TRAINING, "warm up").name == "warm up"


def test_a_single_term_is_a_goal():
    net = tiny_net("net")
    assert isinstance(Stage({net: plain_goal()}, TRAINING).objectives[net], Objective)


@pytest.mark.parametrize(
    ("objectives", "training", "said"),
    [
        ({}, TRAINING, "a stage takes its goals by net"),
        ([plain_goal()], TRAINING, "a stage takes its goals by net"),
        ({"student": plain_goal()}, TRAINING, "a stage trains nets; got a str"),
        ({tiny_net("net"): nn.MSELoss()}, TRAINING, "a goal is a sum of"),
        ({tiny_net("net"): plain_goal()}, 90, "a stage needs a Training; got int"),
    ],
)
def test_a_stage_that_makes_no_sense_is_refused(objectives, training, said):
    with pytest.raises(RecipeError, match=said):
        Stage(objectives, training)


def test_the_taps_of_a_source_are_gathered_once_over_all_terms():
    teacher, other, student = tiny_net("teacher"), tiny_net("other"), tiny_net("student")
    head, hidden = Tap(teacher.module.head), Tap(teacher.module.hidden)
    side = Tap(student.module.head)
    objective = (
        guided(teacher)
        + guided(teacher, student=side, target=head)
        + guided(teacher, student=(side, side), target=(head, hidden))
        + guided(other)
        + plain_goal()
    )
    stage = Stage({student: objective}, TRAINING)
    assert stage.teachers == {teacher: (head, hidden), other: ()}
    assert len(stage.matches) == 4


def test_nets_come_once_each_teachers_before_those_they_teach():
    teacher, student = tiny_net("teacher", trained=True), tiny_net("student")
    stages = [
        Stage({student: guided(teacher)}, TRAINING),
        Stage({student: plain_goal()}, TRAINING, "again"),
    ]
    assert nets_of(stages) == (teacher, student)


def recipe(**changes):
    parts = {"data": tiny_data(), "schedule": [Stage({tiny_net("net"): plain_goal()}, TRAINING)]}
    return Recipe(**{**parts, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": [1, 2]}, "data is a TorchData.*got a list, which lacks classes, task"),
        ({"schedule": Stage({tiny_net("net"): plain_goal()}, TRAINING)}, "schedule must be a list of stages"),
        ({"metrics": ("accuracy",)}, "a metric has a name, fit and compute; got 'accuracy'"),
        ({"metrics": (Accuracy,)}, "the class Accuracy; did you forget"),
        ({"metrics": (MacroF1(), MacroF1())}, "two scores have the same name: macro_f1"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(changes, said):
    with pytest.raises(RecipeError, match=said):
        recipe(**changes)


def test_a_single_score_is_a_recipe_error_and_no_crash():
    with pytest.raises(RecipeError, match="scores is a tuple"):
        recipe(metrics=MacroF1())


@pytest.mark.parametrize(
    ("task", "first"), [("multiclass", "accuracy"), ("multilabel", "macro_auprc"), ("regression", "r2")]
)
def test_a_recipe_without_scores_has_those_of_its_task(task, first):
    assert recipe(data=tiny_data(task)).metrics[0].name == first


def test_a_recipe_is_made_without_reading_the_data():
    class Unread(Data):
        classes, task, draws = ("a",), "multiclass", 1

        @property
        def train(self):
            raise AssertionError("read")

        validation = test = fingerprint = train

    assert recipe(data=Unread()).metrics


def test_a_recipe_runs_once():
    made = recipe()
    made.use()
    with pytest.raises(RecipeError, match="has run already"):
        made.require_unused()
    recipe().require_unused()
