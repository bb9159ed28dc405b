"""How answers are kept: as they are to the bit, or in fewer bytes in a way that is the same each time."""

import pytest
import torch

from kdkit import CacheSettings, RecipeError, TeacherOutput
from kdkit.errors import CacheError
from kdkit.teachers.cache import Codec
from kdkit.teachers.cache.codec import apart

CPU = torch.device("cpu")


def answer(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    output = torch.randn(4, 6, dtype=torch.float64)
    return TeacherOutput(output.to(dtype), (torch.randn(4, 3, 5, dtype=torch.float64).to(dtype).movedim(-1, 1),))


def again(form, given):
    return form.answer(form.packed(given), CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_by_default_answers_are_kept_to_the_bit(dtype):
    given = answer(dtype)
    form = Codec(CacheSettings(), given)
    back = again(form, given)
    assert torch.equal(back.output, given.output)
    assert torch.equal(back.features[0], given.features[0])
    assert back.output.dtype == dtype
    assert [part.shape for part in form.parts] == [(6,), (5, 3)]


def test_half_precision_takes_half_the_bytes_and_is_given_as_before():
    given = answer()
    form = Codec(CacheSettings(dtype="fp16"), given)
    assert [part.bytes for part in form.parts] == [12, 30]
    back = again(form, given)
    assert back.output.dtype == torch.float32
    assert torch.allclose(back.output, given.output, rtol=1e-3, atol=1e-3)
    assert not torch.equal(back.output, given.output)
    assert torch.equal(again(form, back).output, back.output)


def test_the_largest_outputs_keep_their_probabilities_and_the_others_share_the_rest():
    given = answer()
    form = Codec(CacheSettings(top=2), given)
    back = again(form, given)
    exact, kept = given.output.softmax(1), back.output.softmax(1)
    largest = exact.topk(2).indices
    assert torch.allclose(kept.gather(1, largest), exact.gather(1, largest), atol=1e-6)
    others = kept.scatter(1, largest, 0.0)
    assert torch.allclose(others.sum(1), 1 - exact.gather(1, largest).sum(1), atol=1e-6)
    for row, chosen in zip(others, largest.tolist(), strict=True):
        rest = [float(row[index]) for index in range(6) if index not in chosen]
        assert max(rest) - min(rest) < 1e-6
    assert torch.equal(back.features[0], given.features[0])


def test_all_outputs_are_kept_where_the_largest_are_all():
    given = answer()
    assert torch.equal(again(Codec(CacheSettings(top=6), given), given).output, given.output)


def test_the_largest_are_of_one_row_of_classes():
    with pytest.raises(CacheError, match="top is of outputs"):
        Codec(CacheSettings(top=1), TeacherOutput(torch.zeros(4, 2, 3)))


def test_two_answers_are_as_far_apart_as_their_worst_figure():
    one = torch.tensor([[1.0, -4.0], [2.0, 0.0]])
    assert apart([(one, one)]).tolist() == [0, 0]
    assert apart([(one, one + torch.tensor([[0.0, 0.0], [0.4, 0.0]]))]).tolist() == pytest.approx([0, 0.1])
    odd = torch.tensor([[float("inf"), float("nan")], [1.0, float("nan")]])
    assert apart([(odd, odd)]).tolist() == [0, 0]
    assert apart([(odd, odd.nan_to_num())])[1] == float("inf")


def test_nearly_equal_outputs_may_change_places_in_an_audit():
    given = answer()
    given.output[0, :2] = torch.tensor([3.0, 3.0 - 1e-7])
    form = Codec(CacheSettings(top=1), given)
    kept = form.packed(given)
    other = TeacherOutput(given.output.clone(), given.features)
    other.output[0, :2] = torch.tensor([3.0 - 1e-7, 3.0])
    assert apart(form.compared(other, kept)).max() < 1e-6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "fp8"}, "'fp16', 'fp32'"),
        ({"top": 0}, "at least 1"),
        ({"top": True}, "at least 1"),
        ({"audit": -0.1}, "from 0 to 1"),
        ({"audit": float("nan")}, "from 0 to 1"),
    ],
)
def test_settings_out_of_range_are_refused(options, words):
    with pytest.raises(RecipeError, match=words):
        CacheSettings(**options)


def test_only_what_moves_figures_is_in_the_form():
    assert CacheSettings(audit=0.5).form is None
    assert CacheSettings(dtype="fp16").form != CacheSettings(top=3).form
