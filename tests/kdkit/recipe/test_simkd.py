"""A teacher's head on a student's body: trained by features, frozen where it is the teacher's, deployed whole."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Match, Net, Optimizer, Recipe, RecipeError, SimKD, Stage, Tap, TorchData, Training, Truth
from kdkit_ecg import Leads, LRHNet, SEResNet, Synthetic

CONVOLUTIONS = {1: (nn.Conv1d, nn.AdaptiveAvgPool1d), 2: (nn.Conv2d, nn.AdaptiveAvgPool2d)}


class Whole(nn.Module):
    """Six channels of features over positions, pooled, dropped and classified."""

    def __init__(self, dimensions: int = 2) -> None:
        super().__init__()
        conv, pool = CONVOLUTIONS[dimensions]
        self.body = nn.Sequential(conv(1, 6, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Sequential(pool(1), nn.Flatten(), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))

    def forward(self, inputs):
        return self.head(self.body(inputs))


def body(dimensions=2):
    return nn.Sequential(CONVOLUTIONS[dimensions][0](1, 4, 3, padding=1), nn.ReLU())


def reusing(teacher, dimensions=2):
    return SimKD(
        body(dimensions), teacher.head, student_shape=(4, *[8] * dimensions), teacher_shape=(6, *[4] * dimensions)
    )


def data(dimensions=2):
    generator = torch.Generator().manual_seed(0)
    samples = TensorDataset(torch.randn(24, 1, *[8] * dimensions, generator=generator), torch.arange(24) % 3)
    return TorchData(samples, samples, classes=("a", "b", "c"))


def stage(student, *terms):
    return Stage(
        {student: sum(terms[1:], terms[0])}, Training(epochs=2, batch_size=8, optimizer=Optimizer(SGD, lr=0.1))
    )


def state(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_body_and_the_projector_learn_and_the_head_stays_the_teachers(dimensions):
    teacher = Net("teacher", Whole(dimensions), trained=True)
    student = Net("student", reusing(teacher.module, dimensions))
    before, taught = state(student.module), state(teacher.module)
    term = student.module.match(teacher, Tap(teacher.module.body))
    result = kdkit.run(Recipe(data=data(dimensions), schedule=[stage(student, term)]), device="cpu")
    after = state(student.module)
    epochs = result.history["student"]
    assert epochs[1]["terms"]["teacher/simkd"] < epochs[0]["terms"]["teacher/simkd"]
    assert same(state(student.module.head), state(teacher.module.head))
    for key in ("body.0.weight", "projector.first.weight", "projector.last.weight"):
        assert not torch.equal(before[key], after[key])
    assert same(taught, state(teacher.module))


def test_a_plain_mean_squared_error_trains_it_too():
    teacher = Net("teacher", Whole(), trained=True)
    student = Net("student", reusing(teacher.module))
    ends = {"student": Tap(student.module.projector), "target": Tap(teacher.module.body)}
    recipe = Recipe(data=data(), schedule=[stage(student, Match(teacher, nn.MSELoss(), **ends))])
    assert not kdkit.check(recipe).problems
    torch.manual_seed(0)
    one, other = torch.randn(2, 6, 4, 4), torch.randn(2, 6, 4, 4)
    assert torch.equal(student.module.match(teacher, ends["target"]).loss(one, other), nn.MSELoss()(one, other))


def test_the_head_of_a_teacher_that_is_trained_first_is_the_trained_one():
    teacher = Net("teacher", Whole())
    student = Net("student", reusing(teacher.module))
    untrained = state(student.module.head)
    term = student.module.match(teacher, Tap(teacher.module.body))
    stages = [stage(teacher, Truth(nn.CrossEntropyLoss())), stage(student, term)]
    kdkit.run(Recipe(data=data(), schedule=stages), device="cpu")
    assert same(state(student.module.head), state(teacher.module.head))
    assert not same(state(student.module.head), untrained)


def test_the_head_is_in_eval_mode_and_without_gradients_while_the_body_trains():
    teacher = Whole()
    head_modes, student = [], reusing(teacher)
    student.head[3].register_forward_hook(lambda module, *_: head_modes.append(module.training))
    net, source = Net("student", student), Net("teacher", teacher, trained=True)
    truth = Truth(nn.CrossEntropyLoss())  # so that a gradient flows through the head
    recipe = Recipe(data=data(), schedule=[stage(net, student.match(source, Tap(teacher.body)), truth)])
    kdkit.run(recipe, device="cpu")
    assert head_modes
    assert not any(head_modes)
    assert not any(each.requires_grad or each.grad is not None for each in student.head.parameters())
    assert same(state(student.head), state(teacher.head))


def test_it_is_saved_whole_and_loads_into_another_of_its_form(tmp_path):
    teacher = Net("teacher", Whole(), trained=True)
    student = Net("student", reusing(teacher.module))
    term = student.module.match(teacher, Tap(teacher.module.body))
    kdkit.run(Recipe(data=data(), schedule=[stage(student, term)]), device="cpu", out=tmp_path / "run")
    path = next((tmp_path / "run").glob("*-student/weights.safetensors"))
    assert {key.split(".")[0] for key in load_file(path)} == {"body", "projector", "head"}
    again = Net("student", reusing(Whole()), weights=path)
    inputs = torch.randn(3, 1, 8, 8)
    assert torch.equal(again.module.eval()(inputs), student.module.eval()(inputs))


def test_the_head_is_a_copy_so_that_the_teacher_may_change():
    teacher = Whole()
    student = reusing(teacher)
    with torch.no_grad():
        teacher.head[-1].weight.zero_()
    assert student.head[-1].weight.any()
    student.copy_head()
    assert not student.head[-1].weight.any()
    assert all(each.requires_grad for each in teacher.head.parameters())


def test_a_copy_of_it_is_a_net_of_its_own():
    student = reusing(Whole()).eval()
    inputs = torch.randn(2, 1, 8, 8)
    assert torch.equal(copy.deepcopy(student)(inputs), student(inputs))


def test_what_a_net_sees_beside_its_first_input_goes_to_the_head():
    large, small = SEResNet(width=4), LRHNet(leads=3, width=4)
    teacher = Net("teacher", large, view=Leads(12), trained=True)
    simkd = SimKD(small.body(), large.head(), student_shape=(16, 25), teacher_shape=(32, 4))
    student = Net("student", simkd, view=Leads(3))
    records = Synthetic(train=8, validation=4, test=4, length=100)
    recipe = Recipe(data=records, schedule=[stage(student, simkd.match(teacher, Tap(large.group4)))])
    kdkit.run(recipe, device="cpu")
    signal, simkd = torch.randn(2, 3, 100), simkd.eval()
    old, young = (simkd(signal, torch.tensor([[age, 1.0, 1, 0, 1]] * 2)) for age in (0.9, 0.1))
    assert not torch.allclose(old, young)


@pytest.mark.parametrize("net", [LRHNet(leads=2, width=4), SEResNet(leads=2, width=4)], ids=["lrhnet", "se_resnet"])
def test_body_and_head_of_an_ecg_net_are_the_whole_net(net):
    signal, person = torch.randn(2, 2, 99), torch.rand(2, 5)
    net = net.eval()
    assert torch.equal(net.head()(net.body()(signal), person), net(signal, person))


def problems(student, teacher, target):
    net = Net("student", student)
    schedule = [stage(net, student.match(Net("teacher", teacher, trained=True), target))]
    return " ".join(kdkit.check(Recipe(data=data(), schedule=schedule)).problems)


def test_a_body_of_other_channels_than_said_is_refused_before_the_first_step():
    teacher = Whole()
    student = SimKD(body(), teacher.head, student_shape=(5, 8, 8), teacher_shape=(6, 4, 4))
    assert "gives features of (4, 8, 8) where given=(5, 8, 8)" in problems(student, teacher, Tap(teacher.body))


def test_a_projector_to_another_shape_than_the_teachers_is_refused_before_the_first_step():
    teacher = Whole()
    student = SimKD(body(), teacher.head, student_shape=(4, 8, 8), teacher_shape=(6, 2, 2))
    assert "write SimKD(..., teacher_shape=(6, 4, 4))" in problems(student, teacher, Tap(teacher.body))


def test_a_head_that_cannot_take_what_is_projected_is_refused_before_the_first_step():
    teacher = Whole()
    student = SimKD(body(), teacher.head, student_shape=(4, 8, 8), teacher_shape=(7, 4, 4))
    assert "net 'student' cannot take what it sees" in problems(student, teacher, Tap(teacher.body))


def test_a_body_that_gives_other_features_than_said_is_one_problem():
    teacher = Net("teacher", Whole(), trained=True)
    student = Net("student", SimKD(body(), teacher.module.head, student_shape=(5, 8, 8), teacher_shape=(6, 4, 4)))
    term = student.module.match(teacher, Tap(teacher.module.body))
    (problem,) = kdkit.check(Recipe(data=data(), schedule=[stage(student, term)])).problems
    assert "gives features of (4, 8, 8) where given=(5, 8, 8)" in problem


@pytest.mark.parametrize("wrong", [6, (), (6, 0), ("6",)])
def test_a_shape_of_features_is_whole_numbers(wrong):
    for name in ("given", "wanted"):
        shapes = {"given": (4, 8, 8), "wanted": (6, 4, 4), name: wrong}
        with pytest.raises(RecipeError, match=f"{name} of SimKD is the shape of one sample's features"):
            SimKD(body(), nn.Linear(6, 3), **shapes)


def test_a_reused_head_is_matched_by_one_tap():
    teacher = Net("teacher", Whole(), trained=True)
    student = Net("student", reusing(teacher.module))
    term = student.module.match(teacher, (Tap(teacher.module.body), Tap(teacher.module.head[4])))
    (problem,) = kdkit.check(Recipe(data=data(), schedule=[stage(student, term)])).problems
    assert "SimKD takes one tap on each side; got 2" in problem


@pytest.mark.parametrize(
    ("parts", "shapes", "said"),
    [
        ((lambda x: x, nn.Identity()), {"given": (4, 8), "wanted": (6, 4)}, "the body of SimKD is an nn.Module"),
        ((nn.Identity(), "fc"), {"given": (4, 8), "wanted": (6, 4)}, "the head of SimKD is an nn.Module; got a str"),
        ((nn.Identity(), nn.Identity()), {"given": (4, 7), "wanted": (6, 4, 4)}, "a projector maps"),
    ],
)
def test_what_is_no_module_and_shapes_that_cannot_meet_are_refused(parts, shapes, said):
    with pytest.raises(RecipeError, match=said):
        SimKD(*parts, **shapes)
