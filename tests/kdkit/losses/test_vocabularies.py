"""Outputs over different vocabularies: sorted probabilities, in a loss and in a run."""

import math

import pytest
import torch
from torch import nn
from torch.func import vmap
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Inputs, Match, Net, Recipe, RecipeError, Stage, Teachers, TorchData, Training, Truth
from kdkit.losses import ULD, Masked, PerPosition, PerTeacher, PerToken, SoftTargets, allows_any_classes


def logits(student=6, target=4, dtype=torch.float64):
    random = torch.Generator().manual_seed(5)
    return tuple(
        (torch.randn(3, count, generator=random, dtype=torch.float64) * 2).to(dtype) for count in (student, target)
    )


def sorted_softmax(row):
    exponentials = [math.exp(number) for number in row]
    return sorted((number / sum(exponentials) for number in exponentials), reverse=True)


def distance(student, target):
    total = 0.0
    for mine, theirs in zip(student.tolist(), target.tolist(), strict=True):
        p, q = sorted_softmax(theirs), sorted_softmax(mine)
        for index in range(max(len(p), len(q))):
            first, second = (side[index] if index < len(side) else 0.0 for side in (p, q))
            total += abs(first - second)
    return total / len(student)


@pytest.mark.parametrize("sizes", [(6, 4), (4, 6), (5, 5)])
def test_a_loss_and_its_gradient_equal_the_formula(sizes):
    student, target = logits(*sizes)
    leaf = student.clone().requires_grad_()
    value = ULD()(leaf, target)
    assert value.item() == pytest.approx(distance(student, target), rel=1e-10)
    assert ULD()(*logits(*sizes, dtype=torch.float32)).item() == pytest.approx(value.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, leaf)
    for position in [(0, 0), (1, 3), (2, 2)]:
        values = []
        for sign in (1, -1):
            moved = student.clone()
            moved[position] += sign * 1e-6
            values.append(distance(moved, target))
        assert gradient[position].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-8)


def test_the_distance_is_that_of_two_lists_by_hand():
    student, target = torch.tensor([[0.1, 0.2, 0.7]]).log(), torch.tensor([[0.6, 0.4]]).log()
    # sorted: (0.7, 0.2, 0.1) and (0.6, 0.4, 0)
    assert ULD()(student, target).item() == pytest.approx(0.1 + 0.2 + 0.1, rel=1e-5)


def test_the_order_and_the_names_of_classes_do_not_matter():
    student, _ = logits()
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    assert ULD()(student[:, order], student) < 1e-12
    padded = torch.cat([student, torch.full((3, 2), -math.inf)], 1)  # classes of probability 0
    assert ULD()(student, padded) < 1e-12


def test_temperature_and_reduction_scale_the_distance():
    student, target = logits()
    plain = ULD()(student / 2, target / 2)
    torch.testing.assert_close(ULD(temperature=2.0)(student, target), plain)
    torch.testing.assert_close(ULD(temperature=2.0, reduction="mean")(student, target), plain / 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-8, 1.0, 1e4])
def test_rows_of_any_scale_give_finite_values_and_gradients(dtype, scale):
    student, target = (side.sign().to(dtype) for side in logits())
    for other in (scale, 1e4, 0.0):
        leaf = (student * scale).to(dtype).requires_grad_()
        value = ULD()(leaf, (target * other).to(dtype))
        value.backward()
        assert value.isfinite()
        assert leaf.grad.isfinite().all()


def test_the_loss_of_each_sample_can_be_mapped():
    student, target = logits()
    values = vmap(lambda mine, theirs: ULD()(mine[None], theirs[None]))(student, target)
    torch.testing.assert_close(values.mean(), ULD()(student, target))


def test_outputs_of_other_rows_are_refused_with_a_remedy():
    for sides in [((2, 4, 5), (2, 3, 5)), ((2, 5, 4, 4), (2, 5, 4, 4)), ((2, 5), (2, 3, 5))]:
        with pytest.raises(RecipeError, match=r"ULD compares outputs .* with as many rows; got .* PerToken\(loss\)"):
            ULD()(*(torch.zeros(shape) for shape in sides))
    with pytest.raises(RecipeError, match="reduction must be"):
        ULD(reduction="sum")
    with pytest.raises(RecipeError, match="a temperature must be"):
        ULD(temperature=0.0)


def test_wrappers_pass_on_that_classes_may_differ():
    for loss in (ULD(), PerToken(ULD()), PerPosition(ULD()), PerTeacher(ULD())):
        assert allows_any_classes(loss)
    for loss in (SoftTargets(), PerToken(SoftTargets()), PerTeacher(SoftTargets())):
        assert not allows_any_classes(loss)


class Texts(nn.Module):
    """Outputs (batch, tokens, vocabulary) for tokens below 7."""

    def __init__(self, vocabulary):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, vocabulary)

    def forward(self, tokens):
        return self.head(self.embed(tokens))


def texts(count, seed):
    tokens = torch.randint(7, (count, 5), generator=torch.Generator().manual_seed(seed))
    labels = tokens.clone()
    labels[:, 0] = -100
    return TensorDataset(tokens, labels)


@pytest.mark.parametrize("teachers", [1, 2])
def test_a_student_learns_from_teachers_of_other_vocabularies(teachers, tmp_path):
    nets = [Net(f"teacher{size}", Texts(size), trained=True) for size in (9, 12)[:teachers]]
    student = Net("student", Texts(7))
    term = Match(nets[0], ULD()) if teachers == 1 else Match(Teachers(*nets), PerTeacher(ULD()))
    classes = [str(index) for index in range(7)]
    data = TorchData(texts(12, 0), texts(4, 1), texts(4, 2), classes=classes, ignore_index=-100)
    objective = {student: Truth(nn.CrossEntropyLoss()) + term}
    recipe = Recipe(data=data, schedule=[Stage(objective, Training(epochs=1, batch_size=4))])
    result = kdkit.run(recipe, device="cpu", out=tmp_path / "run")
    assert result is not None


class TeacherTexts(Texts):
    """A teacher with tokens of its own, 8 for each text."""

    def forward(self, teacher_tokens):
        return super().forward(teacher_tokens)


def test_a_student_learns_from_a_teacher_of_another_tokenizer(tmp_path):
    rows = [
        {"tokens": tokens, "answer": labels >= 0, "teacher_tokens": torch.randint(7, (8,)), "teacher_answer": answer}
        for tokens, labels in texts(8, 0)
        for answer in [torch.arange(8) >= 4]
    ]
    split = [(row, row["tokens"].masked_fill(~row["answer"], -100)) for row in rows]
    teacher = Net("teacher", TeacherTexts(9), view=Inputs(only=("teacher_tokens",)), channels_last=True, trained=True)
    student = Net("student", Texts(7), view=Inputs(only=("tokens",)))
    match = Match(teacher, Masked(ULD(), "answer", target_mask="teacher_answer"))
    data = TorchData(split, split, classes=[str(index) for index in range(7)], ignore_index=-100)
    stage = Stage({student: Truth(nn.CrossEntropyLoss()) + match}, Training(epochs=1, batch_size=4))
    before = student.module.head.weight.clone()
    kdkit.run(Recipe(data=data, schedule=[stage]), device="cpu", out=tmp_path / "run")
    assert not torch.equal(student.module.head.weight, before)


def test_a_loss_on_the_same_classes_still_refuses_a_teacher_of_other_ones():
    teacher, student = Net("teacher", nn.Linear(3, 4), trained=True), Net("student", nn.Linear(3, 2))
    inputs = TensorDataset(torch.randn(8, 3), torch.arange(8) % 2)
    data = TorchData(inputs, inputs, inputs, classes=["a", "b"])
    objective = {student: Truth(nn.CrossEntropyLoss()) + Match(teacher, SoftTargets())}
    (problem,) = kdkit.check(Recipe(data=data, schedule=[Stage(objective, Training(epochs=1))])).problems
    assert "net 'teacher' has outputs of shape (batch, 4), but the data's 2 classes need (batch, 2)" in problem
