"""Losses between two features: any dimension, shapes that differ, and what is refused."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kdkit import RecipeError
from kdkit.losses import CWD, HCL, MGD, NST, PKD, VID, AttentionTransfer, Hint, PatientKD, SquareHead
from kdkit.losses.projectors import MLP, Bottleneck, Projector, Regressor
from tests.helpers.losses import built

SHAPES = [((4, 3), (4, 5)), ((4, 3, 8), (4, 5, 4)), ((4, 3, 4, 6), (4, 5, 2, 3)), ((4, 3, 2, 2, 2), (4, 5, 2, 2, 2))]


def learns(loss, student, target):
    """Hold a loss to a finite scalar and a finite gradient to the student and to each weight."""
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
def test_features_of_other_channels_and_positions_are_learned_from(make, shapes):
    student, target = (torch.randn(shape) for shape in shapes)
    learns(built(make(), student, target), student, target)


@pytest.mark.parametrize("make", [AttentionTransfer, NST])
@pytest.mark.parametrize("shapes", SHAPES[1:])
def test_channels_and_positions_may_differ_without_any_weights(make, shapes):
    student, target = (torch.randn(shape) for shape in shapes)
    learns(make(), student, target)


@pytest.mark.parametrize("make", [AttentionTransfer, NST, VID])
def test_tokens_meet_a_map_of_their_aspect(make):
    tokens, target = torch.randn(2, 5, 24), torch.randn(2, 5, 8, 12)
    laid_out = tokens.reshape(2, 5, 4, 6)
    torch.manual_seed(0)
    loss = built(make(), tokens, target) if make is VID else make()
    torch.testing.assert_close(loss(tokens, target), loss(laid_out, target))


@pytest.mark.parametrize("make", [AttentionTransfer, NST])
def test_tokens_that_are_no_map_are_refused(make):
    with pytest.raises(RecipeError, match="leave extra tokens"):
        make()(torch.randn(2, 5, 25), torch.randn(2, 5, 8, 12))


@pytest.mark.parametrize("loss", [AttentionTransfer(), NST(), CWD()])
def test_vectors_have_no_positions_to_compare(loss):
    with pytest.raises(RecipeError, match="tap a layer before it is pooled"):
        loss(torch.randn(2, 5), torch.randn(2, 5))


@pytest.mark.parametrize("loss", [PatientKD(), HCL()])
def test_a_loss_without_a_projector_says_which_one_there_is(loss):
    with pytest.raises(RecipeError, match=r"Hint\(\) brings such together with a linear projector"):
        loss(torch.randn(2, 5, 4), torch.randn(2, 6, 4))


@pytest.mark.parametrize("make", [SquareHead, PKD, CWD])
def test_never_refuses_shapes_that_differ_and_names_the_projector(make):
    with pytest.raises(RecipeError, match=rf"cannot meet .*{make.__name__}\(projector='auto'\) makes one"):
        built(make(projector="never"), *sides((3, 4), (5, 4)))


def sides(one, other):
    return torch.randn(2, *one), torch.randn(2, *other)


@pytest.mark.parametrize(
    ("kind", "made"), [("linear", Projector), ("conv", Regressor), ("mlp", MLP), ("bottleneck", Bottleneck)]
)
@pytest.mark.parametrize("shapes", SHAPES)
def test_a_hint_takes_every_kind_of_projector(kind, made, shapes):
    student, target = (torch.randn(shape) for shape in shapes)
    loss = built(Hint(kind=kind), student, target)
    assert isinstance(loss.projector, made)
    learns(loss, student, target)


def test_a_misspelt_kind_of_projector_gets_the_right_one():
    with pytest.raises(RecipeError, match="did you mean 'linear'"):
        Hint(kind="liner")


def test_several_taps_are_refused_where_one_is_compared():
    pair = (torch.randn(2, 3), torch.randn(2, 4))
    with pytest.raises(RecipeError, match="Hint takes one tap on each side; got 2"):
        built(Hint(), pair, pair)


@pytest.mark.parametrize("make", [AttentionTransfer, CWD])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_powers_and_temperatures_are_above_zero(make, value):
    with pytest.raises(RecipeError, match="a finite number above 0"):
        make(**{"p" if make is AttentionTransfer else "temperature": value})


@pytest.mark.parametrize(
    ("make", "options", "says"),
    [
        (VID, {"hidden": 0}, "hidden is a whole number of at least 1"),
        (VID, {"variance": 1e-6}, "above eps"),
        (MGD, {"mask": "row"}, "mask is 'channel' or 'position'"),
        (MGD, {"masked": 1.0}, "masked is a share"),
        (MGD, {"alpha": -1}, "alpha is a finite number above 0"),
        (MGD, {"reduction": "sum"}, "reduction is"),
        (NST, {"degree": 0}, "degree is a whole number"),
        (NST, {"offset": -1.0}, "offset is a finite number"),
        (PKD, {"eps": 0}, "eps is a finite number above 0"),
        (HCL, {"grids": (1, 2)}, "grids become smaller"),
        (HCL, {"grids": (0,)}, "a grid is a whole number"),
    ],
)
def test_options_that_make_no_loss_are_refused(make, options, says):
    with pytest.raises(RecipeError, match=says):
        make(**options)


def test_attention_is_summed_over_positions_for_batchmean():
    student, target = torch.randn(3, 2, 7), torch.randn(3, 4, 7)
    mean, summed = (AttentionTransfer(reduction=reduction)(student, target) for reduction in ("mean", "batchmean"))
    torch.testing.assert_close(summed, mean * 7)


def test_attention_of_an_odd_power_does_not_see_signs():
    features = torch.randn(3, 2, 7)
    assert AttentionTransfer(p=3)(-features, features).item() == pytest.approx(0, abs=1e-12)


def test_cwd_without_t_squared_is_that_much_smaller():
    student, target = torch.randn(3, 2, 7), torch.randn(3, 2, 7)
    torch.testing.assert_close(
        CWD(temperature=3)(student, target), 9 * CWD(temperature=3, t_squared=False)(student, target)
    )


def test_pearson_does_not_see_scale_or_offset():
    features = torch.randn(4, 3, 5, dtype=torch.float64)
    assert PKD()(7 * features + 2, features).item() == pytest.approx(0, abs=1e-9)


def test_pearson_of_a_single_value_is_nothing_to_learn_from():
    student = torch.randn(1, 3, requires_grad=True)
    PKD()(student, torch.randn(1, 3)).backward()
    assert student.grad.abs().sum() == 0


@pytest.mark.parametrize("loss", [AttentionTransfer(p=1), NST(degree=1), PatientKD()])
def test_features_that_are_all_zero_give_no_huge_gradient(loss):
    student = torch.zeros(2, 3, 4, requires_grad=True)
    loss(student, torch.randn(2, 3, 4)).backward()
    assert student.grad.abs().max() < 100


MAKERS = [Hint, SquareHead, PKD, VID, MGD, AttentionTransfer, NST]
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
def test_any_shapes_meet_in_a_finite_loss(positions, given_channels, wanted_channels, batch, make):
    student = torch.randn(batch, given_channels, *positions[0], requires_grad=True)
    target = torch.randn(batch, wanted_channels, *positions[1])
    loss = make()
    assume(hasattr(loss, "build") or student.ndim > 2)
    value = (built(loss, student, target) if hasattr(loss, "build") else loss)(student, target)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_squared_error_relative_to_a_silent_teacher_is_finite():
    assert SquareHead()(torch.zeros(2, 3), torch.zeros(2, 3)).item() == 0


def test_nst_of_degree_one_compares_mean_patterns():
    student, target = torch.randn(2, 3, 6), torch.randn(2, 4, 6)
    means = [torch.nn.functional.normalize(each, dim=2).mean(1) for each in (student, target)]
    torch.testing.assert_close(NST(degree=1)(student, target), (means[0] - means[1]).square().sum(1).mean())


@pytest.mark.parametrize("variance", [1e-3, 2.0, 5e3])
def test_vid_starts_at_its_variance(variance):
    student = torch.zeros(2, 3, 4)
    loss = built(VID(variance=variance), student, student)
    assert loss(student, student).item() == pytest.approx(0.5 * math.log(variance), rel=1e-3)


def test_mgd_hides_a_share_and_draws_it_from_torchs_random_numbers():
    features = torch.ones(200, 50, 2)
    masks = []
    for _ in range(2):
        torch.manual_seed(3)
        masks.append(MGD(masked=0.3).kept(features))
    assert torch.equal(*masks)
    assert masks[0].shape == (200, 50, 1)
    assert masks[0].mean().item() == pytest.approx(0.7, abs=0.02)
    assert MGD(mask="position").kept(features).shape == (200, 1, 2)


def test_mgd_has_no_positions_to_mask_in_a_vector():
    with pytest.raises(RecipeError, match="needs positions to mask"):
        built(MGD(mask="position"), *sides((3,), (3,)))


def test_mgd_as_a_mean_is_the_sum_over_so_many_entries():
    student, target = sides((3, 4), (3, 4))
    loss = built(MGD(), student, target)
    loss.kept = torch.ones_like
    summed = loss(student, target)
    loss.reduction = "mean"
    torch.testing.assert_close(summed, loss(student, target) * 12)


def test_patient_kd_adds_up_layers():
    pairs = [sides((3,), (3,)), sides((4, 2), (4, 2))]
    student, target = zip(*pairs, strict=True)
    torch.testing.assert_close(PatientKD()(student, target), sum(PatientKD()(*pair) for pair in pairs))


def test_patient_kd_takes_layers_in_pairs():
    with pytest.raises(RecipeError, match="compares taps in pairs"):
        PatientKD()((torch.ones(2, 3),), (torch.ones(2, 3), torch.ones(2, 3)))
