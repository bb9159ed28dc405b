"""The ECG networks have the sizes of the paper, accept signals of any length, and can be tapped at every stage."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdkit import KdkitError, Net
from kdkit.teachers.cache.key import compute_key
from kdkit_ecg import Leads
from kdkit_ecg.models import CNN1d, LRHNet, LRHNetS, SEResNet
from kdkit_ecg.models.blocks import SqueezeExcite

NETS = [LRHNet, LRHNetS, SEResNet, CNN1d]
NARROW = {LRHNet: 4, LRHNetS: 4, SEResNet: 4, CNN1d: 8}
PARAMETERS = {
    SEResNet: {12: 8_837_060, 6: 8_831_300, 4: 8_829_380, 3: 8_828_420, 2: 8_827_460},
    CNN1d: {12: 1_055_300, 6: 993_860, 3: 963_140, 2: 952_900},
    LRHNet: {12: 84_516, 6: 83_748, 4: 83_492, 3: 83_364, 2: 83_236},
}
SIZES = [(net, leads, count) for net, row in PARAMETERS.items() for leads, count in row.items()]

every_network = pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)


def narrow(kind, leads=2, classes=3, **options):
    torch.manual_seed(0)
    return kind(leads, classes, width=NARROW[kind], **options)


def batch(length, leads=2, size=2):
    generator = torch.Generator().manual_seed(length)
    signal = torch.randn(size, leads, length, generator=generator)
    return signal, torch.rand(size, 5, generator=generator)


@pytest.mark.parametrize(("kind", "leads", "count"), SIZES)
def test_networks_have_the_papers_number_of_parameters(kind, leads, count):
    # On the meta device, weights take no memory and no time.
    with torch.device("meta"):
        net = kind(leads)
    assert sum(parameter.numel() for parameter in net.parameters()) == count


def test_the_student_for_small_devices_keeps_its_budget_at_twelve_leads_of_4096_samples():
    with torch.device("meta"):
        net = LRHNetS(12).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 12, 4096), torch.empty(1, 5))
    assert sum(parameter.numel() for parameter in net.parameters()) == 80_116  # at most 85,000
    assert counter.get_total_flops() // 2 == 22_079_026  # multiply-adds, at most 30 million


@pytest.mark.parametrize("preset", ["corrected", "paper"])
@pytest.mark.parametrize("kind", [LRHNet, CNN1d])
def test_presets_have_the_same_weights(kind, preset):
    keys = {key: value.shape for key, value in narrow(kind).state_dict().items()}
    assert {key: value.shape for key, value in narrow(kind, preset=preset).state_dict().items()} == keys


@every_network
def test_networks_accept_any_length(kind):
    net = narrow(kind).eval()
    with torch.inference_mode():
        for length in [1, 2, 3, 5, 17, 64, 97, 98, 99, *range(100, 1004, 43), 1000, 1001, 1002, 1003]:
            logits = net(*batch(length))
            assert logits.shape == (2, 3)
            assert logits.isfinite().all()


@pytest.mark.parametrize("length", [101, 1003])
@every_network
def test_odd_lengths_have_finite_gradients(kind, length):
    net = narrow(kind)
    net(*batch(length)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize(("length", "halves"), [(100, (50, 25)), (101, (51, 26)), (102, (51, 26)), (103, (52, 26))])
def test_the_student_halves_lengths_and_rounds_up(length, halves):
    net = narrow(LRHNet)
    first = net.block2(net.stem(batch(length)[0]))
    assert (first.shape[-1], net.block3(first).shape[-1]) == halves


def test_the_last_sample_of_an_odd_signal_affects_the_student():
    net = narrow(LRHNet).eval()
    signal, person = batch(101)
    changed = signal.clone()
    changed[..., -1] += 1
    assert not torch.allclose(net(signal, person), net(changed, person))


def test_the_baseline_pads_short_signals_with_zeros():
    net = narrow(CNN1d).eval()
    signal, person = batch(60)
    filled = torch.cat((signal, torch.zeros(2, 2, 38)), dim=-1)
    torch.testing.assert_close(net(signal, person), net(filled, person), rtol=0, atol=0)


@pytest.mark.parametrize("width", [1, 3, 7, 20])
@every_network
def test_networks_accept_any_width(kind, width):
    net = kind(3, 5, width=width).eval()
    assert net(*batch(120, leads=3)).shape == (2, 5)


@every_network
def test_gradients_reach_every_parameter(kind):
    net = narrow(kind)
    for module in net.modules():
        if isinstance(module, SqueezeExcite):
            module.activation = nn.LeakyReLU()  # a squeeze of one or two channels may start with a dead ReLU
    net(*batch(400, size=8)).square().sum().backward()
    unreached = [name for name, parameter in net.named_parameters() if not parameter.grad.any()]
    assert unreached == []


@every_network
def test_the_person_affects_the_logits(kind):
    net = narrow(kind).eval()
    signal, person = batch(200)
    assert not torch.allclose(net(signal, person), net(signal, 1 - person))


@every_network
@pytest.mark.parametrize("option", [{"leads": 0}, {"leads": -1}, {"classes": 0}, {"width": 0}, {"width": 1.5}])
def test_invalid_sizes_are_refused_by_name(kind, option):
    (name,) = option
    with pytest.raises(KdkitError, match=f"{name} must be an integer of at least 1"):
        kind(**option)


@pytest.mark.parametrize("kind", [SEResNet, CNN1d])
@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_an_invalid_dropout_is_refused(kind, dropout):
    with pytest.raises(KdkitError, match=r"dropout must be a number in \[0, 1\)"):
        kind(dropout=dropout)


@pytest.mark.parametrize("kind", [LRHNet, CNN1d])
def test_an_unknown_preset_is_refused_with_the_known_ones(kind):
    with pytest.raises(KdkitError, match="preset must be 'corrected' or 'paper'; got 'papr'"):
        kind(preset="papr")


def test_the_corrected_student_has_the_relu_that_the_paper_preset_leaves_out():
    corrected = narrow(LRHNet).eval()
    paper = narrow(LRHNet, preset="paper").eval()
    paper.load_state_dict(corrected.state_dict())
    inputs = []
    for net in (corrected, paper):
        net.classifier.register_forward_hook(lambda _, args, output: inputs.append(args[0]))
        net(*batch(100))
    assert inputs[1].min() < 0
    torch.testing.assert_close(inputs[0], inputs[1].relu(), rtol=0, atol=0)


def test_the_baseline_applies_dropout_to_logits_in_the_paper_preset_only():
    signal, person = batch(400, size=64)
    dropped = {
        preset: (narrow(CNN1d, preset=preset).train()(signal, person) == 0).float().mean().item()
        for preset in ("corrected", "paper")
    }
    assert dropped["corrected"] == 0
    assert dropped["paper"] == pytest.approx(0.6, abs=0.15)


@every_network
def test_no_activation_works_in_place(kind):
    assert not any(module.inplace for module in narrow(kind).modules() if isinstance(module, (nn.ReLU, nn.Dropout)))


@every_network
def test_every_activation_runs_exactly_once(kind):
    net = narrow(kind).eval()
    runs = []
    activations = [module for module in net.modules() if isinstance(module, nn.ReLU)]
    for activation in activations:
        activation.register_forward_hook(lambda module, _, __: runs.append(module))
    net(*batch(200))
    assert len(runs) == len(set(runs)) == len(activations)


STAGES = [
    (LRHNet, ["stem", "block1", "block2", "block3", "pool"], [(4, 200), (4, 200), (8, 100), (16, 50), (16,)]),
    (LRHNetS, ["stem", "block1", "block2", "block3", "pool"], [(4, 50), (4, 50), (8, 25), (16, 13), (16,)]),
    (
        SEResNet,
        ["stem", "max_pool", "group1", "group2", "group3", "group4", "pool"],
        [(4, 100), (4, 50), (4, 50), (8, 25), (16, 13), (32, 7), (32,)],
    ),
    (CNN1d, ["stage1", "stage2", "stage3", "stage4", "pool"], [(8, 4), (16, 1), (16, 1), (32, 1), (32,)]),
]


@pytest.mark.parametrize(("kind", "stages", "shapes"), STAGES)
def test_every_stage_can_be_tapped_by_name(kind, stages, shapes):
    net = narrow(kind).eval()
    shapes_seen = []
    for stage in stages:
        getattr(net, stage).register_forward_hook(lambda _, __, output: shapes_seen.append(tuple(output.shape[1:])))
    net(*batch(200))
    assert shapes_seen == shapes


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (LRHNet, "block3.activation"),
        (LRHNetS, "block3.activation"),
        (SEResNet, "group4.block2.activation"),
        (CNN1d, "stage1.activation"),
    ],
)
def test_the_input_of_an_activation_is_the_pre_activation(kind, path):
    net = narrow(kind).eval()
    tensors = []
    net.get_submodule(path).register_forward_hook(lambda _, args, output: tensors.extend((args[0], output)))
    net(*batch(400))
    before, after = tensors
    assert before.min() < 0
    assert torch.equal(before.relu(), after)


@pytest.mark.parametrize(
    "kind", [LRHNet, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (LRHNetS, SEResNet, CNN1d))]
)
def test_networks_compile_to_one_graph(kind):
    net = narrow(kind).eval()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(*batch(128)), net(*batch(128)))


@every_network
def test_the_outputs_of_a_network_can_be_cached_in_a_checkout_of_kdkit(kind):
    # There, the code of the network is part of the key, with everything that it refers to.
    net = Net("teacher", narrow(kind), view=Leads(2), trained=True)
    assert compute_key(net, (), data={}, settings={}) == compute_key(net, (), data={}, settings={})
