"""Convolutions with channels last have the values and gradients of torch, and are used only if they are faster."""

import copy
import itertools

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.functional import conv1d, pad

from kdkit.utils.captured import captured_step
from kdkit_ecg.models import LRHNet, SEResNet, channels_last
from kdkit_ecg.models.channels_last import BatchNorm1d, Conv1d, SameConv1d, is_channels_last, mean_over_time
from kdkit_ecg.models.channels_last_blocks import convolve_blocks, fits_blocks
from kdkit_ecg.models.channels_last_kernel import ChannelsLastConvolution

PADS = [(0, 0), (3, 4), (2, 2), (9, 0), (0, 6)]
SHAPES = list(itertools.product([1, 2, 7, 8], [1, 2, 3, 5], PADS))


@pytest.fixture(autouse=True)
def use_channels_last_for_any_size(monkeypatch):
    monkeypatch.setattr(channels_last, "SMALLEST_SIGNAL", 1)


def random_arguments(kernel, length, batch=2, inputs=3, outputs=2):
    """Return a signal, a weight and a bias, in double precision."""
    generator = torch.Generator().manual_seed(length)
    shapes = (batch, inputs, length), (outputs, inputs, kernel), (outputs,)
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("length", [1, 2, 9, 16])
def test_values_and_gradients_are_those_of_torch(length):
    # Without those whose kernel is longer than the padded signal, which torch refuses.
    valid = [(kernel, stride, pads) for kernel, stride, pads in SHAPES if length + sum(pads) >= kernel]
    for (kernel, stride, pads), batch in itertools.product(valid, (1, 3)):
        arguments = random_arguments(kernel, length, batch)
        output = ChannelsLastConvolution.apply(*arguments, stride, pads).squeeze(2)
        expected = conv1d(pad(arguments[0], pads), *arguments[1:], stride)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
        weights = torch.randn_like(expected)
        gradients, expected_gradients = (torch.autograd.grad(y, arguments, weights) for y in (output, expected))
        for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride"), [(8, 1), (8, 2), (1, 2)])
def test_gradients_can_be_differentiated_again(kernel, stride):
    pads = (kernel - 1) // 2, kernel // 2
    arguments = random_arguments(kernel, 5, inputs=1)
    assert torch.autograd.gradgradcheck(lambda *args: ChannelsLastConvolution.apply(*args, stride, pads), arguments)


def test_only_the_required_gradients_are_computed():
    signal, weight, bias = random_arguments(8, 9)
    ChannelsLastConvolution.apply(signal.detach(), weight, None, 1, (3, 4)).sum().backward()
    ChannelsLastConvolution.apply(signal, weight.detach(), bias.detach(), 1, (3, 4)).sum().backward()
    assert signal.grad is not None
    assert weight.grad is not None
    assert bias.grad is None


def test_one_short_record_stays_time_last(monkeypatch):
    monkeypatch.undo()
    conv = SameConv1d(3, 4, 8)
    assert is_channels_last(conv(torch.randn(16, 3, 1000)))
    assert not is_channels_last(conv(torch.randn(1, 3, 1000)))


def test_the_output_can_be_changed_in_place():
    conv, signal = SameConv1d(3, 4, 8), torch.randn(2, 3, 21, requires_grad=True)
    expected = conv1d(pad(signal, (3, 4)), conv.weight, conv.bias).relu().sum()
    torch.testing.assert_close(conv(signal).relu_().sum(), expected)
    gradients = torch.autograd.grad(conv(signal).relu_().sum(), signal), torch.autograd.grad(expected, signal)
    torch.testing.assert_close(*gradients)


def test_an_autocast_around_backward_does_not_reduce_the_precision_of_gradients():
    conv, signal = SameConv1d(3, 4, 8), torch.randn(2, 3, 21, requires_grad=True)
    plain = torch.autograd.grad(conv(signal).square().sum(), [signal, conv.weight])
    with torch.autocast("cpu", enabled=False):
        summed = conv(signal).square().sum()
    with torch.autocast("cpu"):
        around = torch.autograd.grad(summed, [signal, conv.weight])
    torch.testing.assert_close(around, plain)


@pytest.mark.filterwarnings("ignore:.*jit.script:FutureWarning")  # from torch itself
def test_forward_mode_gradients_are_those_of_torch():
    conv, signal, direction = SameConv1d(3, 4, 8), torch.randn(2, 3, 21), torch.randn(2, 3, 21)
    with forward_ad.dual_level():
        along = forward_ad.unpack_dual(conv(forward_ad.make_dual(signal, direction))).tangent
    torch.testing.assert_close(along, conv1d(pad(direction, (3, 4)), conv.weight))


@pytest.mark.parametrize("layout", ["time last", "channels last", "slice"])
def test_signals_may_have_any_layout_in_memory(layout):
    conv = SameConv1d(3, 4, 8, 2)
    signal = torch.randn(2, 3, 21)
    expected = conv1d(pad(signal, (3, 4)), conv.weight, conv.bias, 2)
    if layout == "channels last":
        signal = signal.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == "slice":
        signal = torch.cat((signal, signal), 1)[:, :3]
    torch.testing.assert_close(conv(signal), expected)


def test_records_of_a_batch_do_not_affect_each_other():
    signal = torch.randn(3, 2, 11, requires_grad=True)
    conv = SameConv1d(2, 4, 8)
    output = conv(signal)
    grad = torch.autograd.grad(output[1].sum(), signal)[0]
    assert grad[1].any()
    assert not grad[0].any()
    assert not grad[2].any()
    with_nan = signal.detach().clone()
    with_nan[0] = float("nan")
    torch.testing.assert_close(conv(with_nan)[1:], output[1:])


@pytest.mark.parametrize("length", [1, 7, 64, 101])
@pytest.mark.parametrize("width", [1, 4, 16])
@pytest.mark.parametrize("training", [True, False])
def test_a_student_has_the_logits_and_gradients_of_torchs_own_layers(length, width, training, monkeypatch):
    torch.manual_seed(length)
    net = LRHNet(3, 5, width=width).double().train(training)
    signal, person = torch.randn(4, 3, length, dtype=torch.float64), torch.rand(4, 5, dtype=torch.float64)
    results = []
    for faster in (True, False):
        monkeypatch.setattr(channels_last, "channels_last_is_faster", lambda *_, faster=faster: faster)
        copied = copy.deepcopy(net)
        logits = copied(signal, person)
        logits.square().sum().backward()
        gradients = [parameter.grad for parameter in copied.parameters() if parameter.grad is not None]
        results.append([logits.detach(), *gradients, *copied.buffers()])
    for value, expected in zip(*results, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12 * (1 + float(expected.abs().max())))


def test_single_precision_logits_are_those_of_torchs_own_layers(monkeypatch):
    torch.manual_seed(0)
    net = LRHNet(3).eval()
    signal, person = torch.randn(4, 3, 1000), torch.rand(4, 5)
    logits = net(signal, person)
    monkeypatch.setattr(channels_last, "channels_last_is_faster", lambda *_: False)
    torch.testing.assert_close(logits, net(signal, person), rtol=0, atol=1e-5)


def test_features_and_their_gradients_stay_channels_last_through_a_student():
    net = LRHNet(3, width=4)
    norms = [module for module in net.modules() if isinstance(module, BatchNorm1d)]
    features = []
    for norm in norms:
        norm.register_forward_hook(lambda _, args, output: features.extend((args[0], output)))
        norm.register_full_backward_hook(lambda _, grads, output_grads: features.extend((grads[0], output_grads[0])))
    net(torch.randn(2, 3, 32), torch.rand(2, 5)).sum().backward()
    # Of each norm: input, output, and the gradients of both.
    assert len(features) == 4 * len(norms) == 24
    assert all(is_channels_last(feature) for feature in features)


def test_only_single_precision_on_a_cpu_is_channels_last(monkeypatch):
    conv, signal = SameConv1d(3, 4, 8), torch.randn(2, 3, 16)
    assert is_channels_last(conv(signal))
    assert not is_channels_last(copy.deepcopy(conv).double()(signal.double()))
    assert not is_channels_last(copy.deepcopy(conv).to("meta")(signal.to("meta")))
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_channels_last(conv(signal))
    assert "ChannelsLast" not in str(torch.export.export(conv, (signal,)).graph)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not is_channels_last(conv(signal))


@pytest.mark.slow
def test_a_compiled_student_has_the_same_gradients():
    torch.compiler.reset()
    net, signal, person = LRHNet(2, 3, width=2), torch.randn(3, 2, 16), torch.rand(3, 5)
    gradients = []
    for student in (copy.deepcopy(net), torch.compile(copy.deepcopy(net), backend="aot_eager", fullgraph=True)):
        student(signal, person).square().sum().backward()
        gradients.append([parameter.grad for parameter in student.parameters()])
    torch.compiler.reset()
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_a_student_works_with_torch_func():
    net = LRHNet(2, 3, width=2).eval()
    signal, person = torch.randn(3, 2, 16), torch.rand(3, 5)

    def loss(weights, signal, person):
        return torch.func.functional_call(net, weights, (signal[None], person[None])).square().sum()

    weights = {name: parameter.detach() for name, parameter in net.named_parameters()}
    per_record = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, signal, person)
    net(signal, person).square().sum().backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(per_record[name].sum(0), parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "message"), [((2, 4, 16), "channels"), ((2, 3, 0), "size"), ((3,), "input")])
def test_invalid_shapes_are_refused_with_torchs_own_message(shape, message):
    with pytest.raises(RuntimeError, match=message):
        Conv1d(3, 4, 8)(torch.zeros(shape))


def test_a_mean_over_time_is_that_of_torch_and_its_gradient_has_the_layout_of_the_features():
    for features in (torch.randn(2, 3, 5), torch.randn(2, 5, 3).transpose(1, 2)):
        leaf = features.clone().requires_grad_()  # clone keeps the layout
        mean = mean_over_time(leaf)
        torch.testing.assert_close(mean, features.mean(-1))
        (grad,) = torch.autograd.grad(mean.square().sum(), leaf)
        assert is_channels_last(grad) == is_channels_last(features)


@pytest.mark.parametrize(
    "make", [lambda: LRHNet(leads=3), lambda: SEResNet(leads=3, width=8)], ids=["LRHNet", "SEResNet"]
)
@pytest.mark.parametrize("length", [320, 333])  # with blocks of steps and without
def test_the_layout_on_a_gpu_gives_the_outputs_and_gradients_of_torch(make, length, monkeypatch):
    torch.manual_seed(0)
    net = make().double().eval()
    inputs = torch.randn(4, 3, length, dtype=torch.float64), torch.rand(4, 5, dtype=torch.float64)

    def outputs_and_gradients():
        outputs = net(*inputs)
        return outputs, torch.autograd.grad(outputs.square().sum(), list(net.parameters()))

    for layer in net.modules():
        if isinstance(layer, Conv1d):
            layer.on_cpu = True
    plain = outputs_and_gradients()
    monkeypatch.setattr(channels_last, "channels_last_on_cuda", lambda signal: True)
    torch.testing.assert_close(outputs_and_gradients(), plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel", [1, 2, 7, 8])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("outputs", [1, 16, 33, 70])
def test_a_convolution_in_blocks_has_the_values_and_gradients_of_torch(kernel, stride, outputs):
    fitting = 0
    for total, length in itertools.product(range(kernel + 2), (384, 385)):
        left = min(total, kernel // 2 + 1)
        pads = left, total - left
        arguments = random_arguments(kernel, length, outputs=outputs)
        if not fits_blocks(*arguments[:2], stride, pads):
            continue
        output = convolve_blocks(*arguments, stride, left)
        expected = conv1d(pad(arguments[0], pads), *arguments[1:], stride)
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
        weights = torch.randn_like(expected)
        gradients, expected_gradients = (torch.autograd.grad(y, arguments, weights) for y in (output, expected))
        torch.testing.assert_close(gradients, expected_gradients, rtol=0, atol=1e-10)
        fitting += 1
    assert fitting


def test_a_convolution_in_blocks_keeps_channels_last():
    signal, weight, bias = random_arguments(8, 64, outputs=16)
    output = convolve_blocks(signal.transpose(1, 2).contiguous().transpose(1, 2), weight, bias, 1, 3)
    assert is_channels_last(output)


def test_blocks_fit_lengths_that_they_divide():
    weight = torch.empty(16, 3, 8)  # four steps of 16 channels
    assert fits_blocks(torch.empty(2, 3, 64), weight, 1, (3, 4))
    assert fits_blocks(torch.empty(2, 3, 64), weight, 2, (3, 4))
    assert not fits_blocks(torch.empty(2, 3, 62), weight, 1, (3, 4))
    assert not fits_blocks(torch.empty(2, 3, 60), weight, 2, (3, 4))
    assert not fits_blocks(torch.empty(2, 3, 64), weight, 1, (0, 0))  # an output of 57 steps
    assert not fits_blocks(torch.empty(2, 12, 64), weight, 1, (3, 4))  # torch names the channels in its error


def test_captured_steps_and_large_batches_keep_channels_last_on_a_gpu():
    device = torch.device("cuda", 0)
    with FakeTensorMode():
        signal, weight = torch.empty(4, 3, 64, device=device), torch.empty(16, 3, 8, device=device)
        large = torch.empty(256, 3, 4096, device=device)
        assert not is_channels_last(channels_last.convolve(signal, weight, None, 1, (3, 4)))
        assert is_channels_last(channels_last.convolve(large, weight, None, 1, (3, 4)))
        with captured_step():
            assert is_channels_last(channels_last.convolve(signal, weight, None, 1, (3, 4)))
