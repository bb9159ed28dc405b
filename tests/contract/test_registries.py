"""Contract tests of everything that is registered. A new registered name needs a case here, or a test fails."""

import inspect
import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from kdkit import Data, LoaderSplit, Metric, Net, Predictions, RecipeError, Stage, Training, Truth, registry
from kdkit.errors import ContractError
from kdkit.export import Exporter
from kdkit.losses import SoftTargets
from kdkit.metrics import is_better, lower_is_better
from kdkit.plugins import hooks
from kdkit.plugins.registry import REGISTRIES
from kdkit.testing import check_loss, check_metric, check_schedule, check_tap


def names(kind):
    return list(registry(kind))


def case(cases, kind, name):
    if name not in cases:
        pytest.fail(f"{name!r} is registered in {kind}, but has no contract case in this file")
    return cases[name]


# The options of check_loss for each loss.
# The value includes an entropy, or the target is not confident enough, or is corrected by the labels.
NEVER_LEAST = {"least_when_equal": False}
PER_LABEL = {"task": "multilabel"}
ON_FEATURES = {"on": "features"}
ON_POSITIONS = {"on": "features", "shapes": [(5, 6), (5, 4, 3)]}  # vectors are refused
WITH_WEIGHTS = {"least_when_equal": False}  # mapped features differ from the target even if both sides are equal
LOSSES = {
    "soft_targets": {},
    "soft_targets_deit": {},
    "soft_targets_modelopt": {},
    "soft_targets_mutual": {},
    "hard_targets": NEVER_LEAST,
    "second_head": NEVER_LEAST,
    "logit_mse": {},
    "margin_mse": {},
    "logit_standardisation": {},
    "dkd": {},
    "nkd": NEVER_LEAST,
    "dist": {},
    "reverse_kl": {},
    "generalised_jsd": {},
    "skew_kl": {},
    "skew_reverse_kl": {},
    "adaptive_kl": {},
    "alpha_beta_divergence": {},
    "total_variation": {},
    "ttm": NEVER_LEAST,
    "wttm": NEVER_LEAST,
    "wsld": {},
    "mlld": {},
    "rld": NEVER_LEAST,
    "taid": {},
    "ctkd": {},
    "uld": {},
    "pskd": NEVER_LEAST,
    "ofa": NEVER_LEAST,
    "skd": {},
    "per_label_soft_targets": PER_LABEL,
    "per_label_hard_targets": PER_LABEL | NEVER_LEAST,
    "per_label_dkd": PER_LABEL,
    "per_label_dist": PER_LABEL,
    "per_label_alpha_beta_divergence": PER_LABEL,
    "per_label_mlld": PER_LABEL,
    "per_label_rld": PER_LABEL | NEVER_LEAST,
    "per_label_pskd": PER_LABEL | NEVER_LEAST,
    "rkd": ON_FEATURES,
    "sp": ON_FEATURES,
    "pkt": ON_FEATURES,
    "cc": ON_FEATURES,
    "adjacent_cc": ON_FEATURES,
    "cka": ON_FEATURES,
    "hint": ON_FEATURES,
    "cosine": ON_FEATURES,
    "square_head": ON_FEATURES,
    "distil_hubert": ON_FEATURES | WITH_WEIGHTS,
    "attention_transfer": ON_POSITIONS,
    "pairwise_affinity": ON_POSITIONS,
    "mini_lm": ON_POSITIONS,
    "cwd": ON_POSITIONS,
    "nst": ON_POSITIONS,
    "pkd": ON_FEATURES,
    "patient_kd": ON_FEATURES,
    "ft": ON_FEATURES | WITH_WEIGHTS,
    "fsp": ON_POSITIONS | {"layers": (2, 2)},
    "kdsvd": ON_POSITIONS | {"layers": (2, 2)},
    "ickd": ON_POSITIONS,
    "vid": ON_FEATURES | WITH_WEIGHTS,
    "pad": ON_FEATURES | WITH_WEIGHTS,
    "mgd": ON_FEATURES | WITH_WEIGHTS,
    "ofd": ON_FEATURES | WITH_WEIGHTS,
    "ab": ON_FEATURES | WITH_WEIGHTS,
    "hcl": ON_FEATURES,
    "review_kd": ON_FEATURES | WITH_WEIGHTS,
    "sem_ckd": ON_FEATURES | WITH_WEIGHTS,
    "srrl": ON_FEATURES | WITH_WEIGHTS,
    "crd": ON_FEATURES | WITH_WEIGHTS,
    "sskd": ON_FEATURES | {"shapes": [(5, 4)]},
    "info_nce": ON_FEATURES | NEVER_LEAST,
    "srd": ON_FEATURES | WITH_WEIGHTS,
    "dist_plus": ON_FEATURES,
    "wkdf": ON_POSITIONS,
    "sdd": ON_POSITIONS,
    "catkd": ON_POSITIONS,
    "queue_kl": ON_FEATURES | WITH_WEIGHTS,
    "led": ON_FEATURES | PER_LABEL | WITH_WEIGHTS,
}


# Smaller options, to save time.
SMALL = {"crd": {"negatives": 32, "width": 8}, "sem_ckd": {"width": 8}}


def maker(name):
    """Return a function that creates the registered loss with small options."""
    return partial(registry("losses")[name], **SMALL.get(name, {}))


# check_loss tries several shapes of features: the suite has time for one of them, which differs from loss to loss.
@pytest.mark.parametrize("all_shapes", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["a shape", "all"])
@pytest.mark.parametrize("name", names("losses"))
def test_losses_keep_their_contract(name, all_shapes):
    options = case(LOSSES, "losses", name)
    if options.get("on") == "features" and not all_shapes:
        shapes = options.get("shapes", [(5,), (5, 6), (5, 4, 3)])
        options = options | {"shapes": [shapes[names("losses").index(name) % len(shapes)]]}
    check_loss(maker(name), **options)


# Pairs of a student's and a target's shapes, without the batch.
VECTORS = [((5,), (3,))]
POOLED = [((5, 6), (3,)), ((5, 4, 3), (3,))]
CHANNELS = [((5, 6), (3, 6)), ((5, 4, 3), (3, 4, 3)), ((5, 2, 3, 2), (3, 2, 3, 2))]
POSITIONS = [((5, 6), (5, 4)), ((5, 6), (3, 9)), ((5, 4, 3), (3, 2, 6))]
# Tokens for a map of as many positions, and for a finer one.
TOKENS = [((5, 12), (3, 4, 3)), ((5, 4, 3), (3, 12)), ((5, 24), (3, 12, 8))]
# Maps of as many classes, whose positions may differ.
SAME_CHANNELS = [((5, 6), (5, 4)), ((5, 12), (5, 4, 3)), ((5, 4, 3), (5, 12)), ((5, 4, 3), (5, 2, 6))]
ANY = VECTORS + POOLED + CHANNELS + POSITIONS + TOKENS
WITH_POSITIONS = CHANNELS + POSITIONS + TOKENS
SUPPORTED = {
    "uld": [*VECTORS, ((5, 6), (5, 4))],  # the latter are five tokens
    "second_head": VECTORS + POOLED,
    "rkd": [*ANY, ((5,), (3, 6))],
    "sp": [*ANY, ((5,), (3, 6))],
    "pkt": [*ANY, ((5,), (3, 6))],
    "cc": [*ANY, ((5,), (3, 6))],
    "cka": [*ANY, ((5,), (3, 6))],
    "adjacent_cc": [((6, 2), (3, 4)), ((6, 2), (3, 2, 2))],  # as many numbers on both sides
    "hint": ANY,
    "cosine": ANY,
    "square_head": ANY,
    "distil_hubert": ANY,
    "attention_transfer": WITH_POSITIONS,
    "pairwise_affinity": WITH_POSITIONS,
    "mini_lm": WITH_POSITIONS,
    "cwd": WITH_POSITIONS,
    "nst": WITH_POSITIONS,
    "pkd": ANY,
    "ft": ANY,
    "fsp": WITH_POSITIONS,
    "kdsvd": WITH_POSITIONS,
    "ickd": WITH_POSITIONS,
    "vid": ANY,
    "pad": ANY,
    "mgd": ANY,
    "ofd": ANY,
    "ab": ANY,
    "review_kd": ANY,
    "sem_ckd": ANY,
    "srrl": [*ANY, ((5,), (3, 6))],
    "crd": ANY,
    "info_nce": [*ANY, ((5,), (3, 6))],
    "sskd": [((5, 6), (3, 6))],
    "srd": ANY,
    "dist_plus": ANY,
    "wkdf": WITH_POSITIONS,
    "sdd": SAME_CHANNELS,
    "catkd": SAME_CHANNELS,
    "queue_kl": ANY,
    "led": ANY,
}


def pairs(*, supported):
    """Return all combinations of a loss and a pair of shapes that the loss supports, or does not support."""
    combinations = [(name, pair) for name in names("losses") for pair in [*ANY, *SUPPORTED.get(name, ())]]
    return [
        (name, pair) for name, pair in dict.fromkeys(combinations) if (pair in SUPPORTED.get(name, ())) == supported
    ]


# Each pair takes the whole contract, so that the suite has time for every 18th one, and for ULD, which supports two.
@pytest.mark.parametrize(
    ("name", "pair"),
    [
        pytest.param(*combination, marks=[pytest.mark.slow] * (index % 18 > 0 and combination[0] != "uld"))
        for index, combination in enumerate(pairs(supported=True))
    ],
)
def test_losses_keep_their_contract_on_supported_pairs_of_shapes(name, pair):
    check_loss(maker(name), **case(LOSSES, "losses", name) | {"shapes": [pair]})


@pytest.mark.parametrize("name", dict(pairs(supported=False)))
def test_losses_suggest_a_remedy_for_unsupported_pairs_of_shapes(name):
    remedies = r"Hint\(\)|SecondHead\(\)|PerToken\(loss\)|a projector maps|tap a layer before it is pooled"
    for pair in (pair for other, pair in pairs(supported=False) if other == name):
        with pytest.raises(ContractError, match=remedies) as caught:
            check_loss(maker(name), **case(LOSSES, "losses", name) | {"shapes": [pair]})
        assert isinstance(caught.value.__cause__, RecipeError), pair


# The numbers of taps in the student's and the target's tuples.
LAYERS = {"sp": [(1, 1), (3, 3)], "patient_kd": [(3, 3)], "hcl": [(1, 1), (3, 3)], "review_kd": [(1, 1), (3, 3)]}
LAYERS |= {"sem_ckd": [(1, 1), (2, 3), (3, 2)], "fsp": [(3, 3)], "kdsvd": [(3, 3)]}


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        # SemCKD takes the longest: the suite has time for one pair of numbers.
        pytest.param(name, layers, marks=[pytest.mark.slow] * (name == "sem_ckd" and layers != (2, 3)))
        for name, variants in LAYERS.items()
        for layers in variants
    ],
)
def test_losses_over_several_layers_keep_their_contract(name, layers):
    # Vectors and images are among the shapes of single layers, and below.
    check_loss(maker(name), **case(LOSSES, "losses", name) | {"layers": layers, "shapes": [(5, 6)]})


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        # The suite has time for one pair of each loss.
        pytest.param(name, pair, marks=[pytest.mark.slow] * (index != number % 3))
        for number, name in enumerate(name for name in LAYERS if name in SUPPORTED)
        for index, pair in enumerate([((5, 4, 3), (3,)), ((5, 6), (3, 9)), ((5, 4, 3), (3, 12))])
        if pair in SUPPORTED[name]
    ],
)
def test_losses_over_several_layers_support_different_shapes(name, pair):
    check_loss(maker(name), **case(LOSSES, "losses", name) | {"layers": LAYERS[name][-1], "shapes": [pair]})


class Attention(nn.Module):
    """An attention layer with the attributes of timm's."""

    def __init__(self):
        super().__init__()
        self.fused_attn = True
        self.attn_drop = nn.Dropout(0.5)
        self.weight = nn.Parameter(torch.eye(3))

    def forward(self, tokens):
        tokens = tokens @ self.weight
        if self.fused_attn:
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        scores = tokens @ tokens.transpose(1, 2) / math.sqrt(tokens.shape[-1])
        return self.attn_drop(scores.softmax(-1)) @ tokens


def timm_like():
    """Return a module with the feature_info of a timm model."""
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.ReLU(inplace=True))
    model.feature_info = [{"module": "0"}]
    return model


def mapper():
    """Return a convolution and the classifier behind it, which are not pooled."""
    return nn.Sequential(nn.Conv1d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv1d(4, 2, 1))


# A function that adapts the registered tap, the module to tap, and an example of its inputs.
TAPS = {
    "layer": (lambda make: lambda model: make(model[0]), timm_like, torch.randn(2, 3, 5)),
    "classifier": (
        lambda make: lambda model: make(model[2], "input", classifier=model[2]),
        mapper,
        torch.randn(2, 3, 5),
    ),
    "attention": (lambda make: make, Attention, torch.randn(2, 4, 3)),
    "timm": (lambda make: lambda model: make(model, 0), timm_like, torch.randn(2, 3, 5)),
}


@pytest.mark.parametrize("name", names("taps"))
def test_taps_keep_their_contract(name):
    tap_from, module, example = case(TAPS, "taps", name)
    check_tap(tap_from(registry("taps")[name]), module(), example)


def nets():
    return [Net(name, nn.Linear(4, 3)) for name in ("teacher", "assistant", "student")]


def with_guidance(make):
    options = {"truth": Truth(nn.CrossEntropyLoss()), "kd_loss": SoftTargets(), "training": Training(epochs=1)}
    return lambda: make(*nets(), **options)


def by_hand(make):
    truth = Truth(nn.CrossEntropyLoss())
    return lambda: make(*(Stage({net: truth}, Training(epochs=1)) for net in nets()))


SCHEDULES = {"parallel": with_guidance, "sequential": with_guidance, "multi_level": with_guidance, "stages": by_hand}


@pytest.mark.parametrize("name", names("schedules"))
def test_schedules_keep_their_contract(name):
    check_schedule(case(SCHEDULES, "schedules", name)(registry("schedules")[name]))


RAMPS = {"linear": {"end": 2.0, "after": 0.2}, "cosine": {"end": 2.0, "until": 0.8}}


@pytest.mark.parametrize("name", names("ramps"))
def test_ramps_are_continuous_finite_and_never_negative(name):
    ramp = registry("ramps")[name](**case(RAMPS, "ramps", name))
    values = [ramp(step / 100) for step in range(101)]
    assert all(math.isfinite(value) and value >= 0 for value in values)
    assert all(abs(later - earlier) < 0.1 for earlier, later in pairwise(values))
    assert values[0] != values[-1]


# The options of each model, and the shapes of its inputs without the batch.
MODELS = {
    "timm": ({"name": "test_resnet", "num_classes": 24}, [(3, 32, 32)]),
    "lrhnet": ({"leads": 2}, [(2, 256), (5,)]),
    "lrhnet_s": ({"leads": 2}, [(2, 256), (5,)]),
    "se_resnet": ({"leads": 2, "width": 4}, [(2, 256), (5,)]),
    "cnn1d": ({"leads": 2}, [(2, 256), (5,)]),
}


@pytest.mark.parametrize("name", names("models"))
def test_models_have_an_output_per_class_and_train_all_weights(name):
    options, shapes = case(MODELS, "models", name)
    torch.manual_seed(0)
    model = registry("models")[name](**options)
    model(*(torch.randn(2, *shape) for shape in shapes)).square().mean().backward()
    untrained = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not untrained
    model.eval()
    inputs = [torch.randn(3, *shape) for shape in shapes]
    outputs = model(*inputs)
    assert outputs.shape == (3, 24)
    assert torch.equal(outputs, model(*inputs))
    torch.testing.assert_close(model(*(tensor[:1] for tensor in inputs)), outputs[:1], rtol=1e-3, atol=1e-4)


def tensors():
    return TensorDataset(torch.randn(6, 4), torch.arange(6) % 3)


# A function that creates the data, or the reason why it needs a download.
DATASETS = {
    "torch": lambda make: make(tensors(), tensors(), tensors()),
    "synthetic_ecg": lambda make: make(train=6, validation=3, test=3, length=200),
    "challenge_2020": "needs recordings: see the tests of its reader",
    "challenge_2021": "needs recordings: see the tests of its reader",
    "ptb_xl": "needs recordings: see the tests of its reader",
    "ecg_records": "needs recordings: see the tests of its reader",
}


@pytest.mark.parametrize("name", names("datasets"))
def test_datasets_return_the_same_samples_each_time_with_unique_ids(name):
    make = case(DATASETS, "datasets", name)
    if isinstance(make, str):
        pytest.skip(make)
    torch.manual_seed(0)
    data: Data = make(registry("datasets")[name])
    assert data.task in ("multiclass", "multilabel", "regression")
    assert len(set(data.classes)) == len(data.classes) > 0
    assert data.fingerprint == data.fingerprint
    splits = [split for split in (data.train, data.validation, data.test) if not isinstance(split, LoaderSplit)]
    ids = torch.cat([split.ids for split in splits])
    assert ids.dtype == torch.int64
    assert len(ids.unique()) == len(ids)
    for split in splits:
        rows = torch.tensor([len(split) - 1, 0])
        first, second = (split.batch(rows, 0) for _ in range(2))
        assert torch.equal(_flat(first.inputs), _flat(second.inputs))
        assert first.ids.tolist() == split.ids[rows].tolist()
        single = split.batch(rows[:1], 0)
        assert torch.equal(_flat(single.inputs), _flat(first.inputs)[:1])
        assert torch.equal(single.labels, first.labels[:1])


def _flat(inputs):
    """Return all tensors of the inputs, flattened and concatenated: (batch, numbers)."""
    if isinstance(inputs, torch.Tensor):
        return inputs.flatten(1)
    values = inputs.values() if isinstance(inputs, dict) else inputs
    return torch.cat([_flat(value) for value in values], 1)


def multiclass(random):
    labels = np.arange(30) % 3
    return labels, np.eye(3)[labels] * 8 - 4, ("a", "b", "c")


def many_classes(random):
    labels = np.arange(30)
    return labels, np.eye(200)[labels] * 8 - 4, tuple(map(str, range(200)))


def multilabel(random):
    labels = (random.random((30, 3)) < 0.4).astype(float)
    return labels, labels * 8 - 4, ("a", "b", "c")


def regression(random):
    labels = random.normal(size=(30, 2))
    return labels, labels, ("x", "y")


def boxes(random):
    corners = random.uniform(0, 500, (30, 2, 2))
    labels = np.concatenate([corners, corners + 90, random.integers(1, 3, (30, 2, 1))], 2)
    return labels, np.concatenate([labels, random.uniform(0.1, 1, (30, 2, 1))], 2), ("a", "b")


def challenge(random):
    from kdkit_ecg.labels import scored_classes

    labels = (random.random((30, 24)) < 0.4).astype(float)
    return labels, labels * 8 - 4, scored_classes(2020).names


# Functions that return labels, correct outputs and the class names.
METRICS = {
    "accuracy": multiclass,
    "brier": multilabel,
    "calibration_error": multilabel,
    "cross_entropy": multilabel,
    "macro_f1": multilabel,
    "micro_f1": multilabel,
    "macro_auprc": multilabel,
    "macro_auroc": multilabel,
    "mae": regression,
    "map": boxes,
    "mean_iou": multilabel,
    "mrr": many_classes,
    "mse": regression,
    "ndcg": many_classes,
    "nearest_neighbours": multiclass,
    "pearson": regression,
    "perplexity": multiclass,
    "r2": regression,
    "challenge_metric": challenge,
    "top_k_accuracy": many_classes,
}


def correct_for(make):
    """Return correct predictions for the labels of one of the functions above."""
    labels, outputs, classes = make(np.random.default_rng(0))
    return Predictions(labels=labels, outputs=outputs, classes=classes)


# The options of check_metric for the kinds of labels that each metric takes.
ONE_CLASS = [{"position_dims": dims} for dims in (0, 1, 2)]
ANY_CLASSES = [*ONE_CLASS, *(options | PER_LABEL for options in ONE_CLASS)]
PER_SAMPLE = [{}, PER_LABEL]
NUMBERS = [{"task": "regression"}]
METRIC_OPTIONS = {
    "accuracy": ONE_CLASS,
    "brier": PER_SAMPLE,
    "calibration_error": PER_SAMPLE,
    "cross_entropy": ANY_CLASSES,
    "macro_f1": ANY_CLASSES,
    "micro_f1": ANY_CLASSES,
    "macro_auprc": PER_SAMPLE,
    "macro_auroc": PER_SAMPLE,
    "mae": NUMBERS,
    "map": [{"task": "regression", "predictions": correct_for(boxes)}],
    "mean_iou": ANY_CLASSES,
    "mrr": [*ONE_CLASS, PER_LABEL],
    "mse": NUMBERS,
    "ndcg": [*ONE_CLASS, PER_LABEL],
    "nearest_neighbours": [{}],
    "pearson": NUMBERS,
    "perplexity": ONE_CLASS,
    "r2": NUMBERS,
    "challenge_metric": [PER_LABEL | {"predictions": correct_for(challenge)}],
    "top_k_accuracy": ONE_CLASS,
}


@pytest.mark.parametrize("name", names("metrics"))
def test_metrics_keep_their_contract(name):
    for options in case(METRIC_OPTIONS, "metrics", name):
        check_metric(registry("metrics")[name](), **options)


@pytest.mark.parametrize("name", names("metrics"))
def test_metrics_improve_with_correct_outputs_and_do_not_change_themselves(name):
    metric = registry("metrics")[name]()
    labels, correct, classes = case(METRICS, "metrics", name)(np.random.default_rng(0))
    assert isinstance(metric, Metric)
    values = []
    columns = slice(4 if name == "map" else None)  # of boxes, the coordinates; the others are a class and a score
    for noise in (0.0, 3.0, 30.0):
        outputs = correct.copy()
        outputs[..., columns] += noise * np.random.default_rng(1).normal(size=outputs[..., columns].shape)
        predictions = Predictions(labels=labels, outputs=outputs, classes=classes)
        before = repr(metric)
        values.append(metric.fit(predictions).compute(predictions).value)
        assert repr(metric) == before
    best = 0 if lower_is_better(metric) and name != "perplexity" else 1
    tolerance = 0.02 if lower_is_better(metric) else 1e-6  # logits of +-4 are not fully confident
    assert values[0] == pytest.approx(best, abs=tolerance)
    assert is_better(metric, values[0], values[1])
    assert is_better(metric, values[1], values[2])


@pytest.mark.parametrize("name", names("loggers"))
def test_loggers_implement_hooks_and_need_no_arguments(name):
    factory = registry("loggers")[name]
    assert any(hasattr(getattr(factory, hook, None), "kdkit_impl") for hook in vars(hooks))
    required = [
        parameter.name
        for parameter in inspect.signature(factory).parameters.values()
        if parameter.default is parameter.empty
    ]
    assert not required  # `kdkit run FILE --log NAME` passes none
    assert factory.__doc__


@pytest.mark.parametrize("name", names("exporters"))
def test_exporters_need_no_arguments_and_name_their_files(name):
    exporter = registry("exporters")[name]()
    assert isinstance(exporter, Exporter)
    assert exporter.suffix.startswith(".")
    assert not {*exporter.label} & {*"/."}
    assert type(exporter).__doc__


def test_every_registry_has_a_contract():
    tested = {name.removeprefix("test_").split("_")[0] for name in globals() if name.startswith("test_")}
    assert set(REGISTRIES) <= tested
