"""Tests of the form of features: where their channels are, as inferred from the layers of the tapped module."""

import copy
import pickle
import re

import pytest
import timm
import torch
from torch import nn
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel

from kdkit import Net, Tap
from kdkit.nets.taps import OpenTaps, describe_layer


def form_of(network, path, *inputs, at="output", **options):
    """Return the shape of the captured feature and the form of its tap, after a pass of the network."""
    tap = Tap(network.get_submodule(path), at, **options)
    with torch.no_grad(), OpenTaps([tap], [Net("net", network)]) as open_taps:
        network(*inputs)
        return tuple(open_taps[tap].shape), tap.form


class Encoder(nn.Module):
    """A transformer on (batch, tokens, features), as users write it."""

    def __init__(self, *, batch_first=True):
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.dropout = nn.Dropout()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.recurrent = nn.LSTM(8, 6, bidirectional=True, batch_first=batch_first)
        self.norm = nn.LayerNorm(8)
        self.activation = nn.GELU()

    def forward(self, inputs):
        tokens = self.norm(self.layer(self.dropout(self.embed(inputs))))
        self.attention(tokens, tokens, tokens, need_weights=False)
        self.recurrent(tokens)
        return self.activation(tokens)


@pytest.mark.parametrize("path", ["embed", "layer", "attention", "recurrent", "norm", "layer.linear1", "dropout", ""])
@pytest.mark.parametrize("tokens", [5, 8, 16])
def test_the_channels_of_layers_on_tokens_are_last_for_any_number_of_tokens(path, tokens):
    width = {"recurrent": 12, "layer.linear1": 16}.get(path, 8)
    shape, form = form_of(Encoder(), path, torch.randn(2, tokens, 3))
    assert shape == (2, width, tokens)
    assert form.channels_last is True
    assert not form.notice


def test_the_channels_of_the_input_of_a_layer_on_tokens_are_last():
    assert form_of(Encoder(), "embed", torch.randn(2, 5, 3), at="input")[0] == (2, 3, 5)


def test_an_explicit_order_is_obeyed():
    for last in (True, False):
        shape, form = form_of(Encoder(), "layer", torch.randn(2, 5, 3), channels_last=last)
        assert shape == ((2, 8, 5) if last else (2, 5, 8))
        assert not form.notice


def test_a_feature_without_positions_has_one_order():
    shape, form = form_of(nn.Sequential(nn.Linear(3, 4)), "0", torch.randn(2, 3))
    assert shape == (2, 4)
    assert form.channels_last is None
    assert not form.notice


GPT2 = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=10, bos_token_id=0, eos_token_id=1)
LLAMA = LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=10)


@pytest.mark.parametrize(
    ("model", "path", "channels"),
    [
        (GPT2Model(GPT2), "h.0", 16),
        (GPT2Model(GPT2), "h.0.mlp.c_fc", 64),
        (GPT2Model(GPT2), "h.0.mlp.act", 64),
        (GPT2Model(GPT2), "", 16),
        (LlamaModel(LLAMA), "layers.0", 16),
        (LlamaModel(LLAMA), "layers.0.mlp.act_fn", 24),
        (LlamaModel(LLAMA), "norm", 16),
        (LlamaModel(LLAMA), "embed_tokens", 16),
    ],
)
def test_the_channels_of_language_models_are_last(model, path, channels):
    shape, form = form_of(model, path, torch.randint(0, 10, (2, 7)))
    assert shape == (2, channels, 7)
    assert not form.notice


def test_the_channels_of_a_swin_transformer_are_last_in_maps():
    options = {"img_size": 32, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}
    model = timm.create_model("swin_tiny_patch4_window7_224", **options).eval()
    for path, channels, side in (("layers.0", 16, 8), ("layers.0.blocks.0", 16, 8), ("layers.1.downsample", 32, 4)):
        shape, form = form_of(model, path, torch.rand(2, 3, 32, 32))
        assert shape == (2, channels, side, side)
        assert not form.notice


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        "test_convnext",
        pytest.param("test_efficientnet", marks=pytest.mark.slow),
        pytest.param("densenet121", marks=pytest.mark.slow),
    ],
)
def test_the_channels_of_convolutional_networks_stay_second_in_every_layer(name):
    model = timm.create_model(name).eval()
    # In the blocks of ConvNeXt, the layers of an MLP have their channels last.
    paths = [path for path, _ in model.named_modules() if not re.search(r"\.mlp|\.blocks\.\d\.norm$", path)]
    taps = [Tap(model.get_submodule(path)) for path in paths]
    with torch.no_grad(), OpenTaps(taps, [Net("net", model)]) as open_taps:
        model(torch.rand(2, 3, 32, 32))
        fired = set(open_taps.taps) - set(open_taps.unfired())
    assert len(fired) > 20
    assert not [tap.form.layer for tap in fired if tap.form.channels_last]
    assert not [tap.form.notice for tap in fired if tap.form.notice]


class Dense(nn.Module):
    """A block of a DenseNet on signals: its output has more channels than any of its layers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.activation = nn.ReLU()

    def forward(self, inputs):
        return self.activation(torch.cat([inputs, self.norm(self.conv(inputs))], 1))


@pytest.mark.parametrize("path", ["conv", "norm", "activation", ""])
@pytest.mark.parametrize("length", [16, 5])
def test_the_channels_of_convolutions_on_signals_stay_second(path, length):
    shape, form = form_of(Dense(), path, torch.randn(2, 4, length))
    assert shape[2] == length
    assert form.channels_last is False
    assert not form.notice


class Excited(nn.Module):
    """Convolutions on signals with squeeze-and-excitation, as in networks for ECGs, and a linear head."""

    class Excitation(nn.Module):
        def __init__(self):
            super().__init__()
            self.squeeze, self.excite = nn.Linear(8, 2), nn.Linear(2, 8)

        def forward(self, inputs):
            return inputs * self.excite(self.squeeze(inputs.mean(2))).sigmoid().unsqueeze(2)

    def __init__(self):
        super().__init__()
        self.conv, self.excitation, self.activation = nn.Conv1d(4, 8, 1), self.Excitation(), nn.ReLU()
        self.head = nn.Linear(8, 5)

    def forward(self, inputs):
        return self.head(self.activation(self.excitation(self.conv(inputs))).mean(2))


@pytest.mark.parametrize("path", ["conv", "excitation", "activation"])
@pytest.mark.parametrize("length", [2, 5, 8, 16])
def test_linear_layers_between_convolutions_do_not_make_the_channels_last(path, length):
    shape, form = form_of(Excited(), path, torch.randn(2, 4, length))
    assert shape == (2, 8, length)
    assert form.channels_last is False
    assert not form.notice


NOTICES = {
    "no layer": (nn.Sequential(nn.Identity()), "0", {}, "no layer in it or around it has as many channels"),
    "a function": (Encoder(), "layer", {"element": lambda value: value[:, 1:]}, "element=... may select any tensor"),
    "tokens first": (
        Encoder(batch_first=False),
        "layer",
        {},
        "with batch_first=False, the second dimension",
    ),
}


@pytest.mark.parametrize("case", NOTICES)
def test_channels_of_uncertain_order_are_second_with_a_notice(case):
    network, path, options, reason = NOTICES[case]
    _shape, form = form_of(network, path, torch.randn(2, 5, 3), **options)
    assert form.channels_last is False
    assert reason in form.notice
    assert f"{path!r} of net 'net' takes (2, " in form.notice
    assert "pass Tap(..., channels_last=True)" in form.notice


def test_a_square_map_whose_channels_may_be_last_has_a_notice():
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 8, 4, stride=4)

        def forward(self, images):
            return self.embed(images).permute(0, 2, 3, 1)  # as the patch embedding of timm returns them

    shape, form = form_of(Patches(), "", torch.rand(2, 3, 16, 16))
    assert shape == (2, 4, 4, 8)
    assert "its last dimension fits its layers" in form.notice
    assert not form_of(Patches(), "embed", torch.rand(2, 3, 16, 16))[1].notice


def test_an_attention_map_keeps_its_order_without_a_notice():
    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, tokens):
            return self.attention(tokens, tokens, tokens)[0]

    _shape, form = form_of(Maps(), "attention", torch.randn(2, 5, 8), element=1)
    assert form.channels_last is False
    assert not form.notice


def test_the_order_is_decided_once():
    network = nn.Sequential(nn.Conv1d(4, 8, 1), nn.Flatten(2))
    tap = Tap(network[0])
    with OpenTaps([tap]) as open_taps:
        for length in (6, 8):
            network(torch.randn(2, 4, length))
            assert open_taps[tap].shape == (2, 8, length)
    assert tap.form.channels_last is False


def test_a_tap_can_be_copied_and_pickled_with_its_form():
    network = Encoder()
    tap = Tap(network.layer)
    with OpenTaps([tap]):
        network(torch.randn(2, 5, 3))
    assert copy.deepcopy(tap).form is tap.form  # a tap on an average of the network has the form of the original
    assert pickle.loads(pickle.dumps(tap)).form.channels_last is True
    assert Tap(network.layer) == tap
    assert hash(Tap(network.layer)) == hash(tap)


def test_a_layer_is_described_by_its_path_and_its_net():
    network = nn.Sequential(nn.Sequential(nn.ReLU()))
    nets = [Net("other", nn.ReLU()), Net("net", network)]
    assert describe_layer(network[0][0], nets) == "ReLU '0.0' of net 'net'"
    assert describe_layer(network, nets) == "Sequential of net 'net'"
    assert describe_layer(nn.ReLU(), nets) == "ReLU"
