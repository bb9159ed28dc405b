"""LED: its formula for tapped embeddings, class-wise pooling, labels of one sample or none, and its weights."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import BuildContext, Match, Net, Recipe, RecipeError, Stage, Tap, TorchData, Training, Truth
from kdkit.losses import LED
from kdkit.losses.label_embeddings import pool_by_class
from tests.helpers.loss_reference import assert_equals_reference
from tests.helpers.losses import build_loss

CONTEXT = BuildContext(classes=("a", "b", "c", "d"), task="multilabel", samples=12, ids=True)
LABELS = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 0, 0], [0, 1, 0, 0], [1, 1, 0, 1]])


def embeddings(count=5, labels=4, width=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, labels, generator=generator)  # channels second, as a tap returns tokens


def huber_of_distances(student, target):
    """Return smooth L1 between relative distances of the members, summed over pairs, over the number of members."""
    relative = []
    for side in (student, target):
        distances = [[(first - second).square().sum() for second in side] for first in side]
        above = [value.sqrt() for row in distances for value in row if value > 0]
        mean = sum(above) / len(above)
        relative.append([[value.sqrt() / mean if value > 0 else value * 0 for value in row] for row in distances])
    total = 0
    for ours, theirs in zip(*relative, strict=True):
        for first, second in zip(ours, theirs, strict=True):
            error = (first - second).abs()
            total = total + (0.5 * error**2 if error < 1 else error - 0.5)
    return total / len(student)


def reference(class_aware=100.0, instance_aware=1000.0):
    def loss(student, target, labels):
        student, target = student.transpose(1, 2), target.transpose(1, 2)
        total = 0
        for label in range(labels.shape[1]):
            rows = [row for row in range(len(labels)) if labels[row, label]]
            if len(rows) > 1:
                total = total + class_aware * huber_of_distances(student[rows, label], target[rows, label])
        for row in range(len(labels)):
            columns = [label for label in range(labels.shape[1]) if labels[row, label]]
            if len(columns) > 1:
                total = total + instance_aware * huber_of_distances(student[row, columns], target[row, columns])
        return total

    return loss


def on_embeddings(student, target, **options):
    return build_loss(LED(embeddings=True, **options), student, target, context=CONTEXT)


@pytest.mark.parametrize("weights", [(100.0, 1000.0), (1.0, 0.0), (0.0, 1.0)])
def test_led_is_the_formula_of_its_authors_on_tapped_embeddings(weights):
    student, target = embeddings(), embeddings(width=6, seed=1)
    loss = on_embeddings(student, target, class_aware=weights[0], instance_aware=weights[1])
    assert_equals_reference(loss, reference(*weights), student, target, labels=LABELS)


def test_classes_and_samples_by_hand():
    # One label, three samples at 0, 1 and 3 of the student and 0, 2 and 4 of the teacher.
    student, target = (torch.tensor(values)[:, None, None] for values in ([0.0, 1.0, 3.0], [0.0, 2.0, 4.0]))
    loss = on_embeddings(student, target, class_aware=1.0, instance_aware=1.0)
    # distances 1, 2 and 3 over their mean 2, and 2, 2 and 4 over their mean 8/3
    errors = [1 / 2 - 3 / 4, 2 / 2 - 3 / 4, 3 / 2 - 3 / 2]
    expected = 2 * sum(0.5 * error**2 for error in errors) / 3
    assert loss(student, target, labels=torch.ones(3, 1)).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "labels",
    [
        torch.zeros(5, 4),
        torch.eye(5, 4),
        torch.tensor([[1, 1, 0, 0]] * 1 + [[0, 0, 0, 0]] * 4),
        torch.tensor([[1, 0, 0, 0]] * 2 + [[0, 0, 0, 0]] * 3),
    ],
)
def test_none_one_or_two_positives_give_zero_with_a_finite_gradient(labels):
    # Two relative distances are 1 on both sides: there are no proportions to learn.
    student = embeddings().requires_grad_()
    value = on_embeddings(student, embeddings(seed=1))(student, embeddings(seed=1), labels=labels)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-4)
    assert student.grad.isfinite().all()


def test_equal_and_zero_embeddings_have_a_finite_value_and_gradient():
    # All embeddings of the student are equal, so that all of its distances are 0, and so is their mean.
    student = torch.ones(5, 3, 4).requires_grad_()
    target = torch.zeros(5, 3, 4)
    value = on_embeddings(student, target)(student, target, labels=LABELS)
    value.backward()
    assert value.item() == 0
    assert not student.grad.any()


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e4, 1e10])
def test_the_scale_and_a_rotation_of_either_side_change_nothing(scale):
    student, target = embeddings(), embeddings(seed=1)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)))
    loss = on_embeddings(student, target)
    expected = loss(student, target, labels=LABELS)
    if scale > 1e-12:  # smaller numbers count as 0
        torch.testing.assert_close(loss(scale * student, target, labels=LABELS), expected, rtol=1e-4, atol=1e-4)
    turned = torch.einsum("ndc,de->nec", target, rotation)
    torch.testing.assert_close(loss(student, turned, labels=LABELS), expected, rtol=1e-4, atol=1e-4)


def test_a_mixed_label_counts_by_its_share():
    student, target = embeddings(), embeddings(seed=1)
    loss = on_embeddings(student, target)
    halves = torch.where(LABELS > 0, 0.5, 0.0)
    # pairs have a weight of 1/4, and their number of members is halved
    torch.testing.assert_close(
        loss(student, target, labels=halves), loss(student, target, labels=LABELS) / 2, rtol=1e-5, atol=1e-3
    )


def test_the_embeddings_of_pooled_features_sum_to_the_logits():
    features, classifier = torch.randn(5, 3), nn.Linear(3, 4, bias=False)
    torch.testing.assert_close(pool_by_class(features, classifier.weight).sum(2), classifier(features))


@pytest.mark.parametrize("positions", [(1,), (6,), (2, 3), (2, 3, 2)])
def test_positions_are_pooled_by_the_attention_of_each_label(positions):
    features, weight = torch.randn(5, 3, *positions), torch.randn(4, 3)
    flat = features.flatten(2)
    pooled = torch.zeros(5, 4, 3)
    for sample in range(5):
        for label in range(4):
            scores = [(weight[label] @ flat[sample, :, position]).exp() for position in range(flat.shape[2])]
            for position, score in enumerate(scores):
                pooled[sample, label] += score / sum(scores) * flat[sample, :, position] * weight[label]
    torch.testing.assert_close(pool_by_class(features, weight), pooled, rtol=1e-4, atol=1e-5)


def on_features(student, target, classifier=None, **options):
    teacher = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))
    return build_loss(LED(classifier, **options), student, target, teacher, CONTEXT), teacher


@pytest.mark.parametrize(
    "shapes", [((5, 3), (5, 6)), ((5, 3, 8), (5, 6, 7)), ((5, 3, 2, 4), (5, 6)), ((5, 3), (5, 6, 9))]
)
def test_the_student_and_its_weights_are_trained_and_the_teachers_are_not(shapes):
    student, target = (torch.randn(shape) for shape in shapes)
    loss, teacher = on_features(student, target)
    assert [name for name, _ in loss.named_parameters()] == ["student_weight"]
    assert torch.equal(loss.teacher_weight, teacher[1].weight)
    assert loss.state_dict().keys() == {"student_weight"}
    student.requires_grad_()
    loss(student, target, labels=LABELS).backward()
    assert student.grad.any()
    assert loss.student_weight.grad.any()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_convolution_is_a_classifier_too_and_the_loss_can_be_copied():
    student, target = torch.randn(5, 3, 7), torch.randn(5, 6, 7)
    classifier = nn.Conv1d(6, 4, 1)
    loss, _ = on_features(student, target, classifier)
    assert torch.equal(loss.teacher_weight, classifier.weight[:, :, 0])
    expected = loss(student, target, labels=LABELS)
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(copied(student, target, labels=LABELS), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LED(class_aware=0.0, instance_aware=0.0), "all 0"),
        (lambda: LED(class_aware=-1.0), "class_aware is a weight"),
        (lambda: LED(3), "classifier is a layer, such as teacher.module.fc; got a int"),
        (lambda: LED(nn.Linear(2, 2), embeddings=True), "leave out the classifier"),
        (lambda: LED(embeddings=1), "embeddings"),
        (lambda: on_features(torch.zeros(5, 3), torch.zeros(5, 7)), "no Linear layer from 7 channels"),
        (lambda: on_features(torch.zeros(5, 3), torch.zeros(5, 6), nn.Linear(5, 4)), "from the 6 channels"),
        (lambda: on_embeddings(torch.zeros(5, 3, 4), torch.zeros(5, 3, 2)), "tap the tokens of the labels"),
        (lambda: on_embeddings(torch.zeros(5, 3), torch.zeros(5, 3)), "tap the tokens of the labels"),
    ],
)
def test_options_and_shapes_that_do_not_fit_are_refused(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


@pytest.mark.parametrize("labels", [torch.zeros(5, dtype=torch.int64), torch.zeros(5, 3)])
def test_labels_of_another_shape_are_refused(labels):
    student = embeddings()
    with pytest.raises(RecipeError, match=r"a value in \[0, 1\] for every label, of shape \(5, 4\); got"):
        on_embeddings(student, student)(student, student, labels=labels)


class LabelDecoder(nn.Module):
    """A vector for each label that attends to the positions of a signal, as in an ML-Decoder: (batch, 2, time)."""

    def __init__(self, width, labels=3):
        super().__init__()
        self.features = nn.Conv1d(2, width, 3, padding=1)
        self.queries = nn.Parameter(torch.randn(labels, width))
        self.attention = nn.MultiheadAttention(width, 1, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)

    def forward(self, signal):
        positions = self.features(signal).mT  # (batch, time, width)
        attended, _ = self.attention(self.queries.expand(len(signal), -1, -1), positions, positions)
        return self.head(self.norm(attended))[:, :, 0]  # (batch, labels)


class Pooled(nn.Module):
    """A convolution, average pooling and a classifier."""

    def __init__(self, width, labels=3):
        super().__init__()
        self.features, self.head = nn.Conv1d(2, width, 3, padding=1), nn.Linear(width, labels)

    def forward(self, signal):
        return self.head(self.features(signal).mean(2))


@pytest.mark.parametrize(
    ("network", "layer", "loss"), [(LabelDecoder, "norm", LED(embeddings=True)), (Pooled, "features", LED())]
)
def test_both_forms_train_a_student_on_taps(network, layer, loss):
    def samples(count, seed):
        generator = torch.Generator().manual_seed(seed)
        labels = (torch.rand(count, 3, generator=generator) > 0.3).float()
        return TensorDataset(torch.randn(count, 2, 16, generator=generator), labels)

    def recipe():
        torch.manual_seed(0)
        student, teacher = Net("student", network(4)), Net("teacher", network(8), trained=True)
        taps = {side: Tap(getattr(net.module, layer)) for side, net in (("student", student), ("target", teacher))}
        objective = Truth(nn.BCEWithLogitsLoss()) + Match(teacher, copy.deepcopy(loss), **taps)
        data = TorchData(samples(16, 0), samples(6, 1), samples(6, 2), classes=("a", "b", "c"), task="multilabel")
        return Recipe(data=data, schedule=[Stage({student: objective}, Training(epochs=20, batch_size=8))])

    assert not kdkit.check(recipe()).problems
    first, *_, last = kdkit.run(recipe, device="cpu").history["student"]
    assert last["terms"]["teacher/led"] < first["terms"]["teacher/led"]
