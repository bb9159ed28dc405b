"""Losses between two features: any number of dimensions, different shapes, and invalid options."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from kdkit import RecipeError
from kdkit.losses import (
    CWD,
    FT,
    HCL,
    MGD,
    NST,
    PAD,
    PKD,
    VID,
    AttentionTransfer,
    BuildableLoss,
    DistilHubert,
    Hint,
    PairwiseAffinity,
    PatientKD,
    SquareHead,
)
from kdkit.losses.projectors import MLP, Bottleneck, Projector, Regressor
from tests.helpers.loss_reference import assert_equals_reference
from tests.helpers.losses import build_loss

SHAPES = [((4, 3), (4, 5)), ((4, 3, 8), (4, 5, 4)), ((4, 3, 4, 6), (4, 5, 2, 3)), ((4, 3, 2, 2, 2), (4, 5, 2, 2, 2))]


def check_gradients(loss, student, target):
    """Check that a loss gives a finite scalar, and finite gradients to the student and to all of its weights."""
    student = student.clone().requires_grad_()
    value = loss(student, target)
    value.backward()
    weights = list(loss.parameters()) if hasattr(loss, "parameters") else []
    assert value.ndim == 0
    assert value.isfinite()
    assert student.grad.isfinite().all()
    assert student.grad.any()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in weights)


@pytest.mark.parametrize("make", [Hint, SquareHead, PKD, VID, MGD])
@pytest.mark.parametrize("shapes", SHAPES)
def test_features_of_different_channels_and_positions_give_gradients(make, shapes):
    student, target = (torch.randn(shape) for shape in shapes)
    check_gradients(build_loss(make(), student, target), student, target)


@pytest.mark.parametrize("make", [AttentionTransfer, NST])
@pytest.mark.parametrize("shapes", SHAPES[1:])
def test_channels_and_positions_may_differ_without_any_weights(make, shapes):
    student, target = (torch.randn(shape) for shape in shapes)
    check_gradients(make(), student, target)


@pytest.mark.parametrize("make", [AttentionTransfer, NST, VID])
def test_tokens_are_compared_to_a_map_of_the_same_aspect_ratio(make):
    tokens, target = torch.randn(2, 5, 24), torch.randn(2, 5, 8, 12)
    map_features = tokens.reshape(2, 5, 4, 6)
    torch.manual_seed(0)
    loss = build_loss(make(), tokens, target) if make is VID else make()
    torch.testing.assert_close(loss(tokens, target), loss(map_features, target))


@pytest.mark.parametrize("make", [AttentionTransfer, NST])
def test_tokens_that_do_not_form_a_map_are_refused(make):
    with pytest.raises(RecipeError, match="leave extra tokens"):
        make()(torch.randn(2, 5, 25), torch.randn(2, 5, 8, 12))


@pytest.mark.parametrize("loss", [AttentionTransfer(), NST(), CWD()])
def test_vectors_are_refused_by_losses_over_positions(loss):
    with pytest.raises(RecipeError, match="tap a layer before it is pooled"):
        loss(torch.randn(2, 5), torch.randn(2, 5))


@pytest.mark.parametrize("loss", [PatientKD(), HCL()])
def test_a_loss_without_a_projector_suggests_hint(loss):
    with pytest.raises(RecipeError, match=r"use Hint\(\), which has a linear projector"):
        loss(torch.randn(2, 5, 4), torch.randn(2, 6, 4))


@pytest.mark.parametrize("make", [SquareHead, PKD, CWD])
def test_never_refuses_shapes_that_differ_and_suggests_a_projector(make):
    with pytest.raises(RecipeError, match=rf"cannot be compared to .*use {make.__name__}\(projector='auto'\)"):
        build_loss(make(projector="never"), *sides((3, 4), (5, 4)))


def sides(student, target):
    return torch.randn(2, *student), torch.randn(2, *target)


@pytest.mark.parametrize(
    ("kind", "projector_class"), [("linear", Projector), ("conv", Regressor), ("mlp", MLP), ("bottleneck", Bottleneck)]
)
@pytest.mark.parametrize("shapes", SHAPES)
def test_a_hint_takes_every_kind_of_projector(kind, projector_class, shapes):
    student, target = (torch.randn(shape) for shape in shapes)
    loss = build_loss(Hint(kind=kind), student, target)
    assert isinstance(loss.projector, projector_class)
    check_gradients(loss, student, target)


def test_a_misspelt_kind_of_projector_gets_a_suggestion():
    with pytest.raises(RecipeError, match="did you mean 'linear'"):
        Hint(kind="liner")


def test_several_taps_are_refused_by_a_loss_on_one():
    pair = (torch.randn(2, 3), torch.randn(2, 4))
    with pytest.raises(RecipeError, match="Hint takes one tap on each side; got 2: write a term for each pair"):
        build_loss(Hint(), pair, pair)


@pytest.mark.parametrize("make", [AttentionTransfer, CWD])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_powers_and_temperatures_are_above_zero(make, value):
    with pytest.raises(RecipeError, match="a finite number above 0"):
        make(**{"p" if make is AttentionTransfer else "temperature": value})


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (VID, {"hidden": 0}, "hidden must be an integer of at least 1"),
        (VID, {"variance": 1e-6}, "above eps"),
        (MGD, {"mask": "row"}, "mask must be 'channel' or 'position'"),
        (MGD, {"masked": 1.0}, "masked must be a number in"),
        (PAD, {"eps": 0.0}, "eps must be"),
        (MGD, {"alpha": -1}, "alpha must be a finite number above 0"),
        (MGD, {"reduction": "sum"}, "reduction must be"),
        (NST, {"degree": 0}, "degree must be an integer"),
        (NST, {"offset": -1.0}, "offset must be a finite number"),
        (PKD, {"eps": 0}, "eps must be a finite number above 0"),
        (HCL, {"grids": (1, 2)}, "grids are in decreasing order"),
        (HCL, {"grids": (0,)}, "a grid must be an integer"),
    ],
)
def test_invalid_options_are_refused(make, options, message):
    with pytest.raises(RecipeError, match=message):
        make(**options)


def test_attention_is_summed_over_positions_for_batchmean():
    student, target = torch.randn(3, 2, 7), torch.randn(3, 4, 7)
    mean, summed = (AttentionTransfer(reduction=reduction)(student, target) for reduction in ("mean", "batchmean"))
    torch.testing.assert_close(summed, mean * 7)


def test_attention_of_an_odd_power_ignores_signs():
    features = torch.randn(3, 2, 7)
    assert AttentionTransfer(p=3)(-features, features).item() == pytest.approx(0, abs=1e-12)


def test_cwd_without_t_squared_is_smaller_by_that_factor():
    student, target = torch.randn(3, 2, 7), torch.randn(3, 2, 7)
    torch.testing.assert_close(
        CWD(temperature=3)(student, target), 9 * CWD(temperature=3, t_squared=False)(student, target)
    )


def test_pearson_correlation_ignores_scale_and_offset():
    features = torch.randn(4, 3, 5, dtype=torch.float64)
    assert PKD()(7 * features + 2, features).item() == pytest.approx(0, abs=1e-9)


def test_pearson_correlation_of_a_single_value_has_no_gradient():
    student = torch.randn(1, 3, requires_grad=True)
    PKD()(student, torch.randn(1, 3)).backward()
    assert student.grad.abs().sum() == 0


@pytest.mark.parametrize("loss", [AttentionTransfer(p=1), NST(degree=1), PatientKD()])
def test_features_that_are_all_zero_give_no_huge_gradient(loss):
    student = torch.zeros(2, 3, 4, requires_grad=True)
    loss(student, torch.randn(2, 3, 4)).backward()
    assert student.grad.abs().max() < 100


SIZES = st.integers(1, 6)
POSITIONS = st.integers(0, 3).flatmap(lambda count: st.tuples(*[st.lists(SIZES, min_size=count, max_size=count)] * 2))


@settings(max_examples=40, deadline=None)
@given(
    POSITIONS,
    SIZES,
    SIZES,
    st.integers(1, 3),
    st.sampled_from([Hint, SquareHead, PKD, VID, MGD, AttentionTransfer, NST]),
)
def test_features_of_any_shapes_give_a_finite_loss(positions, student_channels, target_channels, batch, make):
    student = torch.randn(batch, student_channels, *positions[0], requires_grad=True)
    target = torch.randn(batch, target_channels, *positions[1])
    loss = make()
    assume(isinstance(loss, BuildableLoss) or student.ndim > 2)
    value = (build_loss(loss, student, target) if isinstance(loss, BuildableLoss) else loss)(student, target)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_distil_hubert_is_the_sum_of_an_absolute_error_and_the_log_sigmoid_of_cosines_as_in_s3prl():
    student, target = torch.randn(3, 5, 7), torch.randn(3, 4, 7)
    loss = build_loss(DistilHubert(cosine_weight=2.0), student, target)
    predicted, hidden = loss.projector(student).mT, target.mT  # (batch, frames, channels)
    similarity = -F.logsigmoid(F.cosine_similarity(predicted, hidden, dim=-1))
    expected = (predicted - hidden).abs().mean() + 2 * similarity.mean()
    torch.testing.assert_close(loss(student, target), expected)
    same = torch.randn(2, 4, requires_grad=True)
    least = DistilHubert(projector="never")(same, same.detach())
    least.backward()
    assert least.item() == pytest.approx(math.log(1 + math.exp(-1)))
    torch.testing.assert_close(same.grad, torch.zeros(2, 4), atol=1e-7, rtol=0)


def test_squared_error_relative_to_an_all_zero_teacher_is_finite():
    assert SquareHead()(torch.zeros(2, 3), torch.zeros(2, 3)).item() == 0


def test_nst_of_degree_one_compares_mean_patterns():
    student, target = torch.randn(2, 3, 6), torch.randn(2, 4, 6)
    means = [torch.nn.functional.normalize(side, dim=2).mean(1) for side in (student, target)]
    torch.testing.assert_close(NST(degree=1)(student, target), (means[0] - means[1]).square().sum(1).mean())


@pytest.mark.parametrize("variance", [1e-3, 2.0, 5e3])
def test_vid_starts_at_its_variance(variance):
    student = torch.zeros(2, 3, 4)
    loss = build_loss(VID(variance=variance), student, student)
    assert loss(student, student).item() == pytest.approx(0.5 * math.log(variance), rel=1e-3)


def test_mgd_masks_a_share_that_is_drawn_from_torchs_random_numbers():
    features = torch.ones(200, 50, 2)
    masks = []
    for _ in range(2):
        torch.manual_seed(3)
        masks.append(MGD(masked=0.3).draw_mask(features))
    assert torch.equal(*masks)
    assert masks[0].shape == (200, 50, 1)
    assert masks[0].mean().item() == pytest.approx(0.7, abs=0.02)
    assert MGD(mask="position").draw_mask(features).shape == (200, 1, 2)


def test_mgd_cannot_mask_the_positions_of_a_vector():
    with pytest.raises(RecipeError, match="needs positions to mask"):
        build_loss(MGD(mask="position"), *sides((3,), (3,)))


def test_mgd_as_a_mean_is_the_sum_over_the_number_of_entries():
    student, target = sides((3, 4), (3, 4))
    loss = build_loss(MGD(), student, target)
    loss.draw_mask = torch.ones_like
    summed = loss(student, target)
    loss.reduction = "mean"
    torch.testing.assert_close(summed, loss(student, target) * 12)


def test_patient_kd_sums_over_layers():
    pairs = [sides((3,), (3,)), sides((4, 2), (4, 2))]
    student, target = zip(*pairs, strict=True)
    torch.testing.assert_close(PatientKD()(student, target), sum(PatientKD()(*pair) for pair in pairs))


def test_patient_kd_as_a_mean_averages_over_layers_and_features_as_the_authors_do():
    student, target = sides((3, 7), (3, 7))  # (batch, layers, features)
    expected = F.mse_loss(F.normalize(student, dim=2), F.normalize(target, dim=2))
    layers = student.unbind(1), target.unbind(1)
    torch.testing.assert_close(PatientKD(reduction="mean")(*layers), expected)
    torch.testing.assert_close(PatientKD()(*layers), expected * 21)


def test_patient_kd_takes_layers_in_pairs():
    with pytest.raises(RecipeError, match="compares taps in pairs"):
        PatientKD()((torch.ones(2, 3),), (torch.ones(2, 3), torch.ones(2, 3)))


# Pair-wise affinity of positions


def affinity_by_pairs(features, patch):
    """Return the cosines between the maxima of the patches of a map (channels, height, width), pair by pair."""
    channels, height, width = features.shape
    rows, columns = max(1, int(height * patch)), max(1, int(width * patch))
    nodes = [
        features[:, row : row + rows, column : column + columns].reshape(channels, -1).amax(1)
        for row in range(0, height, rows)
        for column in range(0, width, columns)
    ]
    return torch.tensor([[float(a @ b / (a.norm() * b.norm())) for b in nodes] for a in nodes], dtype=torch.float64)


@pytest.mark.parametrize(("size", "patch"), [((6, 4), 0.5), ((5, 7), 0.5), ((6, 6), 0.34), ((4, 4), 0.25)])
def test_pairwise_affinity_is_the_mean_squared_difference_of_cosines_of_all_pairs(size, patch):
    student, target = torch.randn(3, 5, *size).double(), torch.randn(3, 8, *size).double()
    differences = [
        (affinity_by_pairs(first, patch) - affinity_by_pairs(second, patch)).square().mean()
        for first, second in zip(student, target, strict=True)
    ]
    assert PairwiseAffinity(patch=patch)(student, target).item() == pytest.approx(float(sum(differences) / 3))


def test_pairwise_affinity_without_patches_compares_all_positions():
    student, target = torch.randn(2, 3, 4).double(), torch.randn(2, 5, 4).double()
    cosines = [F.cosine_similarity(side[:, :, :, None], side[:, :, None], dim=1) for side in (student, target)]
    assert PairwiseAffinity(patch=None)(student, target).item() == pytest.approx(float(F.mse_loss(*cosines)))


def test_pairwise_affinity_does_not_depend_on_the_scale_of_the_features():
    features = torch.randn(2, 3, 6, 6).double()
    assert PairwiseAffinity()(3 * features, features).item() == pytest.approx(0, abs=1e-15)


def test_the_patch_of_pairwise_affinity_is_a_share_of_a_side():
    with pytest.raises(RecipeError, match=r"patch is a share .* in \(0, 0.5\], or None; got 0.75"):
        PairwiseAffinity(patch=0.75)


@pytest.mark.parametrize("p", [0.25, 0.5, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_attention_transfer_has_a_finite_gradient_at_zeros(p, dtype):
    generator = torch.Generator().manual_seed(0)
    student, target = torch.randn(2, 3, 4, 6, generator=generator).relu().to(dtype)
    student[0], student[1, 1] = 0, 0
    student.requires_grad_()
    value = AttentionTransfer(p=p, reduction="batchmean")(student, target)
    value.backward()
    maps = [(side.detach().double().abs() ** p).mean(1).numpy() for side in (student, target)]
    lengths = [np.linalg.norm(side, axis=1, keepdims=True) for side in maps]
    expected, actual = (side / np.where(length, length, 1) for side, length in zip(maps, lengths, strict=True))
    assert value.item() == pytest.approx(((expected - actual) ** 2).sum(1).mean(), rel=1e-4)
    assert student.grad.isfinite().all()
    assert student.grad[2].any()


@pytest.mark.parametrize("loss", [PKD(), PKD(eps=1e-12)], ids=["eps=1e-6", "eps=1e-12"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_channel_of_equal_values_gets_no_gradient_from_pkd(loss, dtype):
    student, target = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    student[:, 1] = 0.7
    student.requires_grad_()
    loss(student, target).backward()
    assert student.grad.isfinite().all()
    assert not student.grad[:, 1].any()
    assert student.grad[:, 0].any()


def test_a_hint_of_large_features_in_fp16_is_computed_in_float32():
    student = torch.full((2, 3), 1e3, dtype=torch.float16, requires_grad=True)
    value = Hint()(student, -student.detach())
    value.backward()
    assert value.item() == 4e6  # beyond the range of fp16
    assert student.grad.isfinite().all()


def test_a_teacher_of_tiny_features_counts_as_zero_in_fp16():
    student, target = torch.ones(2, 3, dtype=torch.float16, requires_grad=True), torch.full((2, 3), 1e-3).half()
    value = SquareHead()(student, target)
    value.backward()
    # relative to a squared norm of 6e-6, the gradient would be beyond the range of fp16
    assert value.item() == pytest.approx(6 * (1 - 1e-3) ** 2, rel=1e-3)
    assert student.grad.isfinite().all()
    assert SquareHead()(student.float(), target.float()).item() == pytest.approx(6 * 0.999**2 / 6e-6, rel=1e-3)


@pytest.mark.parametrize("shape", [(3,), (3, 8), (3, 4, 6)])
@pytest.mark.parametrize("p", [1, 2.5])
def test_ft_is_the_mean_power_of_the_differences_of_unit_vectors(shape, p):
    def reference(student, target):
        student, target = (side.flatten(1) for side in (student, target))
        student, target = (side / side.square().sum(1, keepdim=True).sqrt() for side in (student, target))
        return ((student - target).abs() ** p).sum() / student.numel()

    student, target = sides(shape, shape)
    loss = build_loss(FT(p=p, projector="never"), student, target)
    assert_equals_reference(loss, reference, student, target)
    torch.testing.assert_close(loss(5 * student, target / 7), loss(student, target))


def test_ft_of_rep_distiller_compares_the_attention_maps_of_the_factors():
    student, target = sides((3, 4, 6), (3, 4, 6))
    loss = build_loss(FT(projector="never"), student, target)
    theirs = [F.normalize(side.square().mean(1).flatten(1)) for side in (student, target)]
    permuted = student[:, [1, 2, 0]]  # which changes the factors, and not their attention maps
    assert not torch.isclose(loss(permuted, target), loss(student, target))
    torch.testing.assert_close(permuted.square().mean(1).flatten(1), student.square().mean(1).flatten(1))
    assert not torch.isclose(loss(student, target), F.l1_loss(*theirs))


def test_ft_projects_equal_shapes_too_since_the_paper_has_a_translator():
    student, target = sides((3, 4), (3, 4))
    assert isinstance(build_loss(FT(), student, target).projector, Projector)


@pytest.mark.parametrize("p", [0.5, math.nan, "1"])
def test_ft_refuses_powers_below_one(p):
    with pytest.raises(RecipeError, match="p is a finite number of at least 1; got"):
        FT(p=p)


@pytest.mark.parametrize("shape", [(3,), (3, 8), (3, 4, 6)])
@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_pad_divides_the_squared_error_by_a_predicted_variance_and_adds_its_logarithm(shape, eps):
    student, target = sides(shape, shape)
    loss = build_loss(PAD(eps=eps), student, target)

    def reference(student, target):
        weight = loss.log_variance[0].weight.to(student.dtype)
        hidden = torch.einsum("oc,bc...->bo...", weight, student)
        dims = [0, *range(2, student.ndim)]
        variance, mean = torch.var_mean(hidden, dims, correction=0, keepdim=True)
        log_variance = (hidden - mean) / (variance + 1e-5).sqrt()  # the first weights of a batch norm are 1 and 0
        return ((target - student) ** 2 / (eps + log_variance.exp()) + log_variance).mean()

    assert_equals_reference(loss, reference, student, target)


class Constant(nn.Module):
    """The logarithm of a variance that does not depend on the features, for PAD."""

    def __init__(self, logarithm):
        super().__init__()
        self.logarithm = nn.Parameter(logarithm)

    def forward(self, features):
        return self.logarithm.expand_as(features)


def test_pad_is_least_if_the_variance_is_the_squared_error():
    student, target = sides((3, 8), (3, 8))
    loss = build_loss(PAD(eps=1e-12), student, target)
    error = (student - target).square()
    values = []
    for factor in (0.9, 1.0, 1.1):
        loss.log_variance = Constant((factor * error).log())
        values.append(loss(student, target).item())
    assert values[1] == min(values)
    assert values[1] == pytest.approx(1 + error.log().mean().item(), rel=1e-3)


@pytest.mark.parametrize("logarithm", [-1e4, 1e4])
def test_pad_is_finite_for_any_predicted_variance(logarithm):
    student, target = sides((3, 8), (3, 8))
    loss = build_loss(PAD(), student, target)
    loss.log_variance = Constant(torch.tensor(logarithm))
    student.requires_grad_()
    value = loss(student, target)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
    assert loss.log_variance.logarithm.grad.isfinite()
