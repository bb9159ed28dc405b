"""A convolution with the channels last is torch's own: values, gradients of both orders, and when it is chosen."""

import copy
import itertools

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.functional import conv1d, pad

from kdkit_ecg.models import LRHNet, channels_last
from kdkit_ecg.models.channels_last import BatchNorm1d, Conv1d, SameConv1d, channels_lie_last, mean_over_time
from kdkit_ecg.models.channels_last_kernel import ChannelsLast

SIDES = [(0, 0), (3, 4), (2, 2), (9, 0), (0, 6)]
FORMS = list(itertools.product([1, 2, 7, 8], [1, 2, 3, 5], SIDES))


@pytest.fixture(autouse=True)
def small_signals_are_worth_it(monkeypatch):
    monkeypatch.setattr(channels_last, "WORTH", 1)


def parts(form, length, number=2, inputs=3, outputs=2):
    generator = torch.Generator().manual_seed(length)
    shapes = (number, inputs, length), (outputs, inputs, form[0]), (outputs,)
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("length", [1, 2, 9, 16])
def test_values_and_gradients_are_those_of_torch(length):
    taken = [form for form in FORMS if length + sum(form[2]) >= form[0]]
    for (kernel, stride, sides), number in itertools.product(taken, (1, 3)):
        given = parts((kernel, stride, sides), length, number)
        mine = ChannelsLast.apply(*given, stride, sides).squeeze(2)
        theirs = conv1d(pad(given[0], sides), *given[1:], stride)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
        weights = torch.randn_like(theirs)
        pairs = zip(torch.autograd.grad(mine, given, weights), torch.autograd.grad(theirs, given, weights), strict=True)
        for got, wanted in pairs:
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride"), [(8, 1), (8, 2), (1, 2)])
def test_gradients_can_be_differentiated_again(kernel, stride):
    sides = (kernel - 1) // 2, kernel // 2
    given = parts((kernel, stride, sides), 5, inputs=1)
    assert torch.autograd.gradgradcheck(lambda *each: ChannelsLast.apply(*each, stride, sides), given)


def test_only_the_gradients_that_are_asked_for_are_made():
    signal, weight, bias = parts((8, 1, (3, 4)), 9)
    ChannelsLast.apply(signal.detach(), weight, None, 1, (3, 4)).sum().backward()
    ChannelsLast.apply(signal, weight.detach(), bias.detach(), 1, (3, 4)).sum().backward()
    assert all(each.grad is not None for each in (signal, weight))
    assert bias.grad is None


def test_a_short_record_alone_stays_as_it_lies(monkeypatch):
    monkeypatch.undo()
    conv = SameConv1d(3, 4, 8)
    assert channels_lie_last(conv(torch.randn(16, 3, 1000)))
    assert not channels_lie_last(conv(torch.randn(1, 3, 1000)))


def test_what_follows_may_change_the_answer_in_place():
    conv, signal = SameConv1d(3, 4, 8), torch.randn(2, 3, 21, requires_grad=True)
    wanted = conv1d(pad(signal, (3, 4)), conv.weight, conv.bias).relu().sum()
    torch.testing.assert_close(conv(signal).relu_().sum(), wanted)
    taken = torch.autograd.grad(conv(signal).relu_().sum(), signal), torch.autograd.grad(wanted, signal)
    torch.testing.assert_close(*taken)


def test_gradients_do_not_lose_precision_to_an_autocast_around_backward():
    conv, signal = SameConv1d(3, 4, 8), torch.randn(2, 3, 21, requires_grad=True)
    plain = torch.autograd.grad(conv(signal).square().sum(), [signal, conv.weight])
    with torch.autocast("cpu", enabled=False):
        summed = conv(signal).square().sum()
    with torch.autocast("cpu"):
        around = torch.autograd.grad(summed, [signal, conv.weight])
    torch.testing.assert_close(around, plain)


@pytest.mark.filterwarnings("ignore:.*jit.script:FutureWarning")  # of torch, which compiles rules of its own
def test_a_direction_can_be_followed_forwards():
    conv, signal, direction = SameConv1d(3, 4, 8), torch.randn(2, 3, 21), torch.randn(2, 3, 21)
    with forward_ad.dual_level():
        along = forward_ad.unpack_dual(conv(forward_ad.make_dual(signal, direction))).tangent
    torch.testing.assert_close(along, conv1d(pad(direction, (3, 4)), conv.weight))


@pytest.mark.parametrize("given", ["time last", "channels last", "part of something wider"])
def test_signals_may_lie_in_memory_in_any_way(given):
    conv = SameConv1d(3, 4, 8, 2)
    signal = torch.randn(2, 3, 21)
    wanted = conv1d(pad(signal, (3, 4)), conv.weight, conv.bias, 2)
    if given == "channels last":
        signal = signal.transpose(1, 2).contiguous().transpose(1, 2)
    elif given == "part of something wider":
        signal = torch.cat((signal, signal), 1)[:, :3]
    torch.testing.assert_close(conv(signal), wanted)


def test_what_does_not_exist_beyond_a_record_does_not_reach_its_neighbours():
    signal = torch.randn(3, 2, 11, requires_grad=True)
    conv = SameConv1d(2, 4, 8)
    answer = conv(signal)
    grad = torch.autograd.grad(answer[1].sum(), signal)[0]
    assert grad[1].any()
    assert not grad[0].any()
    assert not grad[2].any()
    spoilt = signal.detach().clone()
    spoilt[0] = float("nan")
    torch.testing.assert_close(conv(spoilt)[1:], answer[1:])


@pytest.mark.parametrize("length", [1, 7, 64, 101])
@pytest.mark.parametrize("width", [1, 4, 16])
@pytest.mark.parametrize("training", [True, False])
def test_a_student_answers_and_learns_as_with_torchs_own_layers(length, width, training, monkeypatch):
    torch.manual_seed(length)
    net = LRHNet(3, 5, width=width).double().train(training)
    signal, person = torch.randn(4, 3, length, dtype=torch.float64), torch.rand(4, 5, dtype=torch.float64)
    found = []
    for chosen in (True, False):
        monkeypatch.setattr(channels_last, "_gains", lambda *_, chosen=chosen: chosen)
        copied = copy.deepcopy(net)
        logits = copied(signal, person)
        logits.square().sum().backward()
        gradients = [each.grad for each in copied.parameters() if each.grad is not None]
        found.append([logits.detach(), *gradients, *copied.buffers()])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12 * (1 + float(theirs.abs().max())))


def test_single_precision_logits_are_those_of_torchs_own_layers(monkeypatch):
    torch.manual_seed(0)
    net = LRHNet(3).eval()
    signal, person = torch.randn(4, 3, 1000), torch.rand(4, 5)
    mine = net(signal, person)
    monkeypatch.setattr(channels_last, "_gains", lambda *_: False)
    torch.testing.assert_close(mine, net(signal, person), rtol=0, atol=1e-5)


def test_features_and_their_gradients_stay_channels_last_through_a_student():
    net = LRHNet(3, width=4)
    norms = [module for module in net.modules() if isinstance(module, BatchNorm1d)]
    seen = []
    for norm in norms:
        norm.register_forward_hook(lambda _, args, output: seen.extend((args[0], output)))
        norm.register_full_backward_hook(lambda _, given, taken: seen.extend((given[0], taken[0])))
    net(torch.randn(2, 3, 32), torch.rand(2, 5)).sum().backward()
    assert len(seen) == 4 * len(norms) == 24
    assert all(channels_lie_last(each) for each in seen)


def lies_last_after(conv, signal):
    return channels_lie_last(conv(signal))


def test_single_precision_on_a_processor_alone_lies_channels_last(monkeypatch):
    conv, signal = SameConv1d(3, 4, 8), torch.randn(2, 3, 16)
    assert lies_last_after(conv, signal)
    assert not lies_last_after(copy.deepcopy(conv).double(), signal.double())
    assert not lies_last_after(copy.deepcopy(conv).to("meta"), signal.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not lies_last_after(conv, signal)
    assert "ChannelsLast" not in str(torch.export.export(conv, (signal,)).graph)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not lies_last_after(conv, signal)


def test_a_compiled_student_learns_as_the_other():
    torch.compiler.reset()
    net, signal, person = LRHNet(2, 3, width=2), torch.randn(3, 2, 16), torch.rand(3, 5)
    found = []
    for chosen in (copy.deepcopy(net), torch.compile(copy.deepcopy(net), backend="aot_eager", fullgraph=True)):
        chosen(signal, person).square().sum().backward()
        found.append([each.grad for each in chosen.parameters()])
    torch.compiler.reset()
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_functions_of_torch_func_take_a_student():
    net = LRHNet(2, 3, width=2).eval()
    signal, person = torch.randn(3, 2, 16), torch.rand(3, 5)

    def loss(weights, signal, person):
        return torch.func.functional_call(net, weights, (signal[None], person[None])).square().sum()

    weights = {name: each.detach() for name, each in net.named_parameters()}
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, signal, person)
    net(signal, person).square().sum().backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(each[name].sum(0), parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("signal", "said"), [((2, 4, 16), "channels"), ((2, 3, 0), "size"), ((3,), "input")])
def test_signals_that_do_not_fit_are_refused_in_torchs_own_words(signal, said):
    with pytest.raises(RuntimeError, match=said):
        Conv1d(3, 4, 8)(torch.zeros(signal))


def test_a_mean_over_time_is_that_of_torch_and_its_gradient_lies_as_the_features_do():
    for features in (torch.randn(2, 3, 5), torch.randn(2, 5, 3).transpose(1, 2)):
        given = features.clone().requires_grad_()
        mean = mean_over_time(given)
        torch.testing.assert_close(mean, features.mean(-1))
        (grad,) = torch.autograd.grad(mean.square().sum(), given)
        assert channels_lie_last(grad) == channels_lie_last(features)
