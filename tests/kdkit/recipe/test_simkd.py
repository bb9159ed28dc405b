"""SimKD: the body and the projector are trained, the teacher's head is frozen, and the whole network is deployed."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import prune
from torch.optim import SGD
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Match, Net, Optimizer, Recipe, RecipeError, SimKD, Stage, Tap, TorchData, Training, Truth
from kdkit_ecg import Leads, LRHNet, SEResNet, Synthetic
from tests.helpers.stages import copied, same

LAYERS = {1: (nn.Conv1d, nn.AdaptiveAvgPool1d), 2: (nn.Conv2d, nn.AdaptiveAvgPool2d)}


class TeacherNet(nn.Module):
    """A body with six channels, and a head that pools and classifies them."""

    def __init__(self, dimensions: int = 2) -> None:
        super().__init__()
        conv, pool = LAYERS[dimensions]
        self.body = nn.Sequential(conv(1, 6, 3, stride=2, padding=1), nn.ReLU())  # (batch, 6, 4, ...)
        self.head = nn.Sequential(pool(1), nn.Flatten(), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))

    def forward(self, inputs):
        return self.head(self.body(inputs))


def student_body(dimensions=2):
    return nn.Sequential(LAYERS[dimensions][0](1, 4, 3, padding=1), nn.ReLU())  # (batch, 4, 8, ...)


def simkd_of(teacher, dimensions=2):
    """Return a SimKD student whose shapes fit `student_body` and `TeacherNet`."""
    return SimKD(
        student_body(dimensions),
        teacher.head,
        student_shape=(4, *[8] * dimensions),
        teacher_shape=(6, *[4] * dimensions),
    )


def image_data(dimensions=2):
    generator = torch.Generator().manual_seed(0)
    samples = TensorDataset(torch.randn(24, 1, *[8] * dimensions, generator=generator), torch.arange(24) % 3)
    return TorchData(samples, samples, classes=("a", "b", "c"))


def stage_of(student, *terms):
    return Stage(
        {student: sum(terms[1:], terms[0])}, Training(epochs=2, batch_size=8, optimizer=Optimizer(SGD, lr=0.1))
    )


# Training


@pytest.mark.parametrize("dimensions", [1, 2])
def test_body_and_projector_are_trained_and_the_head_stays_that_of_the_teacher(dimensions):
    teacher = Net("teacher", TeacherNet(dimensions), trained=True)
    student = Net("student", simkd_of(teacher.module, dimensions))
    before, teacher_before = copied(student.module), copied(teacher.module)
    term = student.module.match(teacher, Tap(teacher.module.body))
    result = kdkit.run(Recipe(data=image_data(dimensions), schedule=[stage_of(student, term)]), device="cpu")
    after = copied(student.module)
    epochs = result.history["student"]
    assert epochs[1]["terms"]["teacher/simkd"] < epochs[0]["terms"]["teacher/simkd"]
    assert same(copied(student.module.head), copied(teacher.module.head))
    # The student has no loss on labels: the gradient comes from the features only.
    for key in ("body.0.weight", "projector.first.weight", "projector.last.weight"):
        assert not torch.equal(before[key], after[key])
    assert same(teacher_before, copied(teacher.module))


def test_the_loss_is_the_mean_squared_error():
    teacher = Net("teacher", TeacherNet(), trained=True)
    student = Net("student", simkd_of(teacher.module))
    taps = {"student": Tap(student.module.projector), "target": Tap(teacher.module.body)}
    # A plain Match with MSELoss is valid too.
    recipe = Recipe(data=image_data(), schedule=[stage_of(student, Match(teacher, nn.MSELoss(), **taps))])
    assert not kdkit.check(recipe).problems
    torch.manual_seed(0)
    first, second = torch.randn(2, 6, 4, 4), torch.randn(2, 6, 4, 4)
    simkd_loss = student.module.match(teacher, taps["target"]).loss
    assert torch.equal(simkd_loss(first, second), nn.MSELoss()(first, second))


def test_the_head_of_a_teacher_of_an_earlier_stage_is_copied_after_that_stage():
    teacher = Net("teacher", TeacherNet())
    student = Net("student", simkd_of(teacher.module))
    untrained = copied(student.module.head)  # SimKD copies the head when it is created, before any training
    term = student.module.match(teacher, Tap(teacher.module.body))
    stages = [stage_of(teacher, Truth(nn.CrossEntropyLoss())), stage_of(student, term)]
    kdkit.run(Recipe(data=image_data(), schedule=stages), device="cpu")
    assert same(copied(student.module.head), copied(teacher.module.head))
    assert not same(copied(student.module.head), untrained)


def test_the_head_is_in_eval_mode_and_gets_no_gradient_while_the_body_is_trained():
    teacher_module = TeacherNet()
    head_modes, simkd = [], simkd_of(teacher_module)
    dropout = simkd.head[3]
    dropout.register_forward_hook(lambda module, *_: head_modes.append(module.training))
    student, teacher = Net("student", simkd), Net("teacher", teacher_module, trained=True)
    truth = Truth(nn.CrossEntropyLoss())  # so that a gradient flows through the head
    term = simkd.match(teacher, Tap(teacher_module.body))
    kdkit.run(Recipe(data=image_data(), schedule=[stage_of(student, term, truth)]), device="cpu")
    assert head_modes
    assert not any(head_modes)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in simkd.head.parameters())
    assert same(copied(simkd.head), copied(teacher_module.head))


# The network


def test_weights_are_saved_whole_and_can_be_loaded_into_a_network_of_the_same_shape(tmp_path):
    teacher = Net("teacher", TeacherNet(), trained=True)
    student = Net("student", simkd_of(teacher.module))
    term = student.module.match(teacher, Tap(teacher.module.body))
    recipe = Recipe(data=image_data(), schedule=[stage_of(student, term)])
    kdkit.run(recipe, device="cpu", out=tmp_path / "run")
    path = next((tmp_path / "run").glob("*-student/weights.safetensors"))
    assert {key.split(".")[0] for key in load_file(path)} == {"body", "projector", "head"}
    # The head of the new network is that of another teacher until the weights are loaded.
    loaded = Net("student", simkd_of(TeacherNet()), weights=path)
    inputs = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded.module.eval()(inputs), student.module.eval()(inputs))


def test_the_head_is_a_copy_that_does_not_follow_the_teacher():
    teacher = TeacherNet()
    student = simkd_of(teacher)
    with torch.no_grad():
        teacher.head[-1].weight.zero_()
    assert student.head[-1].weight.any()
    student.copy_head()
    assert not student.head[-1].weight.any()
    assert all(parameter.requires_grad for parameter in teacher.head.parameters())


def test_a_deep_copy_has_the_same_outputs():
    # A run copies networks, for example for an EMA.
    student = simkd_of(TeacherNet()).eval()
    inputs = torch.randn(2, 1, 8, 8)
    assert torch.equal(copy.deepcopy(student)(inputs), student(inputs))


def test_inputs_after_the_first_one_are_passed_to_the_head():
    large, small = SEResNet(width=4), LRHNet(leads=3, width=4)
    teacher = Net("teacher", large, view=Leads(12), trained=True)
    simkd = SimKD(small.body(), large.head(), student_shape=(16, 25), teacher_shape=(32, 4))
    student = Net("student", simkd, view=Leads(3))
    records = Synthetic(train=8, validation=4, test=4, length=100)
    recipe = Recipe(data=records, schedule=[stage_of(student, simkd.match(teacher, Tap(large.group4)))])
    kdkit.run(recipe, device="cpu")
    signal, simkd = torch.randn(2, 3, 100), simkd.eval()
    # The same signal with two ages: the demographic inputs reach the head.
    old, young = (simkd(signal, torch.tensor([[age, 1.0, 1, 0, 1]] * 2)) for age in (0.9, 0.1))
    assert not torch.allclose(old, young)


@pytest.mark.parametrize("net", [LRHNet(leads=2, width=4), SEResNet(leads=2, width=4)], ids=["lrhnet", "se_resnet"])
def test_body_and_head_of_an_ecg_net_have_the_outputs_of_the_whole_net(net):
    signal, demographics = torch.randn(2, 2, 99), torch.rand(2, 5)
    net = net.eval()
    assert torch.equal(net.head()(net.body()(signal), demographics), net(signal, demographics))


# Invalid shapes and parts


def problems_of(simkd, teacher, taps):
    """Return the problems that a check of this student reports before the first step."""
    student = Net("student", simkd)
    term = simkd.match(Net("teacher", teacher, trained=True), taps)
    return kdkit.check(Recipe(data=image_data(), schedule=[stage_of(student, term)])).problems


def test_the_head_of_a_pruned_teacher_is_copied_with_its_mask():
    teacher = TeacherNet()
    prune.l1_unstructured(teacher.head[-1], "weight", amount=9)
    simkd = simkd_of(teacher)
    assert problems_of(simkd, teacher, Tap(teacher.body)) == ()
    assert torch.equal(simkd.head[-1].weight, teacher.head[-1].weight)


def test_a_body_with_different_channels_than_student_shape_is_one_problem():
    teacher = TeacherNet()
    simkd = SimKD(student_body(), teacher.head, student_shape=(5, 8, 8), teacher_shape=(6, 4, 4))
    (problem,) = problems_of(simkd, teacher, Tap(teacher.body))
    assert "the body of SimKD returns features of shape (4, 8, 8); expected (5, 8, 8); set student_shape" in problem


def test_a_projector_to_a_different_shape_than_the_teachers_is_a_problem():
    teacher = TeacherNet()
    simkd = SimKD(student_body(), teacher.head, student_shape=(4, 8, 8), teacher_shape=(6, 2, 2))
    problems = problems_of(simkd, teacher, Tap(teacher.body))
    assert "write SimKD(..., teacher_shape=(6, 4, 4))" in " ".join(problems)


def test_a_head_that_does_not_accept_the_projected_features_is_a_problem():
    teacher = TeacherNet()
    # The head of the teacher takes 6 channels.
    simkd = SimKD(student_body(), teacher.head, student_shape=(4, 8, 8), teacher_shape=(7, 4, 4))
    problems = problems_of(simkd, teacher, Tap(teacher.body))
    assert "net 'student' fails for its inputs ((4, 1, 8, 8)): " in " ".join(problems)


def test_more_than_one_tap_on_the_teacher_is_a_problem():
    teacher = TeacherNet()
    (problem,) = problems_of(simkd_of(teacher), teacher, (Tap(teacher.body), Tap(teacher.head[4])))
    assert "SimKD takes one tap on each side; got 2" in problem


@pytest.mark.parametrize("shape", [6, (), (6, 0), ("6",)])
def test_shapes_must_be_positive_integers(shape):
    for name in ("student_shape", "teacher_shape"):
        shapes = {"student_shape": (4, 8, 8), "teacher_shape": (6, 4, 4), name: shape}
        with pytest.raises(RecipeError, match=f"{name} of SimKD must be the shape of one sample's features"):
            SimKD(student_body(), nn.Linear(6, 3), **shapes)


@pytest.mark.parametrize(
    ("parts", "shapes", "message"),
    [
        (
            (lambda inputs: inputs, nn.Identity()),
            {"student_shape": (4, 8), "teacher_shape": (6, 4)},
            "the body of SimKD must be an nn.Module; got a function",
        ),
        (
            (nn.Identity(), "fc"),
            {"student_shape": (4, 8), "teacher_shape": (6, 4)},
            "the head of SimKD must be an nn.Module; got a str",
        ),
        (
            (nn.Identity(), nn.Identity()),
            {"student_shape": (4, 7), "teacher_shape": (6, 4, 4)},
            "a projector maps",
        ),
    ],
)
def test_parts_that_are_not_modules_and_shapes_of_different_dimensions_are_refused(parts, shapes, message):
    with pytest.raises(RecipeError, match=message):
        SimKD(*parts, **shapes)
