"""What can be matched beside a frozen net: its past, its average, a peer, a panel of teachers."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # the name torch's own docs use
from torch.utils.data import DataLoader

from kdkit import (
    Batch,
    BuildContext,
    Ema,
    Match,
    Net,
    Past,
    Peer,
    Recipe,
    RecipeError,
    Stage,
    Tap,
    TeacherOutput,
    Teachers,
    TeacherSession,
    TorchData,
    Training,
    check,
    run,
)
from kdkit.engine.check.dry_run import Rehearsal
from kdkit.engine.module import DistillationModule
from kdkit.errors import CheckError
from kdkit.losses import (
    CC,
    CKA,
    CRD,
    DKD,
    NKD,
    OFD,
    PSKD,
    RKD,
    SRRL,
    GeneralisedJSD,
    HardTargets,
    Hint,
    LogitStandardisation,
    PerLabelSoftTargets,
    PerTeacher,
    SoftTargets,
)
from kdkit.losses.multi_teacher import teacher_confidence
from kdkit.teachers import open_teacher
from tests.helpers.tiny import hooks_of, one_stage, plain_goal, samples, tiny_data, tiny_net

FACTS = BuildContext(classes=("a", "b", "c"), task="multiclass", samples=8, ids=True)


def batch(*ids, inputs=None):
    ids = torch.tensor(ids or (0, 1, 2, 3))
    return Batch(torch.randn(len(ids), 4) if inputs is None else inputs, ids % 3, ids)


def rehearsed(objectives, given=None, facts=FACTS):
    rehearsal = Rehearsal(Stage(objectives, Training(epochs=1)), facts, given or batch())
    assert rehearsal.problems == []
    return rehearsal


def terms_of(rehearsal, given):
    answers = {name: each(given) for name, each in rehearsal.sessions.items()}
    return rehearsal.lesson(given, answers)


# Past


def test_a_past_is_what_the_net_said_in_the_epoch_before():
    student = tiny_net("student")
    session = open_teacher(Past(student), (), FACTS)
    session.dry_run(batch())
    first, second = torch.randn(4, 3), torch.randn(4, 3)
    session.observe(batch(3, 2, 1, 0), {"student": first})
    assert not session(batch()).known.any()
    session.on_epoch_end()
    session.observe(batch(), {"student": second})
    answer = session(batch(0, 5, 3))
    assert answer.known.tolist() == [True, False, True]
    torch.testing.assert_close(answer.output[[0, 2]], first[[3, 0]])
    session.on_epoch_end()
    torch.testing.assert_close(session(batch()).output, second)


def test_a_sample_that_was_left_out_of_an_epoch_keeps_its_older_past():
    session = open_teacher(Past(tiny_net("student")), (), FACTS)
    session.dry_run(batch())
    said = torch.randn(4, 3)
    session.observe(batch(), {"student": said})
    session.on_epoch_end()
    session.observe(batch(0), {"student": torch.zeros(1, 3)})
    session.on_epoch_end()
    answer = session(batch())
    assert answer.known.all()
    torch.testing.assert_close(answer.output, torch.cat([torch.zeros(1, 3), said[1:]]))


def test_a_sample_without_a_past_is_learned_from_its_label_alone():
    student, given = tiny_net("student"), batch()
    rehearsal = rehearsed({student: Match(Past(student), PSKD(alpha=0.6))})
    rehearsal.lesson.eval().progress.fill_(0.5)
    (value,) = terms_of(rehearsal, given).values()
    gradient = torch.autograd.grad(value, student.module.head.weight)[0]
    plain = F.cross_entropy(student(given), given.labels)
    expected = 0.7 * torch.autograd.grad(plain, student.module.head.weight)[0]
    torch.testing.assert_close(gradient, expected)
    rehearsal.close()


def test_a_plain_loss_to_an_absent_past_moves_nothing():
    student = tiny_net("student")
    rehearsal = rehearsed({student: plain_goal() + Match(Past(student), SoftTargets())})
    value = terms_of(rehearsal, batch())["past of student/soft_targets"]
    assert value.item() == pytest.approx(0, abs=1e-6)
    value.backward()
    assert all(each.grad is None or each.grad.abs().max() < 1e-6 for each in student.module.parameters())
    rehearsal.close()


def test_ps_kd_in_the_engine_learns_from_the_epoch_before():
    seen = []

    def watching(student, target):
        seen.append((student.detach().clone(), target.clone()))
        return (student - target).square().mean()

    student = tiny_net("student")
    objective = plain_goal() + Match(Past(student), watching)
    data = tiny_data()
    run(one_stage(student, objective, data, epochs=2, batch_size=8), device="cpu")
    # checked and opened twice each, then one batch an epoch
    (first, first_target), (second, second_target) = seen[-2:]
    torch.testing.assert_close(first_target, first)
    assert not torch.equal(second_target, second)
    assert sorted(map(tuple, second_target.tolist())) == sorted(map(tuple, first.tolist()))


def test_a_past_needs_ids():
    student = tiny_net("student")
    loader = DataLoader(samples(), batch_size=4)
    data = TorchData(loader, samples(rows=6), classes=["a", "b", "c"])
    problems = check(one_stage(student, plain_goal() + Match(Past(student), SoftTargets()), data)).problems
    assert any("'past of student' needs sample ids" in problem for problem in problems)


def test_a_past_that_is_too_large_is_refused_before_the_first_step():
    student = tiny_net("student")
    objective = plain_goal() + Match(Past(student, memory_limit=1e-5), SoftTargets())
    with pytest.raises(CheckError, match="'past of student' for 8 samples of 3 outputs would take"):
        run(one_stage(student, objective), device="cpu")


def test_a_past_has_no_features():
    student = tiny_net("student")
    taps = {"student": Tap(student.module.hidden), "target": Tap(student.module.hidden)}
    problems = check(one_stage(student, plain_goal() + Match(Past(student), nn.MSELoss(), **taps))).problems
    assert any("remembers outputs only" in problem for problem in problems)


# Ema


def test_an_average_follows_the_net_by_its_decay():
    student, given = tiny_net("student"), batch()
    before = {key: value.clone() for key, value in student.module.state_dict().items()}
    session = open_teacher(Ema(student, decay=0.9), (), FACTS)
    with torch.no_grad():
        for parameter in student.module.parameters():
            parameter.add_(1)
    session.on_step()  # keeps 1 - 1/2 of the old weights, and not yet 0.9
    average = session.state_dict()["average"]
    torch.testing.assert_close(average["head.weight"], before["head.weight"] + 0.5)
    for _ in range(20):
        session.on_step()
    kept = 0.5
    for update in range(2, 22):
        kept *= min(0.9, 1 - 1 / (update + 1))
    torch.testing.assert_close(session.state_dict()["average"]["head.weight"], before["head.weight"] + 1 - kept)
    assert not session(given).output.requires_grad
    session.close()


def test_tied_weights_move_once_an_update():
    first, last = nn.Linear(4, 4), nn.Linear(4, 4)
    last.weight = first.weight
    student = Net("student", nn.Sequential(first, nn.ReLU(), last, nn.Linear(4, 3)))
    before = first.weight.detach().clone()
    session = open_teacher(Ema(student, decay=0.9), (), FACTS)
    with torch.no_grad():
        first.weight.add_(1)
    session.on_step()
    torch.testing.assert_close(session.state_dict()["average"]["2.weight"], before + 0.5)
    session.close()


def test_a_net_that_cannot_be_copied_has_no_average():
    class Cached(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.kept = self.weight * 2  # no leaf: torch copies none

    student = Net("student", Cached())
    problems = check(one_stage(student, plain_goal() + Match(Ema(student), SoftTargets()))).problems
    assert len(problems) == 1
    assert "net 'student' cannot be copied, as its average has to be" in problems[0]


def test_taps_on_the_net_are_put_on_its_average():
    student, given = tiny_net("student"), batch()
    tap = Tap(student.module.hidden)
    session = open_teacher(Ema(student), (tap,), FACTS)
    assert hooks_of(student.module) == 0
    with torch.no_grad():
        student.module.hidden.weight.zero_()
    (feature,) = session(given).features
    assert feature.abs().sum() > 0
    session.close()


def test_a_mean_teacher_teaches_in_the_engine_and_is_no_part_of_the_student():
    student = tiny_net("student")
    keys = set(student.module.state_dict())
    taps = {"student": Tap(student.module.hidden), "target": Tap(student.module.hidden)}
    objective = plain_goal() + Match(Ema(student), SoftTargets()) + Match(Ema(student), Hint(), **taps)
    result = run(one_stage(student, objective, epochs=2), device="cpu")
    assert set(result.nets) == {"student"}
    assert set(student.module.state_dict()) == keys
    assert hooks_of(student.module) == 0
    assert result.history["student"][-1]["terms"]["average of student/soft_targets"] > 0


# Peer


def test_peers_are_fixed_targets_of_this_step():
    one, two, given = tiny_net("one"), tiny_net("two", seed=1), batch()
    mutual = SoftTargets.mutual()
    objectives = {one: plain_goal() + Match(Peer(two), mutual), two: plain_goal() + Match(Peer(one), mutual)}
    lesson = DistillationModule(Stage(objectives, Training(epochs=1)), FACTS).eval()
    terms = lesson(given, {})
    ours, theirs = one(given), two(given)
    torch.testing.assert_close(terms["one: peer two/soft_targets"], mutual(ours, theirs))
    torch.testing.assert_close(terms["two: peer one/soft_targets"], mutual(theirs, ours))
    terms["one: peer two/soft_targets"].backward()
    assert all(parameter.grad is None for parameter in two.module.parameters())


def test_two_nets_teach_each_other_in_one_stage():
    one, two = tiny_net("one"), tiny_net("two", seed=1)
    mutual = SoftTargets.mutual()
    objectives = {one: plain_goal() + Match(Peer(two), mutual), two: plain_goal() + Match(Peer(one), mutual)}
    recipe = Recipe(data=tiny_data(), schedule=[Stage(objectives, Training(epochs=2, batch_size=4))])
    result = run(recipe, device="cpu")
    assert set(result.metrics) == {"one", "two"}
    assert "two: peer one/soft_targets" in result.history["one+two"][0]["terms"]


def test_a_deep_layer_teaches_a_shallow_one_of_the_same_net():
    student, given = tiny_net("student", hidden=4), batch()
    ours = {"student": Tap(student.module.hidden), "target": Tap(student.module.norm)}
    student.module.norm.weight.data.fill_(2.0)
    rehearsal = rehearsed({student: Match(Peer(student), nn.MSELoss(), **ours)})  # sees that the ReLU is in place
    (value,) = terms_of(rehearsal, given).values()
    hidden = student.module.hidden(given.inputs)
    torch.testing.assert_close(value, F.mse_loss(hidden, student.module.norm(hidden)))
    value.backward()
    assert student.module.norm.weight.grad is None
    assert student.module.hidden.weight.grad.abs().sum() > 0
    rehearsal.close()


def test_a_net_that_matches_its_own_outputs_learns_nothing_from_them():
    student = tiny_net("student")
    for loss in (SoftTargets(), nn.MSELoss()):
        (problem,) = check(one_stage(student, plain_goal() + Match(Peer(student), loss))).problems
        assert "moves nothing: net 'student' is compared with what it says itself" in problem
    assert not check(one_stage(student, plain_goal() + Match(Peer(student), HardTargets()))).problems


def test_two_averages_of_a_net_are_found_in_one_stage_and_allowed_in_two():
    student = tiny_net("student")
    slow, fast = (
        Match(Ema(student, decay), SoftTargets(), label=label) for label, decay in (("slow", 0.99), ("fast", 0.9))
    )
    (problem,) = check(one_stage(student, plain_goal() + slow + fast)).problems
    assert "stage 'student': 2 things that are matched are called 'average of student'" in problem
    stages = [Stage({student: plain_goal() + each}, Training(epochs=1), name=each.label) for each in (slow, fast)]
    assert not check(Recipe(data=tiny_data(), schedule=[*stages])).problems


@pytest.mark.parametrize("source", [Past, Ema, Peer])
def test_a_source_of_a_net_that_is_not_trained_in_the_stage_is_found(source):
    teacher, student = tiny_net("teacher", trained=True), tiny_net("student")
    problems = check(one_stage(student, plain_goal() + Match(source(teacher), SoftTargets()))).problems
    assert any("of a net that is not trained in this stage" in problem for problem in problems)


def test_the_net_itself_is_not_its_own_frozen_teacher():
    student = tiny_net("student")
    (problem,) = check(one_stage(student, Match(student, SoftTargets()))).problems
    assert "Peer(net)" in problem
    assert "Past(net)" in problem


@pytest.mark.parametrize("source", [Past, Ema, Peer, Teachers])
def test_a_source_is_made_of_nets(source):
    with pytest.raises(RecipeError, match=f"{source.__name__} takes a Net; got a Linear"):
        source(nn.Linear(1, 1))


@pytest.mark.parametrize("decay", [0, 1, -0.5, float("nan"), True, "0.9"])
def test_the_decay_of_an_average_is_a_share(decay):
    with pytest.raises(RecipeError, match="between 0 and 1"):
        Ema(tiny_net("student"), decay=decay)


# Panel


def panel(**options):
    first = tiny_net("first", seed=1, trained=True, **options)
    second = tiny_net("second", seed=2, hidden=7, trained=True, **options)
    for net in (first, second):
        net.module.eval()
    return first, second


def value_of(objectives, given, facts=FACTS):
    rehearsal = rehearsed(objectives, given, facts)
    rehearsal.lesson.eval()
    (value,) = terms_of(rehearsal, given).values()
    rehearsal.close()
    return value


def test_a_panel_is_matched_teacher_by_teacher_with_fixed_shares():
    (first, second), student, given = panel(), tiny_net("student"), batch()
    value = value_of({student: Match(Teachers(first, second), PerTeacher(SoftTargets(), weights=(0.6, 0.4)))}, given)
    student.module.eval()
    soft, said = SoftTargets(), student(given)
    torch.testing.assert_close(value, 0.6 * soft(said, first(given)) + 0.4 * soft(said, second(given)))


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_a_teacher_counts_by_how_well_it_says_each_label(task):
    (first, second), student, given = panel(), tiny_net("student"), batch()
    loss = SoftTargets() if task == "multiclass" else PerLabelSoftTargets()
    facts = FACTS if task == "multiclass" else BuildContext(classes=FACTS.classes, task=task, samples=8, ids=True)
    if task == "multilabel":
        given = Batch(given.inputs, F.one_hot(given.labels, 3).float(), given.ids)
    value = value_of({student: Match(Teachers(first, second), PerTeacher(loss, weights="confidence"))}, given, facts)
    student.module.eval()
    expected = 0.0
    for row in range(4):
        one = Batch(given.inputs[row : row + 1], given.labels[row : row + 1])
        if task == "multiclass":
            errors = torch.stack([F.cross_entropy(net(one), one.labels) for net in (first, second)])
        else:
            errors = torch.stack([F.binary_cross_entropy_with_logits(net(one), one.labels) for net in (first, second)])
        shares = 1 - errors.exp() / errors.exp().sum()  # over the two of them, whose count less one is 1
        expected += sum(
            share * loss(student(one), net(one)) for share, net in zip(shares, (first, second), strict=True)
        )
    torch.testing.assert_close(value, expected / 4)


def test_confidence_shares_sum_to_one_and_prefer_the_better_teacher():
    labels = torch.tensor([0, 1])
    right = F.one_hot(labels, 3) * 10.0
    shares = teacher_confidence((right, -right, torch.zeros(2, 3)), labels)
    torch.testing.assert_close(shares.sum(1), torch.ones(2))
    assert (shares[:, 0] > shares[:, 2]).all()
    assert (shares[:, 2] > shares[:, 1]).all()


def test_a_features_panel_has_a_projector_for_each_teacher_also_by_confidence():
    first, second = panel()
    student = tiny_net("student")
    taps = {"student": Tap(student.module.hidden), "target": (Tap(first.module.hidden), Tap(second.module.hidden))}
    for weights in ("equal", "confidence", "learned"):
        loss = PerTeacher(Hint(projector="always"), weights=weights)
        rehearsal = rehearsed({student: Match(Teachers(first, second), loss, **taps)})
        (comparison,) = rehearsal.comparisons
        learned = 2 if weights == "learned" else 0
        assert comparison.parameters == 5 * 5 + 5 + 5 * 7 + 7 + learned
        (value,) = terms_of(rehearsal, batch()).values()
        value.backward()
        assert student.module.hidden.weight.grad.abs().sum() > 0
        rehearsal.close()


@pytest.mark.parametrize("make", [RKD, CKA, CC, SRRL, lambda: OFD(margin=-1.0), lambda: CRD(negatives=4)])
def test_confidence_takes_no_loss_in_which_samples_depend_on_each_other(make):
    (first, second), student = panel(), tiny_net("student")
    sides = {
        "student": Tap(student.module.hidden),
        "target": tuple(Tap(each.module.hidden) for each in (first, second)),
    }
    objective = plain_goal() + Match(Teachers(first, second), PerTeacher(make(), weights="confidence"), **sides)
    (problem,) = check(one_stage(student, objective)).problems
    assert f"in {type(make()).__name__} the samples of a batch depend on each other" in problem


def test_confidence_takes_several_teachers_not_several_layers_of_one():
    teacher, student = tiny_net("teacher", trained=True), tiny_net("student")
    sides = {
        side: (Tap(net.module.hidden), Tap(net.module.head))
        for side, net in (("student", student), ("target", teacher))
    }
    objective = plain_goal() + Match(teacher, PerTeacher(Hint(), weights="confidence"), **sides)
    (problem,) = check(one_stage(student, objective)).problems
    assert "weighs several Teachers; got one teacher" in problem


def test_confidence_takes_no_regression():
    (first, second), student = panel(), tiny_net("student")
    objective = Match(Teachers(first, second), PerTeacher(nn.MSELoss(), weights="confidence"))
    (problem,) = check(one_stage(student, objective, tiny_data("regression"))).problems
    assert "the task of this data is regression; use weights='equal', 'learned' or a number per teacher" in problem


@pytest.mark.parametrize("make", [DKD, NKD, LogitStandardisation, HardTargets, lambda: nn.MSELoss(), GeneralisedJSD])
def test_confidence_takes_losses_that_are_a_mean_over_samples(make):
    (first, second), student = panel(), tiny_net("student")
    objective = plain_goal() + Match(Teachers(first, second), PerTeacher(make(), weights="confidence"))
    assert not check(one_stage(student, objective)).problems


def test_learned_weights_find_the_size_of_each_loss():
    (first, second), student, given = panel(), tiny_net("student"), batch()
    loss = PerTeacher(SoftTargets(), weights="learned")
    rehearsal = rehearsed({student: Match(Teachers(first, second), loss)})
    rehearsal.lesson.eval()
    optimizer = torch.optim.SGD([loss.log_variances], lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        next(iter(terms_of(rehearsal, given).values())).backward()
        optimizer.step()
    rehearsal.close()
    student.module.eval()
    sizes = torch.stack([SoftTargets()(student(given), net(given)) for net in (first, second)])
    torch.testing.assert_close(loss.log_variances.detach(), (2 * sizes).log().detach(), rtol=1e-3, atol=1e-3)


def test_teachers_of_a_panel_see_each_their_own_inputs():
    class First:
        key = "the first two"

        def __call__(self, batch):
            return (batch.inputs[:, :2],), {}

    torch.manual_seed(0)
    narrow = Net("narrow", nn.Linear(2, 3), view=First(), trained=True)
    wide, student, given = Net("wide", nn.Linear(4, 3), trained=True), tiny_net("student"), batch()
    value = value_of({student: Match(Teachers(narrow, wide), PerTeacher(SoftTargets(), weights=(0.5, 0.5)))}, given)
    student.module.eval()
    said = student(given)
    expected = (
        SoftTargets()(said, narrow.module(given.inputs[:, :2])) + SoftTargets()(said, wide.module(given.inputs))
    ) / 2
    torch.testing.assert_close(value, expected)


def test_a_panel_is_compared_on_the_classes_that_all_share():
    first = Net("first", nn.Linear(4, 3), classes=["c", "b", "x"], trained=True)
    second, student, given = Net("second", nn.Linear(4, 3), trained=True), tiny_net("student"), batch()
    value = value_of({student: Match(Teachers(first, second), PerTeacher(SoftTargets()))}, given)
    student.module.eval()
    said = student(given)[:, [1, 2]]
    expected = SoftTargets()(said, first(given)[:, [1, 0]]) + SoftTargets()(said, second(given)[:, [1, 2]])
    torch.testing.assert_close(value, expected / 2)


@pytest.mark.parametrize("weights", ["best", (0.5, 0.6), (1.5, -0.5), (), 0.5, (float("nan"), 1.0)])
def test_weights_of_teachers_are_shares_or_a_known_word(weights):
    with pytest.raises(RecipeError, match=r"weights are a number per teacher|weights of teachers are at least 0"):
        PerTeacher(SoftTargets(), weights=weights)


def test_a_panel_takes_at_least_two_nets_each_once():
    first, second = panel()
    for members in ((), (first,), (first, first)):
        with pytest.raises(RecipeError, match="at least two nets, each once"):
            Teachers(*members)
    assert Teachers(first, second) == Teachers(first, second)
    assert Teachers(first, second).name == "first and second"


def test_a_net_in_training_has_no_place_in_a_panel():
    student, peer, teacher = tiny_net("student"), tiny_net("peer"), tiny_net("teacher", trained=True)
    objectives = {student: plain_goal() + Match(Teachers(teacher, peer), PerTeacher(SoftTargets())), peer: plain_goal()}
    (problem,) = check(Recipe(data=tiny_data(), schedule=[Stage(objectives, Training(epochs=1))])).problems
    assert "net 'peer' is in training in this stage, so it has no place in a Panel" in problem


def test_a_panel_takes_a_tap_of_each_of_its_nets():
    (first, second), student = panel(), tiny_net("student")
    sides = {"student": Tap(student.module.hidden), "target": (Tap(second.module.hidden), Tap(first.module.hidden))}
    problems = check(one_stage(student, Match(Teachers(first, second), PerTeacher(Hint()), **sides))).problems
    assert sum("is not a part of net" in problem for problem in problems) == 2
    sides["target"] = (Tap(first.module.hidden),)
    problems = check(one_stage(student, Match(Teachers(first, second), PerTeacher(Hint()), **sides))).problems
    assert any("takes as many taps as target, one of each; got 1" in problem for problem in problems)


def test_a_loss_for_one_teacher_is_refused_for_a_panel():
    (first, second), student = panel(), tiny_net("student")
    (problem,) = check(one_stage(student, Match(Teachers(first, second), SoftTargets()))).problems
    assert "a Panel gives a tuple, of which PerTeacher(SoftTargets(" in problem
    problems = check(one_stage(student, Match(first, PerTeacher(SoftTargets())))).problems
    assert any("Match(Teachers(first, second), PerTeacher(...))" in problem for problem in problems)


def test_an_untrained_member_of_a_panel_is_found():
    first, second = tiny_net("first", trained=True), tiny_net("second")
    problems = check(one_stage(tiny_net("student"), Match(Teachers(first, second), PerTeacher(SoftTargets())))).problems
    assert any("net 'second' teaches but is neither trained" in problem for problem in problems)


# Classes that differ, and labels


def asking(student, target, *, labels, ids):
    asking.seen = (student, target, labels, ids)
    return F.cross_entropy(student, labels) + (student - target).square().mean()


def test_labels_are_cut_to_the_classes_of_a_teacher_that_knows_fewer():
    teacher = tiny_net("teacher", outputs=2, trained=True, classes=["c", "b"])
    student, given = tiny_net("student"), batch()  # of classes a, b, c, a
    value_of({student: Match(teacher, asking)}, given)
    ours, theirs, labels, ids = asking.seen
    teacher.module.eval()
    torch.testing.assert_close(ours, student.module.eval()(given.inputs)[[1, 2]][:, [1, 2]])
    torch.testing.assert_close(theirs, teacher(given)[[1, 2]][:, [1, 0]])
    assert labels.tolist() == [0, 1]
    assert ids.tolist() == [1, 2]


def test_labels_of_several_classes_are_cut_by_column():
    teacher = tiny_net("teacher", outputs=2, trained=True, classes=["c", "b"])
    facts = BuildContext(classes=FACTS.classes, task="multilabel", samples=8, ids=True)
    given = Batch(torch.randn(4, 4), torch.eye(4)[:, :3], torch.arange(4))

    def asking(student, target, *, labels):
        assert labels.tolist() == given.labels[:, [1, 2]].tolist()
        return F.binary_cross_entropy_with_logits(student, labels)

    value_of({tiny_net("student"): Match(teacher, asking)}, given, facts)


def test_features_are_compared_with_all_labels_whatever_the_teacher_knows():
    teacher = tiny_net("teacher", outputs=2, trained=True, classes=["x", "y"])
    student, given = tiny_net("student"), batch()

    def asking(student, target, *, labels):
        assert labels is given.labels
        return F.mse_loss(student, target)

    sides = {"student": Tap(student.module.hidden), "target": Tap(teacher.module.hidden)}
    value_of({student: Match(teacher, asking, **sides)}, given)


# A source of one's own


class Constant(TeacherSession):
    """Says the same of every sample, and counts what it is told."""

    def __init__(self):
        self.told = []

    def __call__(self, batch):
        return TeacherOutput(torch.ones(len(batch), 3))

    def observe(self, batch, outputs):
        self.told.append(sorted(outputs))

    def on_step(self):
        self.told.append("stepped")

    def on_epoch_end(self):
        self.told.append("epoch")


class Mine:
    """A source of one's own."""

    name = "mine"

    def __init__(self):
        self.sessions = []

    def open(self, taps, facts):
        assert facts.batch_size == 4
        self.sessions.append(Constant())
        return self.sessions[-1]


def test_a_source_of_ones_own_is_asked_and_told():
    source, student = Mine(), tiny_net("student")
    result = run(one_stage(student, plain_goal() + Match(source, SoftTargets())), device="cpu")
    assert result.history["student"][0]["terms"]["mine/soft_targets"] > 0
    step = ["stepped", ["student"]]
    assert source.sessions[-1].told == [*step, *step, "epoch"]


class Answering(TeacherSession):
    """Answers with what a function makes of the batch."""

    def __init__(self, make):
        self.make = make

    def __call__(self, batch):
        return self.make(batch)


def answered_by(make, taps=None):
    """Return the problems of a stage in which a source of one's own answers so."""
    student, source = tiny_net("student"), Mine()
    source.open = lambda taps, facts: Answering(make)
    sides = {} if taps is None else {"student": Tap(student.module.hidden), "target": taps}
    return check(one_stage(student, plain_goal() + Match(source, nn.MSELoss(), **sides))).problems


ZEROS = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (ZEROS, "'mine' answers with Answer(output, features, known); got a Tensor"),
        (
            TeacherOutput(ZEROS, known=torch.zeros(4)),
            "True or False for each sample, (4,) of torch.bool; got (4,) of torch.float",
        ),
        (TeacherOutput(ZEROS, known=torch.zeros(2, dtype=torch.bool)), "got (2,) of torch.bool"),
        (TeacherOutput(torch.zeros(4, 5), known=torch.zeros(4, dtype=torch.bool)), "the shape (4, 3); got (4, 5)"),
    ],
)
def test_an_answer_of_ones_own_that_does_not_fit_is_refused(answer, said):
    (problem,) = answered_by(lambda batch: answer)
    assert said in problem


def test_a_source_of_ones_own_answers_for_every_tap():
    (problem,) = answered_by(lambda batch: TeacherOutput(ZEROS), Tap(nn.Linear(4, 5)))
    assert "a feature for each of 1 taps that its terms ask for; got 0" in problem
    (problem,) = answered_by(lambda batch: TeacherOutput(ZEROS, (ZEROS,), torch.ones(4) > 0), Tap(nn.Linear(4, 5)))
    assert "may leave outputs unknown, but no features" in problem


def test_a_source_of_ones_own_that_fails_is_named():
    (problem,) = answered_by(lambda batch: 1 / 0)
    assert "'mine' cannot answer a batch: ZeroDivisionError" in problem


@pytest.mark.parametrize(
    ("opening", "said"), [(lambda *_: None, "returned None"), (lambda *_: 1 / 0, "raises ZeroDivisionError")]
)
def test_a_source_that_does_not_open_is_refused(opening, said):
    student, source = tiny_net("student"), Mine()
    source.open = opening
    (problem,) = check(one_stage(student, plain_goal() + Match(source, SoftTargets()))).problems
    assert "open(taps, facts)" in problem
    assert said in problem


def test_a_source_without_a_hash_is_refused():
    @dataclass
    class Unhashable:
        name: str = "mine"

    with pytest.raises(RecipeError, match=r"takes a hash; 'mine' has none .*frozen=True"):
        Match(Unhashable(), SoftTargets())


def test_what_is_not_known_moves_none_of_two_nets_that_match_one_source():
    one, two, source = tiny_net("one"), tiny_net("two", seed=1), Mine()
    source.open = lambda taps, facts: Answering(
        lambda batch: TeacherOutput(ZEROS, known=torch.zeros(4, dtype=torch.bool))
    )
    rehearsal = rehearsed({net: plain_goal() + Match(source, nn.MSELoss()) for net in (one, two)})
    terms = terms_of(rehearsal, batch())
    assert terms["one: mine/mse_loss"].item() == terms["two: mine/mse_loss"].item() == 0
    rehearsal.close()


def test_a_view_that_fails_is_named():
    class Failing:
        key = "failing"

        def __call__(self, batch):
            raise KeyError("lead")

        def __repr__(self):
            return "Failing()"

    teacher = tiny_net("teacher", trained=True, view=Failing())
    (problem,) = check(one_stage(tiny_net("student"), plain_goal() + Match(teacher, SoftTargets()))).problems
    assert "net 'teacher' cannot be shown a batch by Failing(): KeyError: 'lead'" in problem


def test_something_that_is_no_source_is_refused_by_name():
    class Nothing:
        name = "nothing"

    problems = check(one_stage(tiny_net("student"), plain_goal() + Match(Nothing(), SoftTargets()))).problems
    assert any("'nothing' is a Nothing, which cannot be matched" in problem for problem in problems)


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), "8", True])
def test_the_memory_limit_of_a_past_is_above_zero(limit):
    with pytest.raises(RecipeError, match="memory_limit is a finite number above 0"):
        Past(tiny_net("student"), memory_limit=limit)
