"""Outputs are stored exactly by default, or in fewer bytes and then always rounded in the same manner."""

import pytest
import torch

from kdkit import CacheSettings, RecipeError, TeacherOutput
from kdkit.errors import CacheError
from kdkit.nets.taps import is_left_out, left_out
from kdkit.teachers.cache import Codec
from kdkit.teachers.cache.codec import relative_distance

CPU = torch.device("cpu")


def teacher_output(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    output = torch.randn(4, 6, dtype=torch.float64)
    feature = torch.randn(4, 3, 5, dtype=torch.float64).to(dtype).movedim(-1, 1)  # (4, 5, 3), not contiguous
    return TeacherOutput(output.to(dtype), (feature,))


def round_trip(codec, output):
    return codec.decode(codec.encode(output), CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_by_default_outputs_are_stored_to_the_bit(dtype):
    original = teacher_output(dtype)
    codec = Codec(CacheSettings(), original)
    decoded = round_trip(codec, original)
    assert torch.equal(decoded.output, original.output)
    assert torch.equal(decoded.features[0], original.features[0])
    assert decoded.output.dtype == dtype
    assert [part.shape for part in codec.parts] == [(6,), (5, 3)]


def test_half_precision_takes_half_the_bytes_and_is_decoded_to_the_original_dtype():
    original = teacher_output()
    codec = Codec(CacheSettings(dtype="fp16"), original)
    assert [part.bytes for part in codec.parts] == [12, 30]
    decoded = round_trip(codec, original)
    assert decoded.output.dtype == torch.float32
    assert torch.allclose(decoded.output, original.output, rtol=1e-3, atol=1e-3)
    assert not torch.equal(decoded.output, original.output)
    assert torch.equal(round_trip(codec, decoded).output, decoded.output)


def test_the_largest_logits_keep_their_probabilities_and_the_others_share_the_rest():
    original = teacher_output()
    decoded = round_trip(Codec(CacheSettings(top=2), original), original)
    exact, stored = original.output.softmax(1), decoded.output.softmax(1)
    largest = exact.topk(2).indices
    assert torch.allclose(stored.gather(1, largest), exact.gather(1, largest), atol=1e-6)
    others = stored.scatter(1, largest, 0.0)
    assert torch.allclose(others.sum(1), 1 - exact.gather(1, largest).sum(1), atol=1e-6)
    for row, chosen in zip(others, largest.tolist(), strict=True):
        rest = [float(row[index]) for index in range(6) if index not in chosen]
        assert max(rest) - min(rest) < 1e-6
    assert torch.equal(decoded.features[0], original.features[0])


def test_all_logits_are_stored_if_top_is_the_number_of_classes():
    original = teacher_output()
    assert torch.equal(round_trip(Codec(CacheSettings(top=6), original), original).output, original.output)


def test_the_largest_logits_of_each_token_are_stored():
    tokens = torch.randn(4, 3, 6)  # (batch, tokens, classes), as models of transformers return them
    decoded = round_trip(Codec(CacheSettings(top=2), original := TeacherOutput(tokens.movedim(-1, 1))), original).output
    by_row = TeacherOutput(tokens.flatten(0, 1))
    expected = round_trip(Codec(CacheSettings(top=2), by_row), by_row).output
    assert torch.equal(decoded.movedim(1, -1).flatten(0, 1), expected)
    codec = Codec(CacheSettings(top=2), original)
    assert [part.shape for part in codec.parts] == [(3, 3), (2, 3)]
    assert relative_distance(codec.comparable(original, codec.encode(original))).max() == 0


@pytest.mark.parametrize("settings", [CacheSettings(), CacheSettings(dtype="fp16", top=2)])
def test_outputs_that_a_head_tap_leaves_out_are_not_stored(settings):
    original = TeacherOutput(left_out(torch.zeros((), dtype=torch.bfloat16), (4, 3, 6)), (torch.randn(4, 5, 3),))
    codec = Codec(settings, original)
    assert [(part.name, part.shape) for part in codec.parts] == [("feature-0", (5, 3))]
    decoded = round_trip(codec, original)
    assert is_left_out(decoded.output)
    assert (decoded.output.shape, decoded.output.dtype) == ((4, 3, 6), torch.bfloat16)
    torch.testing.assert_close(decoded.features, original.features, rtol=1e-3, atol=1e-3)
    assert relative_distance(codec.comparable(original, codec.encode(original))).max() == 0


@pytest.mark.parametrize("output", [torch.zeros(4), torch.zeros(4, 2, dtype=torch.int64)])
def test_top_needs_logits_by_class(output):
    with pytest.raises(
        CacheError, match=r"top needs float outputs of shape \(batch, classes, ...\), but it returns \(4,"
    ):
        Codec(CacheSettings(top=1), TeacherOutput(output))


def test_the_distance_of_two_outputs_is_that_of_their_worst_value():
    values = torch.tensor([[1.0, -4.0], [2.0, 0.0]])
    assert relative_distance([(values, values)]).tolist() == [0, 0]
    changed = values + torch.tensor([[0.0, 0.0], [0.4, 0.0]])
    assert relative_distance([(values, changed)]).tolist() == pytest.approx([0, 0.1])
    not_finite = torch.tensor([[float("inf"), float("nan")], [1.0, float("nan")]])
    assert relative_distance([(not_finite, not_finite)]).tolist() == [0, 0]
    assert relative_distance([(not_finite, not_finite.nan_to_num())])[1] == float("inf")


def test_nearly_equal_logits_may_change_places_in_an_audit():
    original = teacher_output()
    original.output[0, :2] = torch.tensor([3.0, 3.0 - 1e-7])
    codec = Codec(CacheSettings(top=1), original)
    parts = codec.encode(original)
    swapped = TeacherOutput(original.output.clone(), original.features)
    swapped.output[0, :2] = torch.tensor([3.0 - 1e-7, 3.0])
    assert relative_distance(codec.comparable(swapped, parts)).max() < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "fp8"}, "dtype must be 'fp16' or 'fp32' or None; got 'fp8'"),
        ({"top": 0}, "at least 1"),
        ({"top": True}, "at least 1"),
        ({"audit": -0.1}, "audit must be a number in"),
        ({"audit": float("nan")}, "audit must be a number in"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        CacheSettings(**options)


def test_only_settings_that_change_losses_are_in_the_form():
    assert CacheSettings(audit=0.5).form is None
    assert CacheSettings(dtype="fp16").form != CacheSettings(top=3).form
