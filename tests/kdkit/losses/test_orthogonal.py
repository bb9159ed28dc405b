"""The orthogonal projector and the normalised targets of VkD: they stay orthogonal, can be copied, and are exact."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from kdkit import RecipeError
from kdkit.losses import Cosine, Hint
from kdkit.losses.normalisation import layer_norm, standardise, whiten
from kdkit.losses.projectors import Orthogonal
from tests.helpers.loss_reference import assert_equals_reference
from tests.helpers.losses import build_loss

CHANNELS = [(3, 7), (7, 3), (4, 4), (1, 3), (3, 1), (1, 1)]


def projector(channels, *positions, seed=0):
    torch.manual_seed(seed)
    return Orthogonal(*(torch.Size((2, count, *positions)) for count in channels))


def assert_orthogonal(weight, tolerance=1e-5):
    short = weight if weight.shape[0] <= weight.shape[1] else weight.T
    torch.testing.assert_close(short @ short.T, torch.eye(len(short), dtype=weight.dtype), rtol=0, atol=tolerance)


@pytest.mark.parametrize("channels", CHANNELS)
def test_rows_or_columns_stay_orthonormal_while_the_map_is_trained(channels):
    module = projector(channels)
    assert module.weight.shape == channels[::-1]
    first = module.weight.detach().clone()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.1)
    inputs, target = torch.randn(16, channels[0]), torch.randn(16, channels[1])
    for _ in range(20):
        optimizer.zero_grad()
        F.mse_loss(module(inputs), target).backward()
        optimizer.step()
        assert_orthogonal(module.weight)
    assert max(channels) == 1 or not torch.allclose(module.weight, first, atol=0.1)


def test_a_weight_decay_would_make_the_parametrisation_of_torch_zero():
    # The reason why the projector does not use it: signs of the columns are trained and truncated to integers.
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(3, 7, bias=False))
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(0.999)
    assert not layer.weight.any()


def test_the_columns_are_the_product_of_reflections():
    module = projector((3, 5)).double()
    product = np.eye(5)
    for column in range(3):
        vector = np.zeros(5)
        vector[column] = 1
        vector[column + 1 :] = module.reflections.detach().numpy()[column + 1 :, column]
        product = product @ (np.eye(5) - 2 * np.outer(vector, vector) / (vector @ vector))
    np.testing.assert_allclose(module.weight.detach().numpy(), product[:, :3], atol=1e-12)


def test_seeds_start_from_uniformly_distributed_maps():
    weights = torch.stack([projector((3, 3), seed=seed).weight.detach() for seed in range(1000)])
    # the square of each entry of a random orthogonal map is 1/3 in the mean
    torch.testing.assert_close(weights.square().mean(0), torch.full((3, 3), 1 / 3), rtol=0, atol=0.04)


def test_distances_are_kept_if_channels_grow():
    features = torch.randn(6, 3)
    projected = projector((3, 8))(features)
    torch.testing.assert_close(torch.cdist(projected, projected), torch.cdist(features, features), rtol=1e-4, atol=1e-4)


def test_copies_pickles_and_saved_states_have_the_same_bits():
    module = projector((3, 7), 5)
    features = torch.randn(2, 3, 5)
    expected = module(features)
    restored = projector((3, 7), 5, seed=1)
    restored.load_state_dict(module.state_dict())
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), restored):
        assert torch.equal(copied(features), expected)
    assert [*module.state_dict()] == ["reflections"]


def test_an_average_of_projectors_is_orthogonal():
    module = projector((3, 7))
    average = AveragedModel(module, avg_fn=get_ema_avg_fn(0.9))
    for _ in range(5):
        average.update_parameters(module)
        with torch.no_grad():
            module.reflections.add_(0.1 * torch.randn(7, 3))
    assert_orthogonal(average.module.weight)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_rounds_the_features_and_keeps_the_map_orthogonal(half):
    module, features = projector((3, 7), 5), torch.randn(2, 3, 5)
    with torch.autocast("cpu", half):
        projected, weight = module(features), module.weight
    assert_orthogonal(weight)
    torch.testing.assert_close(projected.float(), module(features), rtol=2e-2, atol=2e-2)


def test_a_loss_with_the_orthogonal_kind_has_no_other_weights():
    student, target = torch.randn(2, 3, 8), torch.randn(2, 7, 4)
    for loss in (Hint(kind="orthogonal"), Cosine(kind="orthogonal")):
        built = build_loss(loss, student, target)
        assert [name for name, _ in built.named_parameters()] == ["projector.reflections"]


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5), (6, 4, 3, 2), (6, 4, 2, 2, 2)])
def test_layer_norm_normalises_the_channels_of_every_position(shape):
    features = 3 * torch.randn(shape, dtype=torch.float64) + 1
    expected = F.layer_norm(features.movedim(1, -1), (4,)).movedim(-1, 1)
    torch.testing.assert_close(layer_norm(features), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(60, 4), (9, 4, 7), (9, 4, 3, 3)])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e4])
def test_whitened_channels_are_uncorrelated(shape, scale):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(shape, generator=generator, dtype=torch.float64)
    mixture = torch.eye(4) + 0.3 * torch.randn(4, 4, generator=generator)
    features = scale * (torch.einsum("nc...,cd->nd...", features, mixture.double()) + 5)
    whitened = whiten(features)
    assert whitened.shape == shape
    rows = whitened.movedim(1, -1).flatten(0, -2).numpy()
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-6)
    # 1e-5 of the largest variance is added to all of them
    np.testing.assert_allclose(np.cov(rows.T, ddof=0), np.eye(4), atol=5e-3)


@pytest.mark.parametrize("shape", [(60, 4), (9, 4, 7), (9, 4, 3, 3)])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e4])
def test_standardised_features_are_those_of_phi_s_up_to_a_rotation(shape, scale):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(shape, generator=generator, dtype=torch.float64)
    mixture = torch.eye(4) + 0.3 * torch.randn(4, 4, generator=generator)
    features = scale * (torch.einsum("nc...,cd->nd...", features, mixture.double()) + 5)
    rows = features.movedim(1, -1).flatten(0, -2).numpy()
    # PHI-S rotates by the eigenvectors and a Hadamard matrix, and divides by one scale.
    values, vectors = np.linalg.eigh(np.cov(rows.T, ddof=0))
    hadamard = np.kron([[1, 1], [1, -1]], [[1, 1], [1, -1]]) / 2
    phi_s = (rows - rows.mean(0)) @ vectors @ hadamard.T / np.sqrt(values.mean())
    np.testing.assert_allclose(phi_s.var(0), 1)  # of every channel
    ours = standardise(features)
    assert ours.shape == shape
    ours = ours.movedim(1, -1).flatten(0, -2).numpy()
    np.testing.assert_allclose(ours @ ours.T, phi_s @ phi_s.T, atol=1e-9)  # the same inner products


@pytest.mark.parametrize("shape", [(3, 8), (1, 4), (1, 4, 5), (2, 4, 1)])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e4])
@pytest.mark.parametrize("normalise", [layer_norm, standardise, whiten])
def test_fewer_rows_than_channels_and_zeros_give_finite_values(normalise, shape, scale):
    assert normalise(scale * torch.randn(shape)).isfinite().all()
    assert normalise(torch.full(shape, scale)).isfinite().all()


def vkd_reference(student, target):
    """Return the loss of the authors' code on pooled features of one shape: layer norm, then smooth L1 by hand."""
    total = 0
    for ours, theirs in zip(student, target, strict=True):
        mean = sum(theirs) / len(theirs)
        variance = sum((value - mean) ** 2 for value in theirs) / len(theirs)
        for first, second in zip(ours, (theirs - mean) / (variance + 1e-5) ** 0.5, strict=True):
            error = (first - second).abs()
            total = total + (0.5 * error**2 if error < 1 else error - 0.5)
    return total / student.numel()


def test_vkd_compares_with_the_layer_norm_of_the_target_by_smooth_l1():
    student, target = 2 * torch.randn(4, 6), 5 * torch.randn(4, 6) + 3
    assert_equals_reference(Hint(normalise="layer_norm", error="smooth_l1"), vkd_reference, student, target)


def test_a_whitened_target_is_compared_by_the_mean_squared_error():
    student, target = torch.randn(20, 4), torch.randn(20, 4) @ torch.randn(4, 4)
    expected = F.mse_loss(student, whiten(target))
    torch.testing.assert_close(Hint(normalise="whiten")(student, target), expected)


def test_without_options_a_hint_is_the_mean_squared_error_of_its_inputs():
    student, target = torch.randn(4, 6), torch.randn(4, 6)
    assert torch.equal(Hint()(student, target), F.mse_loss(student, target))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("normalise", ["layer_norm", "standardise", "whiten"])
def test_half_precision_is_normalised_in_float32(dtype, normalise):
    student, target = torch.randn(9, 4).to(dtype), (100 * torch.randn(9, 4)).to(dtype)
    loss = Hint(normalise=normalise)
    torch.testing.assert_close(loss(student, target), loss(student.float(), target.float()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalise": "batch"}, "normalise must be 'none' or 'layer_norm' or 'standardise' or 'whiten'; got 'batch'"),
        ({"error": "l1"}, "error must be 'mse' or 'smooth_l1'; got 'l1'"),
        ({"kind": "orthagonal"}, "did you mean 'orthogonal'"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        Hint(**options)


def test_the_projector_compiles():
    module, features = projector((3, 7), 5), torch.randn(2, 3, 5)
    torch.testing.assert_close(torch.compile(module, backend="aot_eager")(features), module(features))
    assert math.prod(module(features).shape) == 2 * 7 * 5
