"""Checking: every problem is found before the first step, all at once, and nothing is changed by looking."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use
from torch.utils.data import DataLoader

from kdkit import CosineRamp, Match, Net, Parallel, Recipe, Stage, Tap, TorchData, Training, Truth, check, run
from kdkit.errors import CheckError
from kdkit.losses import Hint, SoftTargets
from kdkit.metrics import R2, Accuracy
from tests.helpers.tiny import Mlp, hooks_of, one_stage, plain_goal, same_state, samples, state_of, tiny_data, tiny_net

TRAINING = Training(epochs=1, batch_size=4)


def taught(**options):
    """Return a trained teacher and a student."""
    return tiny_net("teacher", trained=True, **options), tiny_net("student", seed=1)


def the_problem(recipe):
    """Return the only problem of a recipe."""
    (problem,) = check(recipe).problems
    return problem


def test_a_sound_recipe_has_no_problem_and_shows_its_comparisons():
    teacher, student = tiny_net("teacher", trained=True, hidden=7), tiny_net("student")
    features = Match(teacher, Hint(), student=Tap(student.module.hidden), target=Tap(teacher.module.hidden))
    objective = 0.3 * plain_goal() + CosineRamp(end=0.7) * Match(teacher, SoftTargets()) + features
    plan = check(one_stage(student, objective))
    plan.require()
    truth, soft, hint = plan.comparisons[0]
    assert (truth.label, truth.teacher, truth.weight) == ("truth", None, (0.3, 0.3))
    assert soft.weight == (0.0, 0.7)
    assert soft.student == "outputs (4, 3)"
    assert (hint.student, hint.target) == ("hidden (4, 5)", "hidden (4, 7)")
    assert hint.parameters == 5 * 7 + 7
    assert plan.nets == (teacher, student)


def test_a_net_that_teaches_untrained_is_found():
    teacher, student = tiny_net("teacher"), tiny_net("student")
    problem = the_problem(one_stage(student, Match(teacher, SoftTargets())))
    assert "stage 'student': net 'teacher' teaches but is neither trained" in problem


def test_a_net_that_teaches_before_its_own_stage_is_found():
    teacher, student = tiny_net("teacher"), tiny_net("student")
    stages = [Stage({student: Match(teacher, SoftTargets())}, TRAINING), Stage({teacher: plain_goal()}, TRAINING)]
    assert "neither trained in an earlier stage" in the_problem(Recipe(data=tiny_data(), schedule=stages))


def test_a_net_trained_in_an_earlier_stage_may_teach():
    schedule = Parallel(tiny_net("t"), tiny_net("s"), truth=plain_goal(), kd_loss=SoftTargets(), training=TRAINING)
    check(Recipe(data=tiny_data(), schedule=schedule)).require()


def test_a_net_matched_to_itself_is_found():
    student = tiny_net("student", trained=True)
    assert "is in training in this stage" in the_problem(one_stage(student, Match(student, SoftTargets())))


def test_two_nets_trained_together_cannot_teach_each_other_frozen():
    one, two = tiny_net("one", trained=True), tiny_net("two", trained=True)
    stage = Stage({one: plain_goal() + Match(two, SoftTargets()), two: plain_goal()}, TRAINING)
    assert "net 'two' is in training in this stage" in the_problem(Recipe(data=tiny_data(), schedule=[stage]))


def test_two_terms_of_one_label_are_found():
    teacher, student = taught()
    objective = Match(teacher, SoftTargets()) + Match(teacher, SoftTargets(temperature=2))
    assert "2 terms are called 'teacher/soft_targets'" in the_problem(one_stage(student, objective))


def test_two_nets_of_one_name_are_found():
    teacher, student = tiny_net("net", trained=True), tiny_net("net")
    problems = check(one_stage(student, Match(teacher, SoftTargets()))).problems
    assert any("2 nets are called 'net'" in problem for problem in problems)


def test_two_stages_of_one_name_are_found():
    student = tiny_net("student")
    stages = [Stage({student: plain_goal()}, TRAINING), Stage({student: plain_goal()}, TRAINING)]
    assert "2 stages are called 'student'" in the_problem(Recipe(data=tiny_data(), schedule=stages))


def test_two_classes_of_one_name_are_found():
    recipe = one_stage(tiny_net("student"), plain_goal(), tiny_data(classes=["a", "b", "a"]))
    assert "2 classes of the data are called 'a'" in the_problem(recipe)


def test_a_schedule_without_stages_is_found():
    class Nothing:
        def stages(self):
            return []

    assert "Nothing gives no stages" in the_problem(Recipe(data=tiny_data(), schedule=Nothing()))


@pytest.mark.parametrize("side", ["student", "target"])
def test_a_tap_of_another_net_is_found(side):
    teacher, student = taught()
    taps = {"student": Tap(student.module.hidden), "target": Tap(teacher.module.hidden), side: Tap(Mlp().hidden)}
    problem = the_problem(one_stage(student, Match(teacher, Hint(), **taps)))
    assert f"the {side} tap sits on a Linear that is not a part of net" in problem


@pytest.mark.parametrize("side", ["student", "target"])
def test_a_tap_that_never_fires_is_found_with_its_net(side):
    teacher, student = taught()
    nets = {"student": student, "target": teacher}
    nets[side].module.idle = nn.Conv1d(1, 1, 1)
    taps = {"student": Tap(student.module.hidden), "target": Tap(teacher.module.hidden)}
    taps[side] = Tap(nets[side].module.idle)
    problem = the_problem(one_stage(student, Match(teacher, Hint(), **taps)))
    assert f"the tap on Conv1d of net {nets[side].name!r} never fired" in problem


def test_a_silent_tap_is_told_of_the_right_one_of_two_students():
    teacher, one, two = tiny_net("teacher", trained=True), tiny_net("one"), tiny_net("two")
    two.module.idle = nn.Conv1d(1, 1, 1)
    match = Match(teacher, Hint(), student=Tap(two.module.idle), target=Tap(teacher.module.hidden))
    recipe = Recipe(data=tiny_data(), schedule=[Stage({one: plain_goal(), two: match}, TRAINING)])
    assert "of net 'two' never fired" in the_problem(recipe)


def test_shapes_that_cannot_meet_are_found():
    teacher, student = tiny_net("teacher", trained=True, hidden=7), tiny_net("student")
    taps = {"student": Tap(student.module.hidden), "target": Tap(teacher.module.hidden)}
    problem = the_problem(one_stage(student, Match(teacher, Hint(projector="never"), **taps)))
    assert "term 'teacher/hint': features of (5,) cannot be compared to (7,) without a projector" in problem


def test_shapes_that_a_plain_loss_cannot_take_are_found():
    teacher, student = tiny_net("teacher", trained=True, hidden=7), tiny_net("student")
    taps = {"student": Tap(student.module.hidden), "target": Tap(teacher.module.hidden)}

    def difference(student, target):
        return (student - target).square().mean()

    problem = the_problem(one_stage(student, Match(teacher, difference, **taps)))
    assert "student (4, 5) and target (4, 7) cannot meet in difference" in problem


def test_shapes_that_would_be_broadcast_are_found():
    teacher, student = tiny_net("teacher", trained=True, hidden=1), tiny_net("student")
    taps = {"student": Tap(student.module.hidden), "target": Tap(teacher.module.hidden)}
    problem = the_problem(one_stage(student, Match(teacher, nn.MSELoss(), **taps)))
    assert "student (4, 5) and target (4, 1) are of different shapes and would be broadcast" in problem


def unreduced(student, target):
    return F.cross_entropy(student, target, reduction="none")


def number(student, target):
    return 0.5


def cut(student, target):
    return F.cross_entropy(student.detach(), target)


def nothing(student, target):
    return (student * 0).sum()


def broken(student, target):
    return F.cross_entropy(student, target) * float("nan")


def raising(student, target):
    raise ValueError("not today")


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (unreduced, "unreduced gives a tensor (4,) where a scalar was expected"),
        (number, "number gives a float where a scalar was expected"),
        (cut, "cut moves nothing: no gradient flows from it to net 'student'"),
        (nothing, "nothing is constantly zero"),
        (broken, "broken is nan at the first step"),
        (raising, "cannot meet in raising: not today"),
    ],
)
def test_a_loss_that_cannot_teach_is_found(loss, said):
    problem = the_problem(one_stage(tiny_net("student"), Truth(loss)))
    assert problem.startswith("stage 'student': term 'truth': ")
    assert said in problem


def test_a_loss_that_is_zero_only_at_first_is_sound():
    teacher = tiny_net("teacher", trained=True)
    student = Net("student", Mlp())
    student.module.load_state_dict(teacher.module.state_dict())
    teacher.module.train()

    def same(student, target):
        return F.mse_loss(student, target)

    check(one_stage(student, Match(teacher, same) + plain_goal())).require()


def needing(*needs):
    def loss(student, target):
        return F.cross_entropy(student, target) if target.ndim == 1 else F.mse_loss(student, target)

    loss.requires = needs
    return loss


def by_id(student, target, *, ids):
    return F.cross_entropy(student, target)


@pytest.mark.parametrize("loss", [by_id, needing("ids")])
def test_a_loss_that_needs_ids_is_found_on_a_loader_of_ones_own(loss):
    loader = DataLoader(samples(), batch_size=4)
    streamed = TorchData(loader, samples(), classes=["a", "b", "c"])
    assert "it needs sample ids" in the_problem(one_stage(tiny_net("student"), Truth(loss), streamed))
    check(one_stage(tiny_net("student"), Truth(loss))).require()


def test_a_loss_that_needs_one_class_a_sample_is_found_on_multilabel_data():
    recipe = one_stage(tiny_net("student"), Truth(needing("hard_labels")), tiny_data("multilabel"))
    assert "it needs one class per sample, and this data is multilabel" in the_problem(recipe)


def test_one_loss_with_weights_in_two_terms_is_found():
    teacher, student = tiny_net("teacher", trained=True, hidden=7), tiny_net("student")
    hint = Hint()
    taps = {"student": Tap(student.module.hidden), "target": Tap(teacher.module.hidden)}
    objective = Match(teacher, hint, **taps) + Match(teacher, hint, **taps, label="again")
    problems = check(one_stage(student, objective)).problems
    assert any("terms 'teacher/hint' and 'again' share one Hint" in problem for problem in problems)


def test_one_loss_without_weights_in_two_terms_is_sound():
    teacher, student = taught()
    mse = nn.MSELoss()
    check(one_stage(student, Match(teacher, mse) + Match(teacher, mse, label="again"))).require()


def test_a_wrong_count_of_classes_is_found():
    problem = the_problem(one_stage(tiny_net("student", outputs=5), plain_goal()))
    assert "net 'student' gives outputs of (5,) where the data's classes are 3" in problem


def test_a_teacher_with_a_wrong_count_of_classes_is_found():
    teacher = tiny_net("teacher", outputs=1, trained=True)
    problem = the_problem(one_stage(tiny_net("student"), Match(teacher, SoftTargets())))
    assert "net 'teacher' gives outputs of (1,) where the data's classes are 3" in problem


@pytest.mark.parametrize("classes", [None, ["u", "v", "w", "x", "y", "z", "o"]])
def test_a_teacher_of_features_may_have_other_classes_and_is_not_scored(classes):
    teacher, student = tiny_net("teacher", outputs=7, trained=True, classes=classes), tiny_net("student")
    taps = {"student": Tap(student.module.hidden), "target": Tap(teacher.module.hidden)}
    recipe = one_stage(student, plain_goal() + Match(teacher, Hint(), **taps))
    assert check(recipe).problems == ()
    assert check(recipe).foreign == {teacher}
    assert list(run(recipe, device="cpu").metrics) == ["student"]


def test_a_teacher_of_features_of_the_same_classes_is_scored():
    teacher, student = tiny_net("teacher", trained=True), tiny_net("student")
    taps = {"student": Tap(student.module.hidden), "target": Tap(teacher.module.hidden)}
    assert not check(one_stage(student, plain_goal() + Match(teacher, Hint(), **taps))).foreign


def test_a_wrong_count_of_classes_of_ones_own_is_found():
    student = tiny_net("student", outputs=5, classes=["a", "x"])
    assert "where its classes are 2" in the_problem(one_stage(student, plain_goal()))


def test_nets_that_share_no_class_with_the_data_are_found_and_left_without_hooks():
    teacher = tiny_net("teacher", trained=True)
    student = tiny_net("student", classes=["x", "y", "z"])
    taps = {"student": Tap(student.module.hidden), "target": Tap(teacher.module.hidden)}
    objective = plain_goal() + Match(teacher, nn.MSELoss(), **taps)
    assert "net 'student' and the data share no class" in the_problem(one_stage(student, objective))
    assert hooks_of(student.module) == hooks_of(teacher.module) == 0


def test_a_score_that_is_not_in_the_recipe_is_answered_with_the_nearest():
    problem = the_problem(one_stage(tiny_net("student"), plain_goal(), monitor="acuracy"))
    assert "'acuracy' is not among the recipe's scores; did you mean 'accuracy'?" in problem


def test_a_net_that_cannot_take_what_it_sees_is_found():
    student = Net("student", nn.Linear(9, 3))
    assert "net 'student' cannot take what it sees ((4, 4))" in the_problem(one_stage(student, plain_goal()))


def test_a_teacher_that_cannot_take_what_it_sees_is_found():
    teacher = Net("teacher", nn.Linear(9, 3), trained=True)
    assert "net 'teacher' cannot take" in the_problem(one_stage(tiny_net("student"), Match(teacher, SoftTargets())))


def test_a_net_with_nothing_to_train_is_found():
    student = tiny_net("student")
    student.module.requires_grad_(False)
    assert "has nothing to train" in the_problem(one_stage(student, plain_goal()))


def test_a_plain_callable_cannot_be_trained():
    api = Net("api", lambda inputs: inputs[:, :3], version="1")
    assert "it can teach, but not be trained" in the_problem(one_stage(api, plain_goal()))


def test_a_plain_callable_can_teach_but_not_be_tapped():
    api, student = Net("api", lambda inputs: inputs[:, :3], version="1"), tiny_net("student")
    check(one_stage(student, Match(api, SoftTargets()))).require()
    tapped = Match(api, nn.MSELoss(), student=Tap(student.module.hidden), target=Tap(student.module.hidden))
    assert "net 'api' is a plain callable, which cannot be tapped" in the_problem(one_stage(student, tapped))


def test_something_that_has_a_name_but_no_answers_is_found():
    class Stranger:
        name = "stranger"

    assert "cannot be matched" in the_problem(one_stage(tiny_net("student"), Match(Stranger(), SoftTargets())))


def test_several_problems_are_shown_at_once():
    teacher = tiny_net("teacher")
    first = Stage({tiny_net("one", outputs=5): plain_goal()}, Training(epochs=1, monitor="nothing"))
    second = Stage({tiny_net("two"): Match(teacher, SoftTargets()) + Truth(cut)}, TRAINING)
    plan = check(Recipe(data=tiny_data(), schedule=[first, second]))
    with pytest.raises(CheckError, match="4 problems found") as caught:
        plan.require()
    text = str(caught.value)
    for said in ("'nothing' is not among", "gives outputs of (5,)", "net 'teacher' teaches", "cut moves nothing"):
        assert said in text


@pytest.mark.parametrize("name", ["half", "double", "type", "train", "keys", "forward"])
def test_a_net_or_a_term_may_have_the_name_of_a_method(name):
    teacher, student = tiny_net("t", trained=True, hidden=7), tiny_net(name)
    taps = {"student": Tap(student.module.hidden), "target": Tap(teacher.module.hidden)}
    check(one_stage(student, plain_goal() + Match(teacher, Hint(), **taps, label=name))).require()


class Moody(Mlp):
    """A net with dropout, and with a buffer that it assigns anew at each run."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout()
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, inputs):
        self.runs = self.runs + 1
        return super().forward(self.drop(inputs))


@pytest.mark.parametrize("sound", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_looking_changes_no_net(sound, training):
    teacher, student = Net("teacher", Mlp(hidden=7), trained=True), Net("student", Moody())
    for net in (teacher, student):
        net.module.train(training)
        net.module.norm.train(not training)
    taps = {"student": Tap(student.module.act, "input"), "target": Tap(teacher.module.act, "input")}
    objective = plain_goal() + Match(teacher, Hint(), **taps) + (0 if sound else Truth(cut, label="cut"))
    states = [state_of(teacher.module), state_of(student.module)]
    random = torch.get_rng_state()
    assert bool(check(one_stage(student, objective)).problems) is not sound
    assert same_state(states[0], state_of(teacher.module))
    assert same_state(states[1], state_of(student.module))
    assert torch.equal(torch.get_rng_state(), random)


def test_looking_twice_shows_the_same():
    teacher, student = tiny_net("teacher", trained=True, hidden=7), tiny_net("student")
    taps = {"student": Tap(student.module.hidden), "target": Tap(teacher.module.hidden)}
    recipe = one_stage(student, plain_goal() + Match(teacher, Hint(), **taps))
    assert check(recipe).comparisons == check(recipe).comparisons


def test_data_of_a_single_sample_can_be_checked():
    data = TorchData(samples(rows=1), samples(rows=3), classes=["a", "b", "c"])
    student = Net("student", nn.Linear(4, 3))
    check(one_stage(student, plain_goal(), data)).require()


class Holding(nn.Module):
    """Keeps a part of the teacher it is built with."""

    def build(self, student, target, facts, teacher):
        self.head = teacher.head

    def forward(self, student, target):
        return F.mse_loss(student, target)


def test_a_loss_that_would_train_a_part_of_the_teacher_is_found():
    teacher, student = taught()
    assert "net 'teacher' teaches, but a learner or a loss holds a part" in the_problem(
        one_stage(student, Match(teacher, Holding()))
    )


def test_a_teacher_that_shares_its_module_with_the_student_is_found():
    student = tiny_net("student")
    teacher = Net("teacher", student.module, trained=True)
    assert "holds a part of it" in the_problem(one_stage(student, plain_goal() + Match(teacher, SoftTargets())))


def test_a_score_that_does_not_fit_the_data_is_found_before_the_first_step():
    recipe = one_stage(tiny_net("student"), plain_goal())
    unfit = Recipe(data=recipe.data, schedule=recipe.schedule, metrics=(Accuracy(), R2()))
    assert "score 'r2' cannot score this data (multiclass)" in the_problem(unfit)


def test_a_batch_of_one_is_rehearsed_as_one():
    problem = the_problem(one_stage(tiny_net("student"), plain_goal(), batch_size=1))
    assert "net 'student' cannot take what it sees" in problem
    assert "more than 1 value per channel" in problem


def test_a_net_that_keeps_more_than_tensors_is_found():
    class Versioned(nn.Linear):
        def get_extra_state(self):
            return {"version": 1}

    problem = the_problem(one_stage(Net("student", Versioned(4, 3)), plain_goal()))
    assert "net 'student' keeps '_extra_state', a dict, in its state_dict()" in problem
