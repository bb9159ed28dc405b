"""The order of a network's classes changes no loss and no metric: vectors per class follow the order of the data."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import ClassifierTap, Distiller, Match, Net, Optimizer, Recipe, Stage, Tap, TorchData, Training, Truth
from kdkit.errors import CheckError
from kdkit.losses import CATKD, DKD, LED, RKD, HardTargets, SoftTargets
from kdkit.metrics import F1, FixedThresholds
from tests.helpers.open_stages import only_problem

CLASSES, PERMUTED = ("a", "b", "c"), ("c", "a", "b")
INPUTS = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 3
INDICATORS = (INPUTS[:, :3] > 0).float()
VECTOR = torch.tensor([10.0, 1.0, 0.1])


class TwoHeads(nn.Module):
    """A network with a second head, as DeiT has for distillation."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.second = nn.Linear(8, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, inputs):
        features = self.body(inputs).relu()
        self.second(features)
        return self.head(features)


def permuted(module, *layers):
    """Return a copy of a network whose outputs are in the other order, as those of the layers of these names."""
    module = copy.deepcopy(module)
    for layer in map(module.get_submodule, layers):
        for parameter in layer.parameters():
            parameter.data = parameter.data[[CLASSES.index(name) for name in PERMUTED]]
    return module


def make(seed=0):
    torch.manual_seed(seed)
    return TwoHeads()


def value(student, term, labels=LABELS, **options):
    with Distiller(student, term, (INPUTS, labels), classes=CLASSES, **options) as distiller:
        return distiller(INPUTS, labels).loss.item()


@pytest.mark.parametrize(
    ("loss", "labels", "task"),
    [
        (nn.CrossEntropyLoss(weight=VECTOR), LABELS, "multiclass"),
        (nn.BCEWithLogitsLoss(pos_weight=VECTOR), INDICATORS, "multilabel"),
    ],
)
@pytest.mark.parametrize("of_head", [False, True])
def test_class_weights_follow_the_classes(loss, labels, task, of_head):
    module = make()
    layers = ["second" if of_head else "head"]
    nets = Net("student", module), Net("student", permuted(module, *layers), classes=PERMUTED)
    values = [
        value(net, Truth(loss, student=Tap(net.module.second) if of_head else None), labels, task=task) for net in nets
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_class_weights_follow_the_classes_if_both_networks_have_the_same_order():
    def weighted_error(student, target):
        return ((student - target).square() * VECTOR).mean()

    student, teacher = make(), make(1)
    in_order = value(Net("student", student), Match(Net("teacher", teacher, trained=True), weighted_error))
    teacher = Net("teacher", permuted(teacher, "head"), classes=PERMUTED, trained=True)
    student = Net("student", permuted(student, "head"), classes=PERMUTED)
    assert value(student, Match(teacher, weighted_error)) == pytest.approx(in_order, rel=1e-6)


@pytest.mark.parametrize("loss", [HardTargets(), SoftTargets(), DKD()])
@pytest.mark.parametrize("student_classes", [None, PERMUTED])
def test_a_teacher_is_brought_to_the_order_of_a_tapped_head(loss, student_classes):
    module, teacher = make(), make(1)
    student = Net("student", module)
    plain = Match(Net("teacher", teacher, trained=True), loss, student=Tap(module.second))
    in_order = value(student, plain)
    if student_classes is not None:
        student = Net("student", permuted(module, "head", "second"), classes=student_classes)
    permuted_teacher = Net("teacher", permuted(teacher, "head"), classes=PERMUTED, trained=True)
    term = Match(permuted_teacher, loss, student=Tap(student.module.second))
    assert value(student, term) == pytest.approx(in_order, rel=1e-6)


@pytest.mark.parametrize("loss", [HardTargets(), SoftTargets(), DKD()])
def test_a_tapped_head_of_a_teacher_is_brought_to_the_order_of_the_student(loss):
    module, student = make(1), Net("student", make())
    in_order = value(student, Match(Net("teacher", module, trained=True), loss, target=Tap(module.second)))
    teacher = Net("teacher", permuted(module, "head", "second"), classes=PERMUTED, trained=True)
    assert value(student, Match(teacher, loss, target=Tap(teacher.module.second))) == pytest.approx(in_order, rel=1e-6)
    # features of another width are no head
    features = Match(teacher, RKD(), target=Tap(teacher.module.body))
    assert value(student, features) == pytest.approx(
        value(student, Match(Net("teacher", module, trained=True), RKD(), target=Tap(module.body))), rel=1e-6
    )


def test_features_of_other_widths_than_the_classes_are_no_head():
    def first_column(student, target):
        return (student[:, 0] - target[:, 0]).square().mean()

    student = Net("student", make(), classes=PERMUTED)
    teacher = Net("teacher", make(1), trained=True)
    expected = (student.module.body(INPUTS)[:, 0] - teacher.module(INPUTS)[:, 0]).square().mean().item()
    assert value(student, Match(teacher, first_column, student=Tap(student.module.body))) == pytest.approx(expected)


@pytest.mark.parametrize("names", [("student", "teacher"), ("teacher",), ("student",)])
def test_outputs_of_a_regression_in_another_order_are_refused(names):
    classes = dict.fromkeys(names, PERMUTED)
    student, teacher = (Net(name, make(), classes=classes.get(name), trained=True) for name in ("student", "teacher"))
    problem = rf"net '{names[0]}' has the outputs c, a, b, and the data has a, b, c; .* in the order of the data"
    with pytest.raises(CheckError, match=problem):
        value(student, Match(teacher, nn.MSELoss()), INPUTS[:, :3], task="regression")
    other = Net("student", make(), classes=("x", "y", "z"))
    assert value(other, Truth(nn.MSELoss()), INPUTS[:, :3], task="regression") > 0  # names of its own are no order


def test_maps_of_classes_are_aligned():
    def conv(seed):
        torch.manual_seed(seed)
        parts = [nn.Conv1d(2, 4, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)]
        return nn.Sequential(nn.Unflatten(1, (2, 4)), *parts)

    def matched(student, teacher):
        def maps(net):
            return ClassifierTap(net.module[1], classifier=net.module[4])

        return value(student, Match(teacher, CATKD(), student=maps(student), target=maps(teacher)))

    student, teacher = Net("student", conv(0)), conv(1)
    in_order = matched(student, Net("teacher", teacher, trained=True))
    other = Net("teacher", permuted(teacher, "4"), classes=PERMUTED, trained=True)
    assert matched(student, other) == pytest.approx(in_order, rel=1e-6)


def test_label_embeddings_of_a_teacher_are_in_the_order_of_the_labels():
    def matched(teacher, classes):
        torch.manual_seed(3)  # of the weights of the student's embeddings
        student = Net("student", make())
        net = Net("teacher", teacher, classes=classes, trained=True)
        # the second head has the same input, and must not be taken for the classifier
        loss = LED(teacher.head)
        term = Match(net, loss, student=Tap(student.module.body), target=Tap(teacher.body))
        with Distiller(student, term, (INPUTS, INDICATORS), classes=CLASSES, task="multilabel") as distiller:
            loss.student_weight.data.copy_(torch.arange(18.0).view(3, 6))
            return distiller(INPUTS, INDICATORS).loss.item()

    teacher = make(1)
    in_order = matched(teacher, None)
    assert matched(permuted(teacher, "head"), PERMUTED) == pytest.approx(in_order, rel=1e-5)


def evaluated(net, thresholds):
    splits = TensorDataset(INPUTS, INDICATORS)
    data = TorchData(splits, splits, classes=CLASSES)
    training = Training(epochs=1, keep="last", optimizer=Optimizer(torch.optim.SGD, lr=1e-9))
    stage = Stage({net: Truth(nn.BCEWithLogitsLoss())}, training)
    return Recipe(data=data, schedule=[stage], metrics=(F1(thresholds_by=FixedThresholds(thresholds)),))


def test_thresholds_follow_the_classes():
    module = make()
    results = [
        kdkit.run(evaluated(net, (-1.0, 0.0, 1.0)), progress=False).metrics["student"]["macro_f1_fixed"].by_class
        for net in (Net("student", module), Net("student", permuted(module, "head"), classes=PERMUTED))
    ]
    assert results[0] == results[1]


def test_vectors_of_other_classes_are_refused_with_the_remedy():
    module = nn.Linear(8, 2)
    weighted = Truth(nn.CrossEntropyLoss(weight=VECTOR))
    with pytest.raises(CheckError, match="one value for each of these, in the order of the data's classes"):
        value(Net("student", module, classes=("c", "a")), weighted)
    recipe = evaluated(Net("student", module, classes=("c", "a")), (-1.0, 0.0, 1.0))
    with pytest.raises(CheckError, match=r"3 thresholds for 2 classes \(a, c\); pass one per class"):
        kdkit.run(recipe, progress=False)


@pytest.mark.parametrize(
    ("first", "classes", "ignore_index"),
    [(1, ("c", "a"), None), (-1, CLASSES, -1)],
    ids=["classes that the network lacks", "no labels"],
)
def test_a_term_is_checked_if_the_first_samples_have_no_label_that_it_compares(first, classes, ignore_index):
    labels = torch.cat([torch.full((4,), first), LABELS[4:]])
    loss = nn.CrossEntropyLoss(weight=torch.ones(4), ignore_index=-1)
    data = TorchData(
        TensorDataset(INPUTS, labels), TensorDataset(INPUTS, LABELS), classes=CLASSES, ignore_index=ignore_index
    )
    net = Net("student", nn.Linear(8, len(classes)), classes=classes)
    problem = only_problem(Recipe(data=data, schedule=[Stage({net: Truth(loss)}, Training(epochs=1))]))
    assert "term 'truth': CrossEntropyLoss does not accept " in problem
    assert "weight tensor" in problem


def test_a_vector_of_the_shared_classes_is_in_the_order_of_the_data():
    module, labels = nn.Linear(8, 2), LABELS % 3
    net = Net("student", module, classes=("c", "a"))
    rows = labels != 1
    outputs = module(INPUTS)[rows][:, [1, 0]]  # a, c
    expected = nn.functional.cross_entropy(outputs, labels[rows] // 2, weight=torch.tensor([5.0, 1.0])).item()
    loss = nn.CrossEntropyLoss(weight=torch.tensor([5.0, 1.0]))
    assert value(net, Truth(loss), labels) == pytest.approx(expected, rel=1e-6)
