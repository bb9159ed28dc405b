"""SDD and CAT-KD: regions at several scales, the weights of regions that disagree, and maps of any dimension."""

import math

import pytest
import torch
from torch import nn

from kdkit import RecipeError
from kdkit.losses import CATKD, CKA, DIST, DKD, NKD, OFA, SDD, Hint, LogitMSE, SoftTargets
from tests.helpers.loss_reference import assert_equals_reference

LOSSES = [SoftTargets(), DKD(), NKD(), OFA(gamma=1.2)]


def maps(*positions, count=3, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(count, classes, *positions, generator=generator)


LABELS = torch.tensor([0, 3, 1])


def pool(features, scale):
    """Return the mean of each region of (classes, *positions), whose sizes are multiples of the scale."""
    regions = [features]
    for axis in range(1, features.ndim):
        regions = [part for region in regions for part in region.chunk(scale, axis)]
    return [region.flatten(1).mean(1) for region in regions]


def reference(loss, scales, disagreement=2.0):
    """Return the mean over samples and regions, one call of the loss for each."""

    def value(student, target, labels):
        values = []
        for ours, theirs, label in zip(student, target, labels, strict=True):
            is_right_of_all = theirs.flatten(1).mean(1).argmax() == label
            for scale in scales:
                for region, target_region in zip(pool(ours, scale), pool(theirs, scale), strict=True):
                    weight = disagreement if (target_region.argmax() == label) != is_right_of_all else 1.0
                    kwargs = {} if isinstance(loss, SoftTargets) else {"labels": label[None]}
                    values.append(weight * loss(region[None], target_region[None], **kwargs))
        return torch.stack(values).mean()

    return value


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("positions", [(8,), (4, 8), (4, 4, 4)])
def test_sdd_is_the_weighted_mean_over_regions(loss, positions):
    scales = (1, 2, 4)
    student, target = maps(*positions), maps(*positions, seed=1)
    assert_equals_reference(SDD(loss=loss), reference(loss, scales), student, target, labels=LABELS)


@pytest.mark.parametrize(("scales", "disagreement"), [((1,), 2.0), ((2,), 5.0), ((4, 1), 1.0)])
def test_sdd_takes_other_scales_and_weights(scales, disagreement):
    student, target = maps(8), maps(8, seed=1)
    loss = SDD(loss=SoftTargets(), scales=scales, disagreement=disagreement)
    assert_equals_reference(loss, reference(SoftTargets(), scales, disagreement), student, target, labels=LABELS)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_one_region_gives_the_loss_of_the_pooled_outputs(loss):
    student, target = maps(4, 4), maps(4, 4, seed=1)
    kwargs = {} if isinstance(loss, SoftTargets) else {"labels": LABELS}
    expected = loss(student.mean((2, 3)), target.mean((2, 3)), **kwargs)
    torch.testing.assert_close(SDD(loss=loss, scales=[1])(student, target, labels=LABELS), expected)


@pytest.mark.parametrize("label", [0, 1])
def test_a_region_that_disagrees_with_the_whole_counts_twice(label):
    # Halves of a signal: the teacher sees class 0 in the first half and in the whole, and class 1 in the second half.
    target, student = torch.tensor([[[5.0, 0.0], [0.0, 1.0]]]), torch.zeros(1, 2, 2)
    soft = SoftTargets(temperature=1.0)
    first, second = (soft(student[:, :, half], target[:, :, half]) for half in range(2))
    value = SDD(loss=soft, scales=(2,))(student, target, labels=torch.tensor([label]))
    # of label 0 it is right about the whole and wrong about the second half; of label 1 the other way round
    torch.testing.assert_close(value, (first + 2 * second) / 2)


def test_creating_sdd_changes_no_random_state_of_any_device(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    before = torch.get_rng_state()
    SDD()
    assert torch.equal(torch.get_rng_state(), before)
    assert seeds == []


def test_the_default_is_dkd_at_three_scales():
    assert SDD() == SDD(loss=DKD(), scales=[1, 2, 4], disagreement=2.0)
    assert "scales=(1, 2, 4)" in repr(SDD())


@pytest.mark.parametrize(
    ("student", "target"),
    [((5,), (8,)), ((1,), (1,)), ((3, 5), (6, 2)), ((12,), (4, 3)), ((4, 3), (12,)), ((2, 3, 2), (3, 2, 4))],
)
@pytest.mark.parametrize("loss", [SDD(), CATKD(), CATKD(resolution=4)])
def test_positions_may_differ(loss, student, target):
    student, target = maps(*student).requires_grad_(), maps(*target, seed=1)
    kwargs = {"labels": LABELS} if isinstance(loss, SDD) else {}
    value = loss(student, target, **kwargs)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-8, 1e4])
@pytest.mark.parametrize("loss", [SDD(), SDD(loss=NKD()), CATKD()])
def test_value_and_gradient_are_finite_for_any_scale(loss, scale, dtype):
    # the authors' code sets the loss to 0 for confident students, and so their gradient
    student, target = (
        (scale * maps(4, 4).sign()).to(dtype).requires_grad_(),
        (scale * maps(4, 4, seed=1).sign()).to(dtype),
    )
    value = loss(student, target, **({"labels": LABELS} if isinstance(loss, SDD) else {}))
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("loss", [DIST(), CKA(), Hint(), SoftTargets, lambda student, target, *, ids: student.sum(), 3])
def test_a_loss_that_is_no_mean_over_samples_is_refused(loss):
    with pytest.raises(RecipeError, match=r"SDD takes a loss on outputs that is a mean over samples.*; got"):
        SDD(loss=loss)


def test_a_user_defined_mean_over_samples_is_accepted():
    student, target = maps(4), maps(4, seed=1)
    loss = SDD(loss=lambda student, target: (student - target).square().mean(), scales=(1,), disagreement=1.0)
    expected = LogitMSE()(student.mean(2), target.mean(2))
    torch.testing.assert_close(loss(student, target, labels=LABELS), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "scales are numbers of regions"),
        ({"scales": "12"}, "scales are numbers of regions"),
        ({"scales": 2}, "scales are numbers of regions"),
        ({"scales": (0,)}, "a scale"),
        ({"scales": (1.5,)}, "a scale"),
        ({"disagreement": 0.0}, "disagreement"),
        ({"disagreement": math.inf}, "disagreement"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        SDD(**options)
    with pytest.raises(RecipeError, match="resolution"):
        CATKD(resolution=0)


def test_pooled_outputs_are_refused():
    for loss, kwargs in ((SDD(), {"labels": LABELS}), (CATKD(), {})):
        with pytest.raises(RecipeError, match="tap a layer before it is pooled"):
            loss(maps(), maps(), **kwargs)


def catkd_reference(resolution):
    def loss(student, target):
        errors = []
        for ours, theirs in zip(student, target, strict=True):
            sides = [torch.stack(pool(side, resolution), 1) for side in (ours, theirs)]  # (classes, regions)
            for first, second in zip(*sides, strict=True):
                errors.extend((first / first.norm() - second / second.norm()).square())
        return torch.stack(errors).mean()

    return loss


@pytest.mark.parametrize("positions", [(8,), (4, 8), (4, 4, 4)])
@pytest.mark.parametrize("resolution", [2, 4])
def test_catkd_is_the_squared_error_of_normalised_maps(positions, resolution):
    student, target = maps(*positions), maps(*positions, seed=1)
    assert_equals_reference(CATKD(resolution=resolution), catkd_reference(resolution), student, target)


def test_catkd_ignores_the_scale_of_each_class():
    student, target = maps(4, 4), maps(4, 4, seed=1)
    scales = torch.tensor([0.1, 1.0, 7.0, 100.0])[:, None, None]
    torch.testing.assert_close(CATKD()(scales * student, target), CATKD()(student, target))
    assert CATKD()(scales * target, target).item() == pytest.approx(0, abs=1e-10)


@pytest.mark.slow
def test_sdd_compiles():
    student, target = maps(4, 4), maps(4, 4, seed=1)
    loss = SDD()
    compiled = torch.compile(lambda *sides: loss(*sides, labels=LABELS), backend="aot_eager")
    torch.testing.assert_close(compiled(student, target), loss(student, target, labels=LABELS))
    assert not isinstance(loss, nn.Module)
