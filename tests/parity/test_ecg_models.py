"""Compare the ECG nets to the authors' code with the same weights: logits, features, sizes and training steps."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, kl_div

from kdkit_ecg.models import CNN1d, LRHNet, SEResNet

PRIME = 2147483647
PERSONS = [[0.63, 1, 0, 1, 1], [0.07, 1, 1, 0, 1], [0, 0, 0, 0, 0], [0, 0, 1, 0, 1]]
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
NAMES = ("lrhnet", "seresnet18", "cnn1d")
CASES = [(name, leads, 4096) for name in NAMES for leads in (12, 6, 3, 2)]
CASES += [(name, leads, 5000) for name in NAMES for leads in (12, 2)]

# The suite has time for two numbers of leads and one length; other leads differ in the first layer only.
with_cases = pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] * (case[1:] not in ((12, 4096), (2, 5000)))) for case in CASES],
    ids=lambda case: "{}_{}lead_{}".format(*case),
)
with_dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float64", "float32"])


@with_cases
@with_dtypes
def test_logits_equal_the_reference(shared: Path, case, dtype):
    logits, _, _ = run_net(case, dtype)
    expected = arrays(shared)["{}_{}lead_{}/".format(*case) + f"logits_{str(dtype).removeprefix('torch.')}"]
    assert_close(logits, expected, TOLERANCE[dtype])


@with_cases
@with_dtypes
def test_features_equal_the_reference(shared: Path, case, dtype):
    _, after, before = run_net(case, dtype)
    expected = golden(shared)["models"][case[0]]["{}_{}lead_{}".format(*case)]
    assert_summaries(after, expected["features_post_activation"], TOLERANCE[dtype])
    assert_summaries(before, expected["features_pre_activation"], TOLERANCE[dtype])


@pytest.mark.parametrize("leads", [12, 2])
@with_dtypes
def test_stored_students_give_the_recorded_logits(shared: Path, leads, dtype):
    stored = np.load(shared / "golden" / "ecg" / f"lrhnet_{leads}lead_stored.npz")
    expected = golden(shared)["models"]["lrhnet"][f"stored_{leads}lead"]
    net = LRHNet(leads, preset="paper")
    values = [torch.from_numpy(stored[key]) for key in stored.files if key.startswith("state/")]
    net.load_state_dict(dict(zip(net.state_dict(), values, strict=True)))
    signal, person = (torch.from_numpy(stored[key]) for key in ("input", "age_sex"))
    logits, after, before = run_with_hooks(net, "lrhnet", signal, person, dtype)
    assert_close(logits, stored["expected_logits"], TOLERANCE[dtype])
    assert_summaries(after, expected["features_post_activation"], TOLERANCE[dtype])
    assert_summaries(before, expected["features_pre_activation"], TOLERANCE[dtype])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("leads", [12, 2])
def test_weights_are_in_the_order_of_the_reference(shared: Path, name, leads):
    expected = golden(shared)["models"][name]
    state = fill_weights(build(name, leads), number=11).state_dict()
    order = expected[f"state_dict_{leads}lead"]
    kinds = [key.rpartition(".")[2] for key in state]
    assert kinds == [key.rpartition(".")[2] for key, _, _ in order]
    assert [list(value.shape) for value in state.values()] == [shape for _, shape, _ in order]
    checks = expected[f"{name}_{leads}lead_4096"]["filled_tensor_checks"]
    for value, (key, _, _) in zip(state.values(), order, strict=True):
        exact = value.double().flatten()
        assert exact[:3].tolist() == pytest.approx(checks[key]["first3"], rel=1e-12)
        assert exact.sum().item() == pytest.approx(checks[key]["sum"], rel=1e-9, abs=1e-9)
        assert exact.square().sum().item() == pytest.approx(checks[key]["sumsq"], rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("leads", [12, 6, 3, 2])
def test_numbers_of_parameters_and_operations_equal_the_reference(shared: Path, name, leads):
    expected = golden(shared)["models"][name]["leads"][str(leads)]
    with torch.device("meta"):
        net = build(name, leads)
        assert sum(parameter.numel() for parameter in net.parameters()) == expected["parameters"]
        assert sum(buffer.numel() for buffer in net.buffers()) == expected["buffers"]
        assert multiply_adds(net, leads, 4096) == expected["macs_4096"]
        assert multiply_adds(net, leads, 5000) == expected["macs_5000"]


@pytest.mark.parametrize("name", ["lrhnet", "seresnet18"])
def test_all_lengths_work_those_that_the_reference_refuses_included(shared: Path, name):
    net = build(name, 2)
    for length, _ in golden(shared)["models"][name]["length_works"]:
        with torch.inference_mode():
            assert net(torch.zeros(1, 2, length), torch.zeros(1, 5)).isfinite().all()


def test_the_baseline_pools_the_first_pair_at_every_length_of_the_reference(shared: Path):
    net = build("cnn1d", 2)
    shortest, longest = golden(shared)["models"]["cnn1d"]["length_works_range"]
    for length in (shortest, 3000, longest):
        signal = inputs(1, 2, length, number=11)
        with torch.inference_mode():
            features = net.stage4(net.stage3(net.stage2(net.stage1(signal))))
            assert features.shape[-1] in (2, 3)
            torch.testing.assert_close(net.pool(features), features[..., :2].mean(-1))


@with_dtypes
def test_five_steps_of_distillation_equal_the_recorded_ones(
    shared: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    # The reference ran with plain kernels in float32: one ReLU input of the first step is zero up to rounding, and has
    # the other sign with oneDNN's kernels, after which the steps diverge by up to 3e-3.
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", dtype is torch.float64)
    recorded = golden(shared)["train_steps"]
    net = fill_weights(LRHNet(2, preset="paper"), number=12).to(dtype)
    keys = reference_names(shared, net)
    later = 1e-7 if dtype is torch.float64 else 1e-3
    for number, (step, expected) in enumerate(zip(steps(shared, net), recorded["steps"], strict=True)):
        tolerance = later if number or dtype is torch.float64 else 1e-4
        for name, value in step["terms"].items():
            assert_close(value, expected[name], tolerance)
        for name, value in expected["grad_l2"].items():
            assert_close(step["gradients"][keys[name]], value, tolerance)
        for name, value in expected.get("buffers_after_forward", {}).items():
            assert_summary(net.state_dict()[keys[name]], value, tolerance)
    for name, value in {**recorded["parameters_after"], **recorded["buffers_after"]}.items():
        assert_summary(net.state_dict()[keys[name]], value, later)


def test_five_steps_have_the_recorded_losses_with_the_fastest_float32_kernels(shared: Path):
    net = fill_weights(LRHNet(2, preset="paper"), number=12)
    for number, (step, expected) in enumerate(
        zip(steps(shared, net), golden(shared)["train_steps"]["steps"], strict=True)
    ):
        for name, value in step["terms"].items():
            assert_close(value, expected[name], 1e-3 if number else 1e-4)


def test_the_first_training_logits_equal_the_recorded_ones(shared: Path):
    net = fill_weights(LRHNet(2, preset="paper"), number=12).double().train()
    logits = net(inputs(4, 2, 512, number=12).double(), torch.tensor(PERSONS).double())
    assert_close(logits, arrays(shared)["train_step/logits_step0"], 1e-8)


def reference_names(shared: Path, net: nn.Module) -> dict[str, str]:
    """Return kdkit's name of each of the reference's tensors in a 2-lead student."""
    names = [key for key, _, _ in golden(shared)["models"]["lrhnet"]["state_dict_2lead"]]
    return dict(zip(names, net.state_dict(), strict=True))


def steps(shared: Path, net: nn.Module) -> Iterator[dict[str, dict[str, Tensor]]]:
    """Train as in the recording, in the net's dtype, and yield the loss terms and the gradient norms of each step."""
    dtype = next(net.parameters()).dtype
    batch = inputs(4, 2, 512, number=12).to(dtype), torch.tensor(PERSONS).to(dtype)
    labels, teacher = (torch.from_numpy(arrays(shared)[f"train_step/{key}"]) for key in ("labels", "teacher_logits"))
    optimizer = torch.optim.Adam(net.train().parameters(), lr=3e-3, weight_decay=1e-5)
    for _ in range(5):
        terms = distillation(net(*batch), labels.to(dtype), teacher.to(dtype))
        optimizer.zero_grad()
        terms["loss"].backward()
        yield {"terms": terms, "gradients": {key: value.grad.norm() for key, value in net.named_parameters()}}
        optimizer.step()


def distillation(logits: Tensor, labels: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """Return the loss terms of the authors' vanilla distillation, at T = 7 and without T squared."""
    bce = binary_cross_entropy_with_logits(logits, labels)
    kl = kl_div((logits / 7).log_softmax(1), (teacher / 7).softmax(1), reduction="batchmean")
    return {"bce": bce, "kl": kl, "loss": 0.3 * bce + 0.7 * kl}


@cache
def golden(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "golden" / "ecg" / "models.json").read_text())


@cache
def arrays(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "golden" / "ecg" / "models.npz") as file:
        return dict(file)


@cache
def run_net(case: tuple[str, int, int], dtype: torch.dtype) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    name, leads, length = case
    net = fill_weights(build(name, leads), number=11)
    return run_with_hooks(net, name, inputs(2, leads, length, number=11), torch.tensor(PERSONS[:2]), dtype)


def build(name: str, leads: int) -> nn.Module:
    if name == "seresnet18":
        return SEResNet(leads).eval()
    net = LRHNet(leads, preset="paper") if name == "lrhnet" else CNN1d(leads, preset="paper")
    return net.eval()


def run_with_hooks(
    net: Any, name: str, signal: Tensor, person: Tensor, dtype: torch.dtype
) -> tuple[Tensor, list, list]:
    """Return the logits, the features after each stage, and those before its activation if it has one."""
    net.to(dtype).eval()
    if name == "lrhnet":
        after = [net.stem, net.block1, net.block2, net.block3, net.pool]
        before = {1: net.block1, 2: net.block2, 3: net.block3}
    elif name == "seresnet18":
        groups = [net.group1, net.group2, net.group3, net.group4]
        after = [net.stem, net.max_pool, *groups, net.pool]
        before = {index: group.block2 for index, group in enumerate(groups, 2)}
    else:
        after = [net.stage1, net.stage2, net.stage3, net.stage4, net.pool]
        before = dict(enumerate(after[:4]))
    outputs, activation_inputs = {}, {}
    for index, module in enumerate(after):
        module.register_forward_hook(lambda _, args, output, index=index: outputs.update({index: output}))
    for index, module in before.items():
        module.activation.register_forward_hook(
            lambda _, args, output, index=index: activation_inputs.update({index: args[0]})
        )
    if name == "cnn1d":
        index = len(after)
        net.classifier.register_forward_hook(lambda _, args, output: outputs.update({index: args[0]}))
    with torch.inference_mode():
        logits = net(signal.to(dtype), person.to(dtype))
    features = [outputs[index] for index in sorted(outputs)]
    return logits, features, [activation_inputs.get(index, feature) for index, feature in enumerate(features)]


def multiply_adds(net: nn.Module, leads: int, length: int) -> int:
    """Return the multiply-adds of convolutions and linear layers for one record, without biases."""
    counts = []

    def count(module: Any, _: Any, output: Tensor) -> None:
        counts.append(output.numel() * module.weight[0].numel())

    layers = [module for module in net.modules() if isinstance(module, nn.Conv1d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    net(torch.empty(1, leads, length), torch.empty(1, 5))
    for hook in hooks:
        hook.remove()
    return sum(counts)


def fill_weights(net: nn.Module, number: int) -> nn.Module:
    """Set every weight to the golden formula's value for its position in the state dict."""
    state = net.state_dict()
    net.load_state_dict(
        {key: torch.from_numpy(weight_values(key, n, state[key].shape, number)) for n, key in enumerate(state)}
    )
    return net


@cache  # of the same layers of networks for other numbers of leads
def weight_values(key: str, n: int, shape: torch.Size, number: int) -> np.ndarray:
    kind = key.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return np.array(100)
    v = noise(n, shape.numel(), number).reshape(shape)
    if kind == "weight" and len(shape) > 1:
        v = v * np.sqrt(6 / shape[1:].numel())
    else:
        v = {"weight": 1 + 0.25 * v, "bias": 0.1 * v, "running_mean": 0.2 * v, "running_var": 0.75 + 0.5 * v**2}[kind]
    return v.astype(np.float32)


def noise(n: int, size: int, number: int) -> np.ndarray:
    j = np.arange(size, dtype=np.int64)
    q = (1234567891 * (j * j % PRIME) + 987654321 * j + 1000000007 * (n + 1) + 1618033989 * number) % PRIME
    return 2 * q / PRIME - 1


def inputs(batch: int, leads: int, length: int, number: int) -> Tensor:
    b, c = np.arange(batch)[:, None, None], np.arange(leads)[None, :, None]
    t = np.arange(length)
    slow = 0.8 * np.sin(2 * np.pi * (1.1 + 0.13 * c + 0.07 * b) * t / 257 + 0.4 * c)
    fast = 0.25 * np.sin(2 * np.pi * (11 + c) * t / 257)
    rough = [[noise(5000 + 32 * row + lead, length, number) for lead in range(leads)] for row in range(batch)]
    return torch.from_numpy((slow + fast + 0.2 * np.array(rough)).astype(np.float32))


def assert_summaries(features: list[Tensor], expected: list[dict[str, Any]], tolerance: float) -> None:
    for feature, summary in zip(features, expected, strict=True):
        assert_summary(feature, summary, tolerance)


def assert_summary(tensor: Tensor, expected: dict[str, Any], tolerance: float) -> None:
    exact = tensor.double()
    flat = exact.flatten()
    assert list(tensor.shape) == expected["shape"]
    statistics = [exact.mean(), exact.std(correction=0), exact.min(), exact.max(), exact.norm()]
    assert_close(torch.stack(statistics), [expected[key] for key in ("mean", "std", "min", "max", "l2")], tolerance)
    indices = [i * (len(flat) - 1) // 15 for i in range(16)]
    assert_close(flat[indices], expected["samples"], tolerance)


def assert_close(actual: Tensor, expected: Any, tolerance: float) -> None:
    """Check a tolerance relative to 1 + |expected|."""
    expected = np.asarray(expected, dtype=np.float64)
    error = np.abs(actual.detach().double().numpy() - expected) / (1 + np.abs(expected))
    assert error.max() <= tolerance
