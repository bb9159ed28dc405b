"""PerPosition and Masked on tensors: the positions with a label, and the tokens that are no padding."""

import math

import pytest
import torch
from torch import nn

from kdkit.errors import RecipeError
from kdkit.losses import DKD, ULD, Masked, PerPosition, PerToken, ReverseKL, SoftTargets, allows_any_classes
from tests.helpers.positions import as_rows


def test_per_position_applies_any_loss_to_tensors():
    student, target = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 3, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    labels[0, 0] = -100
    rows, kept = as_rows(student, labels, -100)
    targets, _ = as_rows(target, labels, -100)
    value = PerPosition(DKD())(student, target, labels=labels)
    torch.testing.assert_close(value, DKD()(rows, targets, labels=kept))
    torch.testing.assert_close(PerPosition(SoftTargets())(student, target, labels=labels), SoftTargets()(rows, targets))
    assert PerPosition(SoftTargets())(student, target, labels=torch.full_like(labels, -100)) == 0
    with pytest.raises(RecipeError, match=r"a label for every position of outputs \(2, 3, 4, 4\); got labels \(2, 4\)"):
        PerPosition(DKD())(student, target, labels=labels[:, 0])


def attention_maps(heads=2, *, seed=0):
    """Attention maps of texts of 2 and 4 tokens, padded to 4, and the mask of their tokens."""
    scores = torch.randn(2, heads, 4, 4, generator=torch.Generator().manual_seed(seed))
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    return scores.masked_fill(mask[:, None, None] == 0, -1e4).softmax(-1), mask


@pytest.mark.parametrize("shape", [lambda mask: mask, lambda mask: mask[:, :, None] * mask[:, None, :]])
def test_masked_attention_maps_are_compared_at_pairs_of_tokens(shape):
    (student, mask), (target, _) = attention_maps(), attention_maps(seed=1)
    loss = Masked(nn.MSELoss(), mask=lambda inputs: shape(inputs["attention_mask"]))
    value = loss(student, target, inputs={"attention_mask": mask})
    rows = [torch.cat([maps[0, :, :2, :2].flatten(), maps[1].flatten()]) for maps in (student, target)]
    torch.testing.assert_close(value, nn.functional.mse_loss(*rows))
    # What the padding attends to does not count, whatever it is.
    student[0, :, 2:] = 0.25
    torch.testing.assert_close(loss(student, target, inputs={"attention_mask": mask}), value)


def test_means_over_heads_compare_maps_of_different_numbers_of_heads():
    (student, mask), (target, _) = attention_maps(), attention_maps(4, seed=1)

    def of_means(student, target):
        return nn.functional.mse_loss(student.mean(1), target.mean(1))

    value = Masked(of_means)(student, target, inputs={"attention_mask": mask})
    means = [maps.mean(1, keepdim=True) for maps in (student, target)]
    torch.testing.assert_close(value, Masked(nn.MSELoss())(*means, inputs={"attention_mask": mask}))


def test_texts_of_two_tokenizers_are_compared_from_their_first_tokens_up_to_the_shorter_one():
    generator = torch.Generator().manual_seed(0)
    student, target = (torch.randn(shape, generator=generator) for shape in ((3, 5, 6), (3, 4, 8)))
    masks = {
        "ours": torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]),
        "theirs": torch.tensor([[0, 0, 0, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]]),
    }
    value = Masked(ULD(), "ours", target_mask="theirs")(student, target, inputs=masks)
    # two tokens of the first text, the shorter one of the target, and two of the second one
    rows = torch.stack([student[0, :, 2], student[0, :, 3], student[1, :, 1], student[1, :, 2]])
    target_rows = torch.stack([target[0, :, 3], target[0, :, 4], target[1, :, 0], target[1, :, 1]])
    torch.testing.assert_close(value, ULD()(rows, target_rows))
    assert allows_any_classes(Masked(ULD()))
    for wrong in (masks["ours"][0], masks["ours"][:2]):
        with pytest.raises(RecipeError, match=r"pairs the tokens of texts by masks \(batch, tokens\) of one batch"):
            Masked(ULD(), "ours", target_mask="theirs")(student, target, inputs=masks | {"theirs": wrong})
    with pytest.raises(RecipeError, match=r"at the positions of its mask \(3, 6\); got \(3, 4, 8\)"):
        Masked(ULD(), "ours")(student, target, inputs=masks)
    with pytest.raises(RecipeError, match=r"got \(3, 6, 5\), .* pass Tap\(..., channels_last=True\)"):
        Masked(ULD(), "ours")(student.mT, target, inputs=masks)


def test_a_mask_of_samples_selects_those_of_a_teacher():
    outputs, selected = torch.randn(2, 6, 3), torch.tensor([1, 0, 0, 1, 1, 0])
    value = Masked(SoftTargets(), mask=lambda inputs: inputs)(*outputs, inputs=selected)
    torch.testing.assert_close(value, SoftTargets()(*outputs[:, selected > 0]))


@pytest.mark.parametrize("shape", [lambda side: side, lambda side: side[:, None]])
def test_a_mask_of_samples_selects_numbers_such_as_values_of_states(shape):
    student, target, selected = torch.randn(6), torch.randn(6), torch.tensor([1, 0, 0, 1, 1, 0])
    value = Masked(nn.MSELoss(), mask=lambda inputs: inputs)(student, shape(target), inputs=selected)
    torch.testing.assert_close(value, nn.functional.mse_loss(student[selected > 0], target[selected > 0]))


def test_a_mask_selects_numbers_of_padded_sequences():
    student, target, mask = torch.randn(3, 5), torch.randn(3, 5), torch.arange(5) < torch.tensor([[2], [5], [1]])
    value = Masked(nn.MSELoss())(student, target[:, None], inputs={"attention_mask": mask})
    torch.testing.assert_close(value, nn.functional.mse_loss(student[mask], target[mask]))
    with pytest.raises(RecipeError, match=r"at the positions of its mask \(3, 5\); got \(3, 4\)"):
        Masked(nn.MSELoss())(student[:, :4], target[:, :4], inputs={"attention_mask": mask})


@pytest.mark.parametrize(
    ("number", "precision"), [(-math.inf, torch.float32), (300, torch.float16)], ids=["masked", "fp16"]
)
def test_no_selected_position_gives_zero_even_if_outputs_are_masked_or_their_sum_overflows(number, precision):
    outputs = torch.full((2, 64, 8), number, dtype=precision)  # the sum of 300s is beyond the range of fp16
    outputs[:, 0] = 1
    labels, mask = torch.full((2, 8), -100), torch.zeros(2, 8)
    leaf = outputs.clone().requires_grad_()
    values = (
        PerPosition(ReverseKL())(leaf, outputs, labels=labels),
        PerToken(ReverseKL())(leaf.mT, outputs.mT, labels=labels),
        Masked(ReverseKL())(leaf, outputs, inputs={"attention_mask": mask}),
    )
    torch.stack(values).sum().backward()
    assert [value.item() for value in values] == [0, 0, 0]
    assert not leaf.grad.any()
