"""Schedules: which network learns from which teachers, in which stage, and with which weights."""

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
SCHEDULES = pytest.mark.parametrize("schedule_class", [Parallel, Sequential, MultiLevel])


def options(**changes):
    """Return the options of a schedule, with some of them changed."""
    return {"truth": plain_goal(), "kd_loss": SoftTargets(), "training": TRAINING, **changes}


def three_nets(**trained):
    return [tiny_net(name, trained=trained.get(name, False)) for name in ("teacher", "assistant", "student")]


def weights_by_stage(schedule):
    """Return the name of each stage and the weights of its terms at the first step."""
    return [(stage.name, next(iter(stage.objectives.values())).weights(0)) for stage in schedule.stages()]


def test_parallel_trains_teachers_on_labels_and_the_student_from_all_of_them():
    first, second, (name, weights) = weights_by_stage(Parallel(*three_nets(), **options(label_weight=0.3)))
    assert (first, second) == (("teacher", {"truth": 1}), ("assistant", {"truth": 1}))
    assert name == "student"
    assert weights == pytest.approx({"truth": 0.3, "teacher/soft_targets": 0.35, "assistant/soft_targets": 0.35})


def test_labels_of_weight_0_are_no_term():
    *_, (_, weights) = weights_by_stage(Parallel(*three_nets(), **options(label_weight=0)))
    assert weights == pytest.approx({"teacher/soft_targets": 0.5, "assistant/soft_targets": 0.5})


def test_sequential_trains_each_net_from_the_one_before():
    first, second, third = weights_by_stage(Sequential(*three_nets(), **options(label_weight=0.4)))
    assert first == ("teacher", {"truth": 1})
    assert second[1] == pytest.approx({"truth": 0.4, "teacher/soft_targets": 0.6})
    assert third[1] == pytest.approx({"truth": 0.4, "assistant/soft_targets": 0.6})  # not from the teacher


def test_multi_level_trains_each_net_from_all_before():
    teacher, assistant, student = three_nets()
    schedule = MultiLevel(teacher, assistant, Level(student, teacher_weights=(0.6, 0.4)), **options(label_weight=0.3))
    first, second, third = weights_by_stage(schedule)
    assert first == ("teacher", {"truth": 1})
    assert second[1] == pytest.approx({"truth": 0.3, "teacher/soft_targets": 0.7})
    # The teachers share 1 - 0.3 in the ratio 0.6 : 0.4.
    assert third[1] == pytest.approx({"truth": 0.3, "teacher/soft_targets": 0.42, "assistant/soft_targets": 0.28})


@SCHEDULES
def test_trained_teachers_have_no_stage(schedule_class):
    schedule = schedule_class(*three_nets(teacher=True, assistant=True), **options())
    assert [stage.name for stage in schedule.stages()] == ["student"]


@SCHEDULES
def test_the_student_has_a_stage_although_it_is_trained_already(schedule_class):
    schedule = schedule_class(*three_nets(teacher=True, assistant=True, student=True), **options())
    assert [stage.name for stage in schedule.stages()] == ["student"]


@SCHEDULES
def test_teachers_are_the_nets_of_the_schedule_and_not_copies(schedule_class):
    nets = three_nets()
    stages = schedule_class(*nets, **options()).stages()
    assert {teacher for stage in stages for teacher in stage.teachers} <= set(nets)
    *_, last = schedule_class(*three_nets(), **options()).stages()
    assert len(last.objectives) == 1


@SCHEDULES
@pytest.mark.parametrize(
    ("select", "message"),
    [
        (lambda nets: nets[:1], "takes at least 2 nets, the student last; got 1"),
        (lambda nets: [nets[0], nets[0]], "takes each net once; got teacher, teacher"),
        (lambda nets: [nets[0], nn.Linear(1, 1)], "a level takes a Net; got a Linear"),
    ],
)
def test_invalid_nets_of_a_schedule_are_refused(schedule_class, select, message):
    with pytest.raises(RecipeError, match=message):
        schedule_class(*select(three_nets()), **options())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truth": nn.CrossEntropyLoss()}, r"truth must be Truth\(loss\); got a CrossEntropyLoss"),
        ({"kd_loss": None}, "either kd_loss=loss or match=function"),
        ({"match": lambda net, teacher: None}, "either kd_loss=loss or match=function"),
        ({"label_weight": "0.5"}, r"label_weight must be a number in \[0, 1\]; got '0\.5'"),
        ({"label_weight": 1.1}, r"label_weight must be a number in \[0, 1\]; got 1\.1"),
        ({"label_weight": float("nan")}, r"label_weight must be a number in \[0, 1\]; got nan"),
        # The class instead of an instance is found when a term is created from it.
        ({"kd_loss": SoftTargets}, "did you forget its"),
    ],
)
def test_invalid_guidance_is_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        Parallel(*three_nets(), **options(**changes)).stages()


def test_a_misspelt_option_is_refused_with_the_nearest_name():
    with pytest.raises(RecipeError, match="did you mean 'label_weight'"):
        Parallel(*three_nets(), **options(label_wight=0.3))


def test_a_missing_option_is_refused_by_its_name():
    with pytest.raises(RecipeError, match="a schedule also needs training="):
        Parallel(*three_nets(), truth=plain_goal(), kd_loss=SoftTargets())


# Levels


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0,), r"has 2 teachers \(teacher, assistant\), so it takes 2 numbers as teacher_weights; got \(1\.0,\)"),
        ((), r"has 2 teachers \(teacher, assistant\), so it takes 2 numbers as teacher_weights; got \(\)"),
        ((0.5, 0.6), r"must be at least 0 and sum to 1; got \(0\.5, 0\.6\)"),
        ((1.5, -0.5), r"must be at least 0 and sum to 1; got \(1\.5, -0\.5\)"),
        ((float("nan"), 1), r"must be at least 0 and sum to 1; got \(nan, 1\)"),
    ],
)
def test_teacher_weights_must_be_a_number_per_teacher_and_sum_to_one(weights, message):
    teacher, assistant, student = three_nets()
    with pytest.raises(RecipeError, match=message):
        Parallel(teacher, assistant, Level(student, teacher_weights=weights), **options()).stages()


def test_a_teacher_with_weight_zero_does_not_run():
    teacher, assistant, student = three_nets()
    *_, last = Parallel(teacher, assistant, Level(student, teacher_weights=(0, 1)), **options()).stages()
    # Its term is left out, since a forward pass for nothing costs time.
    assert list(last.teachers) == [assistant]


def test_a_level_may_have_its_own_training_and_label_weight():
    teacher, student = tiny_net("teacher"), tiny_net("student")
    longer = Training(epochs=7)
    first, second = Parallel(Level(teacher, training=longer), Level(student, label_weight=0.9), **options()).stages()
    assert first.training is longer
    assert second.training is TRAINING
    assert next(iter(second.objectives.values())).weights(0) == pytest.approx(
        {"truth": 0.9, "teacher/soft_targets": 0.1}
    )


def test_the_label_weight_of_a_level_is_validated():
    teacher, student = tiny_net("teacher"), tiny_net("student")
    with pytest.raises(RecipeError, match=r"label_weight must be a number in \[0, 1\]; got 2"):
        Parallel(teacher, Level(student, label_weight=2), **options()).stages()


def test_a_single_number_as_teacher_weights_is_refused():
    with pytest.raises(RecipeError, match=r"one number per teacher, such as \(0.6, 0.4\); got 0.5"):
        Level(three_nets()[-1], teacher_weights=0.5)


def test_teacher_weights_of_a_net_without_teachers_are_refused():
    teacher, student = three_nets()[:2]
    with pytest.raises(RecipeError, match="net 'teacher' has no teacher"):
        Sequential(Level(teacher, teacher_weights=(1.0,)), student, **options()).stages()


# The loss against the teachers


def test_a_loss_with_parameters_is_copied_for_each_teacher():
    kd_loss = Hint()
    *_, last = Parallel(*three_nets(), **options(kd_loss=kd_loss)).stages()
    losses = [match.loss for match in last.matches]
    assert len({id(loss) for loss in [kd_loss, *losses]}) == 3  # the original and two copies


def test_a_user_defined_match_replaces_the_loss():
    def match(net, teacher):
        features = Match(teacher, Hint(), student=Tap(net.module.hidden), target=Tap(teacher.module.hidden))
        return 0.5 * Match(teacher, SoftTargets()) + 0.5 * features

    teacher, student = tiny_net("teacher"), tiny_net("student")
    _, last = Parallel(teacher, student, **options(kd_loss=None, match=match, label_weight=0.2)).stages()
    weights = next(iter(last.objectives.values())).weights(0)
    assert weights == pytest.approx({"truth": 0.2, "teacher/soft_targets": 0.4, "teacher/hint": 0.4})


def test_guidance_can_be_used_without_a_schedule():
    teacher, student = tiny_net("teacher"), tiny_net("student")
    stage = Guidance(**options()).stage(Level(student), [teacher])
    assert next(iter(stage.objectives.values())).weights(0) == {"truth": 0.5, "teacher/soft_targets": 0.5}


@pytest.mark.parametrize("weights", ["confidence", "learned"])
def test_teachers_may_be_weighted_per_sample_or_by_learned_weights(weights):
    teacher, assistant, student = three_nets()
    *_, last = MultiLevel(teacher, assistant, Level(student, teacher_weights=weights), **options()).stages()
    truth, distillation = last.objectives[student]
    # One term for both teachers: their weights depend on the sample, or are parameters of the loss.
    assert distillation.term.teacher == Teachers(teacher, assistant)
    assert distillation.term.loss.weights == weights
    assert distillation.weight(0.0) == pytest.approx(0.5)
    assert truth.weight(0.0) == pytest.approx(0.5)
    assert set(last.teachers) == {teacher, assistant}


def test_learned_teacher_weights_need_a_loss_and_not_a_user_defined_match():
    with_match = options(kd_loss=None, match=lambda net, teacher: Match(teacher, SoftTargets()))
    teacher, assistant, student = three_nets()
    with pytest.raises(RecipeError, match="has teacher_weights='learned', which needs kd_loss=loss"):
        MultiLevel(teacher, assistant, Level(student, teacher_weights="learned"), **with_match).stages()


def test_an_unknown_name_of_teacher_weights_is_refused():
    teacher, assistant, student = three_nets()
    with pytest.raises(RecipeError, match="equal, confidence, learned; got 'best'"):
        MultiLevel(teacher, assistant, Level(student, teacher_weights="best"), **options()).stages()


# A list of stages


def test_a_list_of_stages_is_a_schedule():
    first = Stage({tiny_net("one"): plain_goal()}, TRAINING)
    second = Stage({tiny_net("two"): plain_goal()}, TRAINING)
    assert Recipe(data=tiny_data(), schedule=[first, second]).stages == (first, second)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (("first",), r"a schedule is a list of Stage\(\.\.\.\); got a str in it"),
        (
            [[Stage({tiny_net("x"): plain_goal()}, TRAINING)]],
            r"a schedule is a list of Stage\(\.\.\.\); got a list in it",
        ),
        ("first", r"schedule must be a list of stages or an object with a stages\(\) method; got str"),
        (3, r"schedule must be a list of stages or an object with a stages\(\) method; got int"),
    ],
)
def test_a_schedule_that_is_not_a_list_of_stages_is_refused(schedule, message):
    with pytest.raises(RecipeError, match=message):
        Recipe(data=tiny_data(), schedule=schedule)
