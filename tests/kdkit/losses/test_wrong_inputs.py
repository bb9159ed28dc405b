"""Every registered loss refuses inputs that it cannot compare, by an error that names their shapes."""

import pytest
import torch
from torch import nn

from kdkit import RecipeError, registry
from kdkit.losses import FSP, AttentionTransfer, BuildableLoss, BuildContext, ReviewKD, SemCKD, extra_kwargs_of
from kdkit.losses.base import loss_name
from kdkit.losses.catalog import ON_OUTPUTS, PER_LABEL, PRESETS

OF_OUTPUTS = {*map(loss_name, (*ON_OUTPUTS, *PER_LABEL)), *PRESETS}
CONTEXT = BuildContext(classes=tuple("abcdef"), task="multiclass", samples=12, ids=True, batch_size=4)
SMALL = {"crd": {"negatives": 32, "width": 8}, "sem_ckd": {"width": 8}}


def right_side(name):
    """Return one side of a loss: outputs (batch, classes), or one or two features (batch, channels, positions)."""
    torch.manual_seed(0)
    side = torch.randn(4, 6) if name in OF_OUTPUTS else torch.randn(4, 6, 5)
    return (side, side.clone()) if name in ("fsp", "kdsvd") else side


def built_loss(name, side):
    loss = registry("losses")[name](**SMALL.get(name, {}))
    shapes = tuple(tensor.shape for tensor in (side if isinstance(side, tuple) else (side,)))
    if isinstance(loss, BuildableLoss):
        teacher = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)).eval()  # a classifier and a norm, for some losses
        loss.build(shapes, shapes, CONTEXT, teacher)
    return loss


def call(loss, student, target):
    batch = 4
    of_labels = type(loss).__name__.startswith("PerLabel") or type(loss).__name__ == "LED"
    kwargs = {
        "labels": torch.rand(batch, 6) if of_labels else torch.arange(batch),
        "ids": torch.arange(batch),
        "progress": torch.tensor(0.5),
    }
    return loss(student, target, **{name: kwargs[name] for name in extra_kwargs_of(loss) if name in kwargs})


def wrong_pairs(right):
    """Yield pairs of sides that no loss can compare, of which one is right where that is possible."""
    for wrong in (None, [0.5], (), torch.tensor(0.5), right[:, 0].flatten()[:4], right[:3], right[:, :0]):
        yield right, wrong
        yield wrong, right
    for dtype in (torch.int64, torch.bool, torch.complex64):
        yield right, right.to(dtype)
        yield right.to(dtype), right
    yield right[:, :0], right[:, :0]
    yield right[..., :0], right[..., :0]


# These also compare sides of one shape without weights.
WITHOUT_BUILD = {"hint", "cosine", "square_head", "cwd", "pkd", "ickd", "info_nce", "dist_plus", "wkdf", "taid", "ctkd"}
BUILT = [name for name, make in registry("losses").items() if isinstance(make(), BuildableLoss)]


@pytest.mark.parametrize("name", [name for name in BUILT if name not in WITHOUT_BUILD])
def test_a_loss_that_is_not_built_is_refused(name):
    side, loss = right_side(name), registry("losses")[name](**SMALL.get(name, {}))
    with pytest.raises(RecipeError, match=r"is not built|is built for 0 taps"):
        call(loss, side, side)


@pytest.mark.parametrize("name", registry("losses"))
def test_wrong_inputs_are_refused_with_their_shapes(name):
    side = right_side(name)
    loss = built_loss(name, side)
    assert call(loss, side, side).isfinite()
    tensor = side[0] if isinstance(side, tuple) else side
    for student, target in wrong_pairs(tensor):
        if isinstance(side, tuple):
            student, target = (side[0], student), (side[1], target)
        with pytest.raises(RecipeError, match=r"got .*(\(\d*,?|a list|a NoneType|no tap)"):
            call(loss, student, target)


@pytest.mark.parametrize("name", [name for name in registry("losses") if name not in OF_OUTPUTS])
def test_features_of_other_channels_than_a_loss_is_built_for_are_refused(name):
    side = right_side(name)
    loss = built_loss(name, side)
    if not isinstance(loss, BuildableLoss):
        return
    for channels in (1, 7):  # a single channel would be broadcast
        other = torch.randn(4, channels, 5)
        wrong = (side[0], other) if isinstance(side, tuple) else other
        for sides in ((wrong, side), (side, wrong)):
            with pytest.raises(RecipeError, match=rf"got .*\(4, {channels}"):
                call(loss, *sides)


@pytest.mark.parametrize("loss", [ReviewKD(), SemCKD(width=8), FSP()])
def test_other_numbers_of_taps_than_a_loss_is_built_for_are_refused(loss):
    taps = (torch.randn(4, 6, 5), torch.randn(4, 6, 5))
    shapes = tuple(tap.shape for tap in taps)
    loss.build(shapes, shapes, CONTEXT, None)
    with pytest.raises(RecipeError, match="built for 2 taps of the student and 2 of the teacher; got 2 and 3"):
        loss(taps, (*taps, taps[0]))


@pytest.mark.parametrize("loss", [ReviewKD(), SemCKD(), FSP()])
def test_layers_without_channels_are_refused_before_a_loss_is_built(loss):
    for student in ([torch.Size((4,))] * 2, []):
        with pytest.raises(RecipeError, match=rf"{type(loss).__name__} compares features \(batch, channels, \.\.\.\)"):
            loss.build(tuple(student), (torch.Size((4, 6)),) * 2, CONTEXT, None)


@pytest.mark.parametrize("loss", [SemCKD(width=8), ReviewKD()])
def test_positions_may_differ_from_batch_to_batch(loss):
    built, later = torch.randn(4, 6, 5), torch.randn(4, 6, 7)
    loss.build((built.shape,), (built.shape,), CONTEXT, None)
    assert loss(later, later).isfinite()


@pytest.mark.parametrize(("frames", "is_advised"), [(12, True), (10, False)])
def test_features_of_single_frames_are_refused_with_the_tap_that_collects_them(frames, is_advised):
    with pytest.raises(RecipeError, match=r"\(4, 6, 3, 3, 3\): both must be of the same samples") as caught:
        AttentionTransfer()(torch.randn(frames, 6, 3, 3), torch.randn(4, 6, 3, 3, 3))
    assert ("element=lambda frames: frames.unflatten(0, (-1, 3)).movedim(1, 2)" in str(caught.value)) == is_advised
