"""Schedules: who learns from whom, when, and with which weights."""

import pytest
from torch import nn

from kdkit import (
    Guidance,
    Level,
    Match,
    MultiLevel,
    Parallel,
    Recipe,
    RecipeError,
    Sequential,
    Stage,
    Tap,
    Teachers,
    Training,
)
from kdkit.losses import Hint, SoftTargets
from tests.helpers.tiny import plain_goal, tiny_data, tiny_net

TRAINING = Training(epochs=1)


def options(**changes):
    return {"truth": plain_goal(), "kd_loss": SoftTargets(), "training": TRAINING, **changes}


def nets(**trained):
    return [tiny_net(name, trained=trained.get(name, False)) for name in ("teacher", "assistant", "student")]


def plan(schedule):
    """Return who learns in each stage, with the weight of each term."""
    return [(stage.name, next(iter(stage.objectives.values())).weights(0)) for stage in schedule.stages()]


def test_parallel_trains_teachers_alone_and_the_student_from_all():
    alone, also_alone, (name, weights) = plan(Parallel(*nets(), **options(label_weight=0.3)))
    assert (alone, also_alone) == (("teacher", {"truth": 1}), ("assistant", {"truth": 1}))
    assert name == "student"
    assert weights == pytest.approx({"truth": 0.3, "teacher/soft_targets": 0.35, "assistant/soft_targets": 0.35})


def test_sequential_trains_each_from_the_one_before():
    first, second, third = plan(Sequential(*nets(), **options(label_weight=0.4)))
    assert first == ("teacher", {"truth": 1})
    assert second[1] == pytest.approx({"truth": 0.4, "teacher/soft_targets": 0.6})
    assert third[1] == pytest.approx({"truth": 0.4, "assistant/soft_targets": 0.6})


def test_multi_level_trains_each_from_all_above():
    teacher, assistant, student = nets()
    schedule = MultiLevel(teacher, assistant, Level(student, teacher_weights=(0.6, 0.4)), **options(label_weight=0.3))
    first, second, third = plan(schedule)
    assert first == ("teacher", {"truth": 1})
    assert second[1] == pytest.approx({"truth": 0.3, "teacher/soft_targets": 0.7})
    assert third[1] == pytest.approx({"truth": 0.3, "teacher/soft_targets": 0.42, "assistant/soft_targets": 0.28})


@pytest.mark.parametrize("schedule", [Parallel, Sequential, MultiLevel])
def test_nets_that_come_trained_have_no_stage(schedule):
    trained = schedule(*nets(teacher=True, assistant=True), **options())
    assert [stage.name for stage in trained.stages()] == ["student"]


@pytest.mark.parametrize("schedule", [Parallel, Sequential, MultiLevel])
def test_the_student_is_trained_also_where_it_comes_trained(schedule):
    trained = schedule(*nets(teacher=True, assistant=True, student=True), **options())
    assert [stage.name for stage in trained.stages()] == ["student"]


@pytest.mark.parametrize("schedule", [Parallel, Sequential, MultiLevel])
def test_the_net_that_teaches_is_the_one_that_was_trained(schedule):
    *_, last = schedule(*nets(), **options()).stages()
    stages = schedule(*(given := nets()), **options()).stages()
    assert {source for stage in stages for source in stage.teachers} <= set(given)
    assert len(last.objectives) == 1


@pytest.mark.parametrize("schedule", [Parallel, Sequential, MultiLevel])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda nets: nets[:1], "takes at least 2 nets"),
        (lambda nets: [nets[0], nets[0]], "takes each net once"),
        (lambda nets: [nets[0], nn.Linear(1, 1)], "a level takes a Net; got a Linear"),
    ],
)
def test_nets_that_make_no_schedule_are_refused(schedule, make, said):
    with pytest.raises(RecipeError, match=said):
        schedule(*make(nets()), **options())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"truth": nn.CrossEntropyLoss()}, r"truth is Truth\(loss\)"),
        ({"kd_loss": None}, "either kd_loss=loss or match=function"),
        ({"match": lambda net, teacher: None}, "either kd_loss=loss or match=function"),
        ({"label_weight": 1.1}, "label_weight is the share of the truth"),
        ({"label_weight": float("nan")}, "label_weight is the share of the truth"),
        ({"kd_loss": SoftTargets}, "did you forget its"),
    ],
)
def test_guiding_that_makes_no_sense_is_refused(changes, said):
    with pytest.raises(RecipeError, match=said):
        Parallel(*nets(), **options(**changes)).stages()


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ((1.0,), "learns from 2"),
        ((0.5, 0.6), "sum to 1"),
        ((1.5, -0.5), "at least 0"),
        ((float("nan"), 1), "at least 0"),
    ],
)
def test_shares_are_one_a_teacher_and_sum_to_one(shares, said):
    teacher, assistant, student = nets()
    with pytest.raises(RecipeError, match=said):
        Parallel(teacher, assistant, Level(student, teacher_weights=shares), **options()).stages()


def test_a_teacher_with_no_share_is_not_asked():
    teacher, assistant, student = nets()
    *_, last = Parallel(teacher, assistant, Level(student, teacher_weights=(0, 1)), **options()).stages()
    assert list(last.teachers) == [assistant]


def test_a_level_may_have_its_own_training_and_balance():
    teacher, student = tiny_net("teacher"), tiny_net("student")
    own = Training(epochs=7)
    first, second = Parallel(Level(teacher, training=own), Level(student, label_weight=0.9), **options()).stages()
    assert first.training is own
    assert second.training is TRAINING
    assert next(iter(second.objectives.values())).weights(0) == pytest.approx(
        {"truth": 0.9, "teacher/soft_targets": 0.1}
    )


def test_a_balance_of_a_level_is_validated_too():
    teacher, student = tiny_net("teacher"), tiny_net("student")
    with pytest.raises(RecipeError, match="label_weight is"):
        Parallel(teacher, Level(student, label_weight=2), **options()).stages()


def test_a_guide_with_weights_is_copied_for_each_teacher():
    kd_loss = Hint()
    *_, last = Parallel(*nets(), **options(kd_loss=kd_loss)).stages()
    losses = [match.loss for match in last.matches]
    assert len({id(loss) for loss in [kd_loss, *losses]}) == 3


def test_a_match_of_ones_own_replaces_the_guide():
    def match(net, teacher):
        features = Match(teacher, Hint(), student=Tap(net.module.hidden), target=Tap(teacher.module.hidden))
        return 0.5 * Match(teacher, SoftTargets()) + 0.5 * features

    teacher, student = tiny_net("teacher"), tiny_net("student")
    _, last = Parallel(teacher, student, **options(kd_loss=None, match=match, label_weight=0.2)).stages()
    weights = next(iter(last.objectives.values())).weights(0)
    assert weights == pytest.approx({"truth": 0.2, "teacher/soft_targets": 0.4, "teacher/hint": 0.4})


def test_guiding_can_be_used_alone():
    teacher, student = tiny_net("teacher"), tiny_net("student")
    stage = Guidance(**options()).stage(Level(student), [teacher])
    assert next(iter(stage.objectives.values())).weights(0) == {"truth": 0.5, "teacher/soft_targets": 0.5}


def test_a_list_of_stages_is_a_schedule():
    one = Stage({tiny_net("one"): plain_goal()}, TRAINING)
    two = Stage({tiny_net("two"): plain_goal()}, TRAINING)
    assert Recipe(data=tiny_data(), schedule=[one, two]).stages == (one, two)


@pytest.mark.parametrize("schedule", [("first",), [[Stage({tiny_net("x"): plain_goal()}, TRAINING)]], "first", 3])
def test_a_schedule_of_anything_else_is_refused(schedule):
    with pytest.raises(RecipeError, match=r"a schedule is a list of Stage\(...\)|schedule must be a list of stages"):
        Recipe(data=tiny_data(), schedule=schedule)


def test_a_misspelt_option_is_answered_with_the_nearest():
    with pytest.raises(RecipeError, match="did you mean 'label_weight'"):
        Parallel(*nets(), **options(label_wight=0.3))


def test_a_missing_option_is_named():
    with pytest.raises(RecipeError, match="training="):
        Parallel(*nets(), truth=plain_goal(), kd_loss=SoftTargets())


def test_a_share_alone_is_refused():
    with pytest.raises(RecipeError, match=r"a number for each teacher, such as \(0.6, 0.4\); got 0.5"):
        Level(nets()[-1], teacher_weights=0.5)


def test_shares_of_a_net_without_teachers_are_refused():
    teacher, student = nets()[:2]
    with pytest.raises(RecipeError, match="has no teacher"):
        Sequential(Level(teacher, teacher_weights=(1.0,)), student, **options()).stages()


@pytest.mark.parametrize("weights", ["confidence", "learned"])
def test_teachers_may_be_weighed_by_themselves(weights):
    teacher, assistant, student = nets()
    *_, last = MultiLevel(teacher, assistant, Level(student, teacher_weights=weights), **options()).stages()
    truth, guided = last.objectives[student]
    assert guided.term.teacher == Teachers(teacher, assistant)
    assert guided.term.loss.weights == weights
    assert guided.weight(0.0) == pytest.approx(0.5)
    assert truth.weight(0.0) == pytest.approx(0.5)
    assert set(last.teachers) == {teacher, assistant}


def test_teachers_that_are_weighed_by_themselves_take_a_guide():
    given = options(kd_loss=None, match=lambda net, teacher: Match(teacher, SoftTargets()))
    teacher, assistant, student = nets()
    with pytest.raises(RecipeError, match="takes kd_loss=loss"):
        MultiLevel(teacher, assistant, Level(student, teacher_weights="learned"), **given).stages()


def test_an_unknown_way_to_weigh_teachers_is_refused():
    teacher, assistant, student = nets()
    with pytest.raises(RecipeError, match="equal, confidence, learned; got 'best'"):
        MultiLevel(teacher, assistant, Level(student, teacher_weights="best"), **options()).stages()
