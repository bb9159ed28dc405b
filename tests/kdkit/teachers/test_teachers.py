"""Teachers other than a frozen network: its past, its average, a peer, several together, and user-defined ones."""

import math
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
    Truth,
    check,
    run,
)
from kdkit.engine.check.dry_run import dry_run
from kdkit.engine.module import DistillationModule
from kdkit.engine.open_stage import OpenStage
from kdkit.errors import CheckError
from kdkit.losses import (
    CC,
    CKA,
    CRD,
    DIST,
    DKD,
    NKD,
    OFD,
    PSKD,
    RKD,
    RLD,
    SRRL,
    WTTM,
    GeneralisedJSD,
    HardTargets,
    Hint,
    LogitStandardisation,
    PerLabelSoftTargets,
    PerTeacher,
    SoftTargets,
)
from kdkit.losses.base import loss_name
from kdkit.losses.multi_teacher import teacher_confidence
from kdkit.teachers import open_teacher
from tests.helpers.open_stages import opened
from tests.helpers.tiny import hooks_of, one_stage, plain_goal, samples, tiny_data, tiny_net

CONTEXT = BuildContext(classes=("a", "b", "c"), task="multiclass", samples=8, ids=True)
TRAINING = Training(epochs=1)


def batch_of(*ids, inputs=None):
    """Return a batch of the samples with these ids, 0 to 3 by default. The class of a sample is its id modulo 3."""
    ids = torch.tensor(ids or (0, 1, 2, 3))
    return Batch(torch.randn(len(ids), 4) if inputs is None else inputs, ids % 3, ids)


def open_objectives(objectives, batch=None, context=CONTEXT):
    return opened(Stage(objectives, TRAINING), context, batch or batch_of())


def term_values(open_stage, batch):
    return open_stage.module(batch, open_stage.teachers(batch))


def only_term(objectives, batch, context=CONTEXT):
    """Return the value of the only term of a stage in eval mode."""
    with open_objectives(objectives, batch, context) as open_stage:
        open_stage.module.eval()
        (value,) = term_values(open_stage, batch).values()
    return value


def hidden_taps(student, teacher):
    return {"student": Tap(student.module.hidden), "target": Tap(teacher.module.hidden)}


def problems_of(net, objective, data=None):
    return check(one_stage(net, objective, data)).problems


# Past


def test_a_past_is_the_output_of_the_previous_epoch():
    student = tiny_net("student")
    session = open_teacher(Past(student), (), CONTEXT)
    session.dry_run(batch_of())
    first, second = torch.randn(4, 3), torch.randn(4, 3)
    session.observe(batch_of(3, 2, 1, 0), {"student": first})
    assert not session(batch_of()).mask.any()  # the first epoch has no past
    session.on_epoch_end()
    session.observe(batch_of(), {"student": second})
    past = session(batch_of(0, 5, 3))
    assert past.mask.tolist() == [True, False, True]  # sample 5 was in no batch
    torch.testing.assert_close(past.output[[0, 2]], first[[3, 0]])
    session.on_epoch_end()
    torch.testing.assert_close(session(batch_of()).output, second)


def test_a_sample_that_is_missing_in_an_epoch_keeps_its_older_past():
    session = open_teacher(Past(tiny_net("student")), (), CONTEXT)
    session.dry_run(batch_of())
    outputs = torch.randn(4, 3)
    session.observe(batch_of(), {"student": outputs})
    session.on_epoch_end()
    session.observe(batch_of(0), {"student": torch.zeros(1, 3)})
    session.on_epoch_end()
    past = session(batch_of())
    assert past.mask.all()
    torch.testing.assert_close(past.output, torch.cat([torch.zeros(1, 3), outputs[1:]]))


def test_a_sample_without_a_past_learns_from_its_label_only():
    student, batch = tiny_net("student"), batch_of()
    with open_objectives({student: Match(Past(student), PSKD(alpha=0.6))}) as open_stage:
        open_stage.module.eval().progress.fill_(0.5)
        (value,) = term_values(open_stage, batch).values()
        gradient = torch.autograd.grad(value, student.module.head.weight)[0]
        plain = F.cross_entropy(student(batch), batch.labels)
        # The weight of the past grows to alpha linearly, 0.3 at half the stage, and the label has the rest.
        expected = 0.7 * torch.autograd.grad(plain, student.module.head.weight)[0]
        torch.testing.assert_close(gradient, expected)


def test_a_loss_on_a_missing_past_has_no_gradient():
    student = tiny_net("student")
    objective = plain_goal() + Match(Past(student), SoftTargets())
    with open_objectives({student: objective}) as open_stage:
        value = term_values(open_stage, batch_of())["past of student/soft_targets"]
        assert value.item() == pytest.approx(0, abs=1e-6)
        value.backward()
        gradients = [parameter.grad for parameter in student.module.parameters()]
        assert all(gradient is None or gradient.abs().max() < 1e-6 for gradient in gradients)


def test_a_run_with_a_past_learns_from_the_epoch_before():
    outputs, targets = [], []

    def record_outputs(student, labels):
        outputs.append(student.detach().clone())
        return F.cross_entropy(student, labels)

    def record_target(student, target):
        targets.append(target.clone())
        return (student - target).square().mean()

    student = tiny_net("student")
    objective = Truth(record_outputs) + Match(Past(student), record_target)
    data = tiny_data()
    result = run(one_stage(student, objective, data, epochs=2, batch_size=8), device="cpu")
    values = [epoch["terms"]["past of student/record_target"] for epoch in result.history["student"]]
    assert values[0] == 0 < values[1]
    # The check and the dry run of the stage come first, then there is one batch per epoch.
    first, second = outputs[-2:]
    assert not torch.equal(targets[-1], second)
    # Epochs have different orders, so the rows are compared without order.
    assert sorted(map(tuple, targets[-1].tolist())) == sorted(map(tuple, first.tolist()))


def test_a_past_needs_sample_ids():
    student = tiny_net("student")
    loader = DataLoader(samples(), batch_size=4)
    data = TorchData(loader, samples(rows=6), classes=["a", "b", "c"])
    problems = problems_of(student, plain_goal() + Match(Past(student), SoftTargets()), data)
    assert any("'past of student' needs sample ids" in problem for problem in problems)


def test_a_past_that_does_not_fit_into_memory_is_refused_before_the_first_step():
    student = tiny_net("student")
    # The limit is in MB, and the two tables take 2 * 8 * 3 * 4 bytes.
    objective = plain_goal() + Match(Past(student, memory_limit=1e-5), SoftTargets())
    with pytest.raises(CheckError, match="'past of student' for 8 samples of 3 outputs would take"):
        run(one_stage(student, objective), device="cpu")


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), "8", True])
def test_the_memory_limit_of_a_past_must_be_above_zero(limit):
    with pytest.raises(RecipeError, match=r"memory_limit (is|must be) a finite number above 0"):
        Past(tiny_net("student"), memory_limit=limit)


def test_a_past_has_no_features():
    student = tiny_net("student")
    objective = plain_goal() + Match(Past(student), nn.MSELoss(), **hidden_taps(student, student))
    assert any(
        "'past of student' has outputs only, no features" in problem for problem in problems_of(student, objective)
    )


# Ema


def test_an_average_follows_the_net_by_its_decay():
    student, batch = tiny_net("student"), batch_of()
    before = {key: value.clone() for key, value in student.module.state_dict().items()}
    session = open_teacher(Ema(student, decay=0.9), (), CONTEXT)
    with torch.no_grad():
        for parameter in student.module.parameters():
            parameter.add_(1)
    session.on_step()  # the first update has the decay 1 - 1/2, and not yet 0.9
    average = session.state_dict()["average"]
    torch.testing.assert_close(average["head.weight"], before["head.weight"] + 0.5)
    for _ in range(20):
        session.on_step()
    share_of_old = 0.5
    for update in range(2, 22):
        share_of_old *= min(0.9, 1 - 1 / (update + 1))
    expected = before["head.weight"] + 1 - share_of_old
    torch.testing.assert_close(session.state_dict()["average"]["head.weight"], expected)
    assert not session(batch).output.requires_grad
    session.close()


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_the_average_of_a_net_in_half_precision_follows_it(precision):
    student = Net("student", nn.Linear(4, 3).to(precision))
    weight = student.module.weight.detach()
    sessions = [open_teacher(Ema(student, decay=0.999), (), CONTEXT) for _ in range(2)]
    expected, session = weight.double(), sessions[0]
    for update in range(1, 3001):
        weight.fill_(1 + update / 3000)
        session.on_step()
        expected = expected.lerp(weight.double(), 1 - min(0.999, 1 - 1 / (update + 1)))
        if update == 2000:  # resumed
            sessions[1].load_state_dict(session.state_dict())
            session = sessions[1]
    state = session.state_dict()["average"]
    torch.testing.assert_close(state["weight"].double(), expected, rtol=1e-4, atol=1e-4)
    assert session._average.module.weight.dtype == precision
    torch.testing.assert_close(session._average.module.weight.double(), expected, rtol=1e-2, atol=1e-2)


def test_tied_weights_are_averaged_once_per_update():
    first, last = nn.Linear(4, 4), nn.Linear(4, 4)
    last.weight = first.weight
    student = Net("student", nn.Sequential(first, nn.ReLU(), last, nn.Linear(4, 3)))
    before = first.weight.detach().clone()
    session = open_teacher(Ema(student, decay=0.9), (), CONTEXT)
    with torch.no_grad():
        first.weight.add_(1)
    session.on_step()
    # Averaged twice, it would be before + 0.75.
    torch.testing.assert_close(session.state_dict()["average"]["0.weight"], before + 0.5)
    session.close()


def test_a_net_that_cannot_be_copied_has_no_average():
    class Uncopyable(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.computed = self.weight * 2  # not a leaf tensor, which torch cannot copy

    student = Net("student", Uncopyable())
    problems = problems_of(student, plain_goal() + Match(Ema(student), SoftTargets()))
    assert len(problems) == 1
    assert "net 'student' cannot be copied, which its average needs" in problems[0]


def test_taps_on_the_net_are_moved_to_its_average():
    student, batch = tiny_net("student"), batch_of()
    tap = Tap(student.module.hidden)
    session = open_teacher(Ema(student), (tap,), CONTEXT)
    assert hooks_of(student.module) == 0  # the network itself is not tapped
    with torch.no_grad():
        student.module.hidden.weight.zero_()  # of the network, not of its average
    (feature,) = session(batch).features
    assert feature.abs().sum() > 0
    session.close()


def test_a_run_with_a_mean_teacher_does_not_add_it_to_the_student():
    student = tiny_net("student")
    keys = set(student.module.state_dict())
    features = Match(Ema(student), Hint(), **hidden_taps(student, student))
    objective = plain_goal() + Match(Ema(student), SoftTargets()) + features
    result = run(one_stage(student, objective, epochs=2), device="cpu")
    assert set(result.nets) == {"student"}
    assert set(student.module.state_dict()) == keys
    assert hooks_of(student.module) == 0
    assert result.history["student"][-1]["terms"]["average of student/soft_targets"] > 0


def test_two_averages_of_a_net_are_allowed_in_two_stages_but_not_in_one():
    student = tiny_net("student")
    slow, fast = (
        Match(Ema(student, decay), SoftTargets(), label=label) for label, decay in (("slow", 0.99), ("fast", 0.9))
    )
    (problem,) = problems_of(student, plain_goal() + slow + fast)
    assert "stage 'student': 2 different teachers are called 'average of student'" in problem
    # Names of teachers other than networks are unique within a stage only.
    stages = [Stage({student: plain_goal() + term}, TRAINING, name=term.label) for term in (slow, fast)]
    assert not check(Recipe(data=tiny_data(), schedule=[*stages])).problems


@pytest.mark.parametrize("decay", [0, 1, -0.5, float("nan"), True, "0.9"])
def test_the_decay_of_an_average_must_be_between_zero_and_one(decay):
    with pytest.raises(RecipeError, match=f"the decay of an average must be between 0 and 1; got {decay!r}"):
        Ema(tiny_net("student"), decay=decay)


# Peer


def mutual_objectives(first, second, loss):
    return {
        first: plain_goal() + Match(Peer(second), loss),
        second: plain_goal() + Match(Peer(first), loss),
    }


def test_peers_are_detached_targets_of_the_same_step():
    first, second, batch = tiny_net("one"), tiny_net("two", seed=1), batch_of()
    mutual = SoftTargets.mutual()
    module = DistillationModule(Stage(mutual_objectives(first, second, mutual), TRAINING), CONTEXT).eval()
    terms = module(batch, {})
    first_output, second_output = first(batch), second(batch)
    torch.testing.assert_close(terms["one: peer two/soft_targets"], mutual(first_output, second_output))
    torch.testing.assert_close(terms["two: peer one/soft_targets"], mutual(second_output, first_output))
    terms["one: peer two/soft_targets"].backward()
    assert all(parameter.grad is None for parameter in second.module.parameters())


def test_two_nets_of_one_stage_can_teach_each_other():
    first, second = tiny_net("one"), tiny_net("two", seed=1)
    # Deep mutual learning (Zhang et al. 2018): a stage that trains both.
    objectives = mutual_objectives(first, second, SoftTargets.mutual())
    recipe = Recipe(data=tiny_data(), schedule=[Stage(objectives, Training(epochs=2, batch_size=4))])
    result = run(recipe, device="cpu")
    assert set(result.metrics) == {"one", "two"}
    assert "two: peer one/soft_targets" in result.history["one+two"][0]["terms"]


def test_a_deep_layer_can_teach_a_shallow_one_of_the_same_net():
    student, batch = tiny_net("student", hidden=4), batch_of()
    taps = {"student": Tap(student.module.hidden), "target": Tap(student.module.norm)}
    student.module.norm.weight.data.fill_(2.0)
    # The dry run notices that the in-place ReLU overwrites the output of the batch norm, so the tap copies it.
    with open_objectives({student: Match(Peer(student), nn.MSELoss(), **taps)}) as open_stage:
        (value,) = term_values(open_stage, batch).values()
        hidden = student.module.hidden(batch.inputs)
        torch.testing.assert_close(value, F.mse_loss(hidden, student.module.norm(hidden)))
        value.backward()
        # The target side is detached: the deeper layer is not trained by its own teaching.
        assert student.module.norm.weight.grad is None
        assert student.module.hidden.weight.grad.abs().sum() > 0


def test_a_net_that_matches_its_own_outputs_is_a_problem_if_the_loss_has_no_gradient():
    student = tiny_net("student")
    for loss in (SoftTargets(), nn.MSELoss()):
        (problem,) = problems_of(student, plain_goal() + Match(Peer(student), loss))
        assert "has no effect: net 'student' is compared with its own output" in problem
    # Hard pseudo-labels of its own output have a gradient.
    assert not problems_of(student, plain_goal() + Match(Peer(student), HardTargets()))


@pytest.mark.parametrize("teacher_class", [Past, Ema, Peer])
def test_a_past_average_or_peer_of_a_net_that_is_not_trained_in_the_stage_is_a_problem(teacher_class):
    teacher, student = tiny_net("teacher", trained=True), tiny_net("student")
    problems = problems_of(student, plain_goal() + Match(teacher_class(teacher), SoftTargets()))
    message = "needs a net that is trained in this stage, and 'teacher' is not"
    assert any(message in problem for problem in problems)


def test_the_problem_of_a_net_matched_to_itself_names_the_alternatives():
    student = tiny_net("student")
    (problem,) = problems_of(student, Match(student, SoftTargets()))
    assert "Peer(net)" in problem
    assert "Past(net)" in problem


@pytest.mark.parametrize("teacher_class", [Past, Ema, Peer, Teachers])
def test_teachers_are_created_from_nets(teacher_class):
    with pytest.raises(RecipeError, match=f"{teacher_class.__name__} takes a Net; got a Linear"):
        teacher_class(nn.Linear(1, 1))


# Several teachers together


def two_teachers(**options):
    """Return two trained teachers in eval mode, with hidden layers of 5 and 7 features."""
    first = tiny_net("first", seed=1, trained=True, **options)
    second = tiny_net("second", seed=2, hidden=7, trained=True, **options)
    for net in (first, second):
        net.module.eval()
    return first, second


def test_several_teachers_are_matched_with_constant_weights():
    (first, second), student, batch = two_teachers(), tiny_net("student"), batch_of()
    match = Match(Teachers(first, second), PerTeacher(SoftTargets(), weights=(0.6, 0.4)))
    value = only_term({student: match}, batch)
    student.module.eval()
    soft, output = SoftTargets(), student(batch)
    torch.testing.assert_close(value, 0.6 * soft(output, first(batch)) + 0.4 * soft(output, second(batch)))


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_confidence_weights_teachers_by_their_cross_entropy_per_sample(task):
    (first, second), student, batch = two_teachers(), tiny_net("student"), batch_of()
    loss = SoftTargets() if task == "multiclass" else PerLabelSoftTargets()
    context = BuildContext(classes=CONTEXT.classes, task=task, samples=8, ids=True)
    if task == "multilabel":
        batch = Batch(batch.inputs, F.one_hot(batch.labels, 3).float(), batch.ids)
    match = Match(Teachers(first, second), PerTeacher(loss, weights="confidence"))
    value = only_term({student: match}, batch, context)
    student.module.eval()
    expected = 0.0
    cross_entropy = F.cross_entropy if task == "multiclass" else F.binary_cross_entropy_with_logits
    for row in range(4):
        sample = Batch(batch.inputs[row : row + 1], batch.labels[row : row + 1])
        errors = torch.stack([cross_entropy(net(sample), sample.labels) for net in (first, second)])
        # 1 - softmax, divided by the number of teachers less one, which is 1 here.
        weights = 1 - errors.exp() / errors.exp().sum()
        expected += sum(
            weight * loss(student(sample), net(sample)) for weight, net in zip(weights, (first, second), strict=True)
        )
    torch.testing.assert_close(value, expected / 4)


def test_confidence_weights_sum_to_one_and_are_larger_for_a_better_teacher():
    labels = torch.tensor([0, 1])
    right = F.one_hot(labels, 3) * 10.0
    weights = teacher_confidence((right, -right, torch.zeros(2, 3)), labels)  # right, wrong, undecided
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert (weights[:, 0] > weights[:, 2]).all()
    assert (weights[:, 2] > weights[:, 1]).all()


@pytest.mark.parametrize("weights", ["equal", "confidence", "learned"])
def test_features_of_several_teachers_have_a_projector_for_each(weights):
    first, second = two_teachers()
    student = tiny_net("student")
    taps = {"student": Tap(student.module.hidden), "target": (Tap(first.module.hidden), Tap(second.module.hidden))}
    loss = PerTeacher(Hint(projector="always"), weights=weights)
    stage = Stage({student: Match(Teachers(first, second), loss, **taps)}, TRAINING)
    with OpenStage(stage, CONTEXT, torch.device("cpu")) as open_stage:
        report = dry_run(open_stage, batch_of())
        assert report.problems == []
        (summary,) = report.terms
        log_variances = 2 if weights == "learned" else 0
        assert summary.parameters == 5 * 5 + 5 + 5 * 7 + 7 + log_variances
        (value,) = term_values(open_stage, batch_of()).values()
        value.backward()
        assert student.module.hidden.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("make", [RKD, CKA, CC, SRRL, lambda: OFD(margin=-1.0), lambda: CRD(negatives=4)])
def test_confidence_is_refused_for_a_loss_that_relates_samples(make):
    (first, second), student = two_teachers(), tiny_net("student")
    taps = {
        "student": Tap(student.module.hidden),
        "target": tuple(Tap(net.module.hidden) for net in (first, second)),
    }
    objective = plain_goal() + Match(Teachers(first, second), PerTeacher(make(), weights="confidence"), **taps)
    (problem,) = problems_of(student, objective)
    assert f"in {type(make()).__name__} the samples of a batch depend on each other" in problem


@pytest.mark.parametrize("make", [DKD, NKD, LogitStandardisation, HardTargets, lambda: nn.MSELoss(), GeneralisedJSD])
def test_confidence_is_allowed_for_a_loss_that_is_a_mean_over_samples(make):
    (first, second), student = two_teachers(), tiny_net("student")
    objective = plain_goal() + Match(Teachers(first, second), PerTeacher(make(), weights="confidence"))
    assert not problems_of(student, objective)


def test_confidence_is_refused_for_several_layers_of_one_teacher():
    teacher, student = tiny_net("teacher", trained=True), tiny_net("student")
    taps = {
        side: (Tap(net.module.hidden), Tap(net.module.head))
        for side, net in (("student", student), ("target", teacher))
    }
    objective = plain_goal() + Match(teacher, PerTeacher(Hint(), weights="confidence"), **taps)
    (problem,) = problems_of(student, objective)
    assert "weights='confidence' weighs several Teachers; got one teacher" in problem


def test_confidence_is_refused_for_regression():
    (first, second), student = two_teachers(), tiny_net("student")
    objective = Match(Teachers(first, second), PerTeacher(nn.MSELoss(), weights="confidence"))
    (problem,) = problems_of(student, objective, tiny_data("regression"))
    assert "the task of this data is regression; use weights='equal', 'learned' or a number per teacher" in problem


def test_learned_weights_converge_to_the_size_of_each_loss():
    (first, second), student, batch = two_teachers(), tiny_net("student"), batch_of()
    loss = PerTeacher(SoftTargets(), weights="learned")
    with open_objectives({student: Match(Teachers(first, second), loss)}) as open_stage:
        open_stage.module.eval()
        optimizer = torch.optim.SGD([loss.log_variances], lr=0.5)
        for _ in range(300):
            optimizer.zero_grad()
            next(iter(term_values(open_stage, batch).values())).backward()
            optimizer.step()
    student.module.eval()
    losses = torch.stack([SoftTargets()(student(batch), net(batch)) for net in (first, second)])
    # exp(-v) * loss + v / 2 is smallest at v = log(2 * loss).
    torch.testing.assert_close(loss.log_variances.detach(), (2 * losses).log().detach(), rtol=1e-3, atol=1e-3)


def test_every_teacher_gets_the_inputs_of_its_view():
    class FirstTwoFeatures:
        key = "the first two features"

        def __call__(self, batch):
            return (batch.inputs[:, :2],), {}

    torch.manual_seed(0)
    narrow = Net("narrow", nn.Linear(2, 3), view=FirstTwoFeatures(), trained=True)
    wide, student, batch = Net("wide", nn.Linear(4, 3), trained=True), tiny_net("student"), batch_of()
    match = Match(Teachers(narrow, wide), PerTeacher(SoftTargets(), weights=(0.5, 0.5)))
    value = only_term({student: match}, batch)
    student.module.eval()
    output = student(batch)
    expected = (
        SoftTargets()(output, narrow.module(batch.inputs[:, :2])) + SoftTargets()(output, wide.module(batch.inputs))
    ) / 2
    torch.testing.assert_close(value, expected)


def test_several_teachers_are_compared_on_the_classes_that_all_share():
    first = Net("first", nn.Linear(4, 3), classes=["c", "b", "x"], trained=True)
    second, student, batch = Net("second", nn.Linear(4, 3), trained=True), tiny_net("student"), batch_of()
    value = only_term({student: Match(Teachers(first, second), PerTeacher(SoftTargets()))}, batch)
    student.module.eval()
    output = student(batch)[:, [1, 2]]  # b, c
    expected = SoftTargets()(output, first(batch)[:, [1, 0]]) + SoftTargets()(output, second(batch)[:, [1, 2]])
    torch.testing.assert_close(value, expected / 2)


def test_an_unknown_weighting_of_teachers_is_refused():
    with pytest.raises(
        RecipeError, match="weights are a number per teacher, or one of equal, confidence, learned; got"
    ):
        PerTeacher(SoftTargets(), weights="best")


@pytest.mark.parametrize("weights", [(0.5, 0.6), (1.5, -0.5), (), 0.5, (float("nan"), 1.0)])
def test_invalid_weights_of_teachers_are_refused(weights):
    with pytest.raises(RecipeError, match="the weights of teachers are at least 0 and sum to 1; got"):
        PerTeacher(SoftTargets(), weights=weights)


def test_teachers_needs_at_least_two_different_nets():
    first, second = two_teachers()
    for members, names in (((), "none"), ((first,), "first"), ((first, first), "first, first")):
        with pytest.raises(RecipeError, match=rf"Teachers\(\.\.\.\) takes at least two different nets; got {names}"):
            Teachers(*members)
    assert Teachers(first, second) == Teachers(first, second)
    assert Teachers(first, second).name == "first and second"


def test_a_net_that_is_trained_in_the_stage_cannot_be_one_of_the_teachers():
    student, peer, teacher = tiny_net("student"), tiny_net("peer"), tiny_net("teacher", trained=True)
    objectives = {student: plain_goal() + Match(Teachers(teacher, peer), PerTeacher(SoftTargets())), peer: plain_goal()}
    (problem,) = check(Recipe(data=tiny_data(), schedule=[Stage(objectives, TRAINING)])).problems
    assert "net 'peer' is trained in this stage, so it cannot be one of the frozen Teachers(...)" in problem


def test_the_target_of_several_teachers_is_a_tap_on_each():
    (first, second), student = two_teachers(), tiny_net("student")
    taps = {"student": Tap(student.module.hidden), "target": (Tap(second.module.hidden), Tap(first.module.hidden))}
    problems = problems_of(student, Match(Teachers(first, second), PerTeacher(Hint()), **taps))
    assert sum("is not a part of net" in problem for problem in problems) == 2  # the taps are in the wrong order
    taps["target"] = (Tap(first.module.hidden),)
    problems = problems_of(student, Match(Teachers(first, second), PerTeacher(Hint()), **taps))
    message = "Teachers(...) of 2 nets takes a tuple of as many taps as target, one on each net; got 1"
    assert any(message in problem for problem in problems)


def test_a_loss_for_one_teacher_and_a_loss_for_several_are_not_confused():
    (first, second), student = two_teachers(), tiny_net("student")
    (problem,) = problems_of(student, Match(Teachers(first, second), SoftTargets()))
    assert "Teachers(...) gives a tuple, of which PerTeacher(SoftTargets(" in problem
    problems = problems_of(student, Match(first, PerTeacher(SoftTargets())))
    assert any("Match(Teachers(first, second), PerTeacher(...))" in problem for problem in problems)


def test_an_untrained_member_of_several_teachers_is_a_problem():
    first, second = tiny_net("first", trained=True), tiny_net("second")
    problems = problems_of(tiny_net("student"), Match(Teachers(first, second), PerTeacher(SoftTargets())))
    message = "net 'second' teaches, but it is not trained in an earlier stage"
    assert any(message in problem for problem in problems)


# Teachers with different classes, and losses that take labels


class LabelLoss:
    """A loss that takes labels and ids in addition to both sides, and records all four."""

    def __call__(self, student, target, *, labels, ids):
        self.arguments = (student, target, labels, ids)
        return F.cross_entropy(student, labels) + (student - target).square().mean()


def test_labels_are_reduced_to_the_classes_of_a_teacher_with_fewer():
    teacher = tiny_net("teacher", outputs=2, trained=True, classes=["c", "b"])
    student, batch, loss = tiny_net("student"), batch_of(), LabelLoss()  # the batch has classes a, b, c, a
    only_term({student: Match(teacher, loss)}, batch)
    student_side, target_side, labels, ids = loss.arguments
    teacher.module.eval()
    torch.testing.assert_close(student_side, student.module.eval()(batch.inputs)[[1, 2]][:, [1, 2]])
    torch.testing.assert_close(target_side, teacher(batch)[[1, 2]][:, [1, 0]])
    assert labels.tolist() == [0, 1]
    assert ids.tolist() == [1, 2]  # the samples of class a are dropped


def test_columns_of_multilabel_labels_are_reduced_to_the_classes_of_a_teacher():
    teacher = tiny_net("teacher", outputs=2, trained=True, classes=["c", "b"])
    context = BuildContext(classes=CONTEXT.classes, task="multilabel", samples=8, ids=True)
    batch = Batch(torch.randn(4, 4), torch.eye(4)[:, :3], torch.arange(4))

    def loss(student, target, *, labels):
        assert labels.tolist() == batch.labels[:, [1, 2]].tolist()
        return F.binary_cross_entropy_with_logits(student, labels)

    only_term({tiny_net("student"): Match(teacher, loss)}, batch, context)


def test_a_loss_on_features_gets_all_labels_whatever_the_classes_of_the_teacher():
    teacher = tiny_net("teacher", outputs=2, trained=True, classes=["x", "y"])
    student, batch = tiny_net("student"), batch_of()

    def loss(student, target, *, labels):
        assert labels is batch.labels
        return F.mse_loss(student, target)

    only_term({student: Match(teacher, loss, **hidden_taps(student, teacher))}, batch)


# User-defined teachers


class RecordingSession(TeacherSession):
    """Returns ones for every sample, and records the calls of its other methods."""

    def __init__(self):
        self.calls = []

    def __call__(self, batch):
        return TeacherOutput(torch.ones(len(batch), 3))

    def observe(self, batch, outputs):
        self.calls.append(sorted(outputs))

    def on_step(self):
        self.calls.append("on_step")

    def on_epoch_end(self):
        self.calls.append("on_epoch_end")


class CustomTeacher:
    """A user-defined teacher, which keeps the sessions it opened."""

    name = "custom"

    def __init__(self):
        self.sessions = []

    def open(self, taps, context):
        assert context.batch_size == 4
        self.sessions.append(RecordingSession())
        return self.sessions[-1]


def test_a_user_defined_teacher_is_called_and_notified():
    teacher, student = CustomTeacher(), tiny_net("student")
    result = run(one_stage(student, plain_goal() + Match(teacher, SoftTargets())), device="cpu")
    assert result.history["student"][0]["terms"]["custom/soft_targets"] > 0
    # Eight samples are two batches of four; the names of the students are passed to `observe`.
    step = ["on_step", ["student"]]
    assert teacher.sessions[-1].calls == [*step, *step, "on_epoch_end"]


class FunctionSession(TeacherSession):
    """Returns the result of a function of the batch."""

    def __init__(self, function):
        self.function = function

    def __call__(self, batch):
        return self.function(batch)


def problems_with_outputs(function, tap=None):
    """Return the problems of a stage with a user-defined teacher whose outputs are a function of the batch."""
    student, teacher = tiny_net("student"), CustomTeacher()
    teacher.open = lambda taps, context: FunctionSession(function)
    taps = {} if tap is None else {"student": Tap(student.module.hidden), "target": tap}
    return problems_of(student, plain_goal() + Match(teacher, nn.MSELoss(), **taps))


ZEROS = torch.zeros(4, 3)
NO_SAMPLE = torch.zeros(4, dtype=torch.bool)  # the mask of a teacher that has no output for any sample


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (ZEROS, "'custom' must return TeacherOutput(output, features, mask); got a Tensor"),
        (
            TeacherOutput(ZEROS, mask=torch.zeros(4)),
            "True or False for each sample, (4,) of torch.bool; got (4,) of torch.float",
        ),
        (TeacherOutput(ZEROS, mask=torch.zeros(2, dtype=torch.bool)), "got (2,) of torch.bool"),
        (TeacherOutput(torch.zeros(4, 5), mask=NO_SAMPLE), "the shape (4, 3); got (4, 5)"),
    ],
)
def test_an_invalid_output_of_a_user_defined_teacher_is_a_problem(output, message):
    (problem,) = problems_with_outputs(lambda batch: output)
    assert message in problem


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_user_defined_teacher_has_a_name_for_each_of_its_outputs(outputs):
    teacher = CustomTeacher()
    teacher.classes = ("a", "b")
    session = FunctionSession(lambda batch: TeacherOutput(torch.randn(len(batch), outputs)))
    teacher.open = lambda taps, context: session
    (problem,) = problems_of(tiny_net("student"), plain_goal() + Match(teacher, SoftTargets()))
    assert f"'custom' has outputs of shape (batch, {outputs}) and 2 classes; its `classes`" in problem


def test_a_teacher_has_a_name_for_each_of_its_outputs_also_if_they_are_compared_with_features():
    def loss(features, outputs, *, labels):
        return (features.mean() - outputs.mean()).square()

    teacher, student = Net("teacher", nn.Linear(4, 1), classes=("a", "b"), trained=True), tiny_net("student")
    (problem,) = problems_of(student, plain_goal() + Match(teacher, loss, student=Tap(student.module.hidden)))
    assert "net 'teacher' has outputs of shape (batch, 1) and 2 classes; its `classes`" in problem


def test_a_user_defined_teacher_must_return_a_feature_for_every_tap():
    (problem,) = problems_with_outputs(lambda batch: TeacherOutput(ZEROS), Tap(nn.Linear(4, 5)))
    assert "'custom' must return a feature for each of the 1 taps of its terms; got 0" in problem
    with_mask = TeacherOutput(ZEROS, (ZEROS,), torch.ones(4) > 0)
    (problem,) = problems_with_outputs(lambda batch: with_mask, Tap(nn.Linear(4, 5)))
    assert "'custom' may mask outputs, but not features; return mask=None if it is tapped" in problem


def test_a_user_defined_teacher_that_fails_is_named():
    (problem,) = problems_with_outputs(lambda batch: 1 / 0)
    assert "'custom' fails for a batch: ZeroDivisionError" in problem


@pytest.mark.parametrize(
    ("open_method", "message"), [(lambda *_: None, "returned None"), (lambda *_: 1 / 0, "raises ZeroDivisionError")]
)
def test_a_user_defined_teacher_that_cannot_be_opened_is_a_problem(open_method, message):
    student, teacher = tiny_net("student"), CustomTeacher()
    teacher.open = open_method
    (problem,) = problems_of(student, plain_goal() + Match(teacher, SoftTargets()))
    assert "open(taps, context) of CustomTeacher" in problem
    assert message in problem


def test_a_teacher_that_is_not_hashable_is_refused():
    @dataclass
    class Unhashable:
        name: str = "custom"

    with pytest.raises(RecipeError, match=r"a teacher must be hashable.*'custom' is not .*frozen=True"):
        Match(Unhashable(), SoftTargets())


def test_masked_samples_have_no_effect_on_any_of_two_nets_that_match_one_teacher():
    first, second, teacher = tiny_net("one"), tiny_net("two", seed=1), CustomTeacher()
    teacher.open = lambda taps, context: FunctionSession(lambda batch: TeacherOutput(ZEROS, mask=NO_SAMPLE))
    objectives = {net: plain_goal() + Match(teacher, nn.MSELoss()) for net in (first, second)}
    with open_objectives(objectives) as open_stage:
        terms = term_values(open_stage, batch_of())
        assert terms["one: custom/mse_loss"].item() == terms["two: custom/mse_loss"].item() == 0


def weighted_by_inputs(student, target, *, labels, ids, inputs):
    """A user-defined loss that compares samples, with most arguments that a loss can have."""
    distances = torch.cdist(student, student) - torch.cdist(target, target)
    return (distances.square() * (labels + ids + inputs.sum(1))).mean()


@pytest.mark.parametrize(
    "loss",
    [HardTargets(), WTTM(), RLD(), NKD(), SoftTargets(), DIST(), RKD(), nn.MSELoss(), weighted_by_inputs],
    ids=loss_name,
)
def test_samples_without_a_teacher_output_are_left_out_of_every_loss(loss):
    student, teacher, targets = tiny_net("student"), CustomTeacher(), torch.randn(8, 3)
    masks = []
    teacher.open = lambda taps, context: FunctionSession(
        lambda batch: TeacherOutput(
            targets[batch.ids].masked_fill(~masks[-1][batch.ids, None], math.nan), mask=masks[-1][batch.ids]
        )
    )
    batch, rows = batch_of(*range(8)), [0, 2, 3, 6, 7]
    masks.append(torch.ones(8, dtype=torch.bool))
    with open_objectives({student: Match(teacher, loss, label="term")}, batch) as open_stage:
        open_stage.module.eval()
        masks.append(torch.isin(torch.arange(8), torch.tensor(rows)))
        (value,) = term_values(open_stage, batch).values()
        masks.append(torch.ones(8, dtype=torch.bool))
        (expected,) = term_values(open_stage, batch_of(*rows, inputs=batch.inputs[rows])).values()
        torch.testing.assert_close(value, expected * len(rows) / 8)
        gradients = [torch.autograd.grad(term, student.module.head.weight)[0] for term in (value, expected)]
        torch.testing.assert_close(gradients[0], gradients[1] * len(rows) / 8)
        masks.append(torch.zeros(8, dtype=torch.bool))
        (nothing,) = term_values(open_stage, batch).values()
        assert nothing == 0
        assert not torch.autograd.grad(nothing, student.module.head.weight)[0].any()


def test_a_feature_is_compared_for_the_samples_that_have_a_teacher_output():
    student, teacher = tiny_net("student"), CustomTeacher()
    mask = torch.tensor([True, False, True, False])
    teacher.open = lambda taps, context: FunctionSession(lambda batch: TeacherOutput(ZEROS, mask=mask))
    match = Match(
        teacher, lambda feature, target: feature[:, :3].sum() + len(target), student=Tap(student.module.hidden)
    )
    value = only_term({student: match}, batch := batch_of())
    feature = student.module.eval().hidden(batch.inputs[mask])
    torch.testing.assert_close(value, (feature[:, :3].sum() + 2) / 2)


def test_a_view_that_fails_is_named():
    class FailingView:
        key = "failing"

        def __call__(self, batch):
            raise KeyError("lead")

        def __repr__(self):
            return "FailingView()"

    teacher = tiny_net("teacher", trained=True, view=FailingView())
    (problem,) = problems_of(tiny_net("student"), plain_goal() + Match(teacher, SoftTargets()))
    assert "the view FailingView() of net 'teacher' fails for a batch: KeyError: 'lead'" in problem


def test_an_object_that_is_not_a_teacher_is_a_problem_with_its_name():
    class Nothing:
        name = "nothing"

    problems = problems_of(tiny_net("student"), plain_goal() + Match(Nothing(), SoftTargets()))
    assert any("'nothing' is a Nothing, which cannot be matched" in problem for problem in problems)
