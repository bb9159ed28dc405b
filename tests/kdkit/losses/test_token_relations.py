"""MiniLM: its relations by loops, heads, masks of padded texts, and what it refuses."""

import math

import pytest
import torch

from kdkit import RecipeError
from kdkit.losses import MiniLM


def texts(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relation(text, heads):
    """Return the relations of one text (channels, tokens) as nested lists, by the formula of the paper."""
    channels, tokens = text.shape
    size = channels // heads
    rows = []
    for head in range(heads):
        vectors = text[head * size : (head + 1) * size]
        for query in range(tokens):
            scores = [math.exp((vectors[:, query] @ vectors[:, key]).item() / math.sqrt(size)) for key in range(tokens)]
            rows.append([score / sum(scores) for score in scores])
    return rows


def divergence(student, target, heads):
    """Return the mean over rows of KL(target ‖ student)."""
    pairs = list(zip(relation(target, heads), relation(student, heads), strict=True))
    return sum(p * math.log(p / q) for ps, qs in pairs for p, q in zip(ps, qs, strict=True)) / len(pairs)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_each_head_of_each_text_is_compared_by_a_softmax_of_scaled_inner_products(heads):
    student, target = texts(3, 4, 5), texts(3, 8, 5, seed=1)
    expected = sum(divergence(*pair, heads) for pair in zip(student, target, strict=True)) / 3
    assert MiniLM(heads=heads)(student, target).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("mask", ["attention_mask", lambda inputs: inputs["attention_mask"]])
def test_padded_texts_have_the_value_and_gradient_of_texts_without_padding(mask):
    lengths = [5, 2, 3]
    student, target = texts(3, 4, 5).requires_grad_(), texts(3, 8, 5, seed=1)
    attention_mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).long()
    value = MiniLM(heads=2, mask=mask)(student, target, inputs={"attention_mask": attention_mask})
    alone = [
        MiniLM(heads=2)(student[[text], :, :length], target[[text], :, :length]) for text, length in enumerate(lengths)
    ]
    expected = torch.stack(alone).mean()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (value, expected)))


def test_a_text_of_padding_alone_adds_nothing():
    student, target = texts(2, 4, 3).requires_grad_(), texts(2, 4, 3, seed=1)
    mask = torch.tensor([[1, 1, 1], [0, 0, 0]])
    value = MiniLM(mask="mask")(student, target, inputs={"mask": mask})
    torch.testing.assert_close(value, MiniLM()(student[:1], target[:1]) / 2)
    (gradient,) = torch.autograd.grad(value, student)
    assert gradient.isfinite().all()
    assert not gradient[1].any()


def test_queries_keys_and_values_are_summed():
    students, targets = (tuple(texts(2, 4, 3, seed=seed + tap) for tap in range(3)) for seed in (0, 3))
    expected = sum(MiniLM()(*pair) for pair in zip(students, targets, strict=True))
    torch.testing.assert_close(MiniLM()(students, targets), expected)
    with pytest.raises(RecipeError, match="compares taps in pairs"):
        MiniLM()(students, targets[:2])


def test_inputs_are_taken_for_a_mask_only():
    assert not MiniLM().extra_kwargs
    assert MiniLM(mask="mask").extra_kwargs == {"inputs"}


@pytest.mark.parametrize(
    ("loss", "inputs", "match"),
    [
        (MiniLM(heads=3), None, r"MiniLM\(heads=3\) splits channels evenly; got features of 4 channels"),
        (MiniLM(mask="mask"), {"words": 1}, "the inputs have no mask 'mask'; got 'words'"),
        (MiniLM(mask="mask"), {"mask": torch.ones(2, 4)}, r"of the tokens of its mask \(2, 4\); got \(2, 4, 3\)"),
    ],
)
def test_heads_and_masks_that_do_not_fit_are_refused(loss, inputs, match):
    with pytest.raises(RecipeError, match=match):
        loss(texts(2, 4, 3), texts(2, 4, 3), inputs=inputs)
