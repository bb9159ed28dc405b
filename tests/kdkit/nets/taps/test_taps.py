"""Tests of taps: they capture the right tensor, and leave the layer as it was."""

import contextlib
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    MPNetConfig,
    MPNetModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

import kdkit
from kdkit import AttentionTap, ClassifierTap, Match, Net, RecipeError, Tap, timm_tap
from kdkit.nets.taps import OpenTaps, TapLike
from tests.helpers.open_stages import only_problem
from tests.helpers.tiny import Mlp, hooks_of, one_stage, plain_goal, tiny_net


def captured(module, tap, *args, **kwargs):
    """Return the tensor that a tap captures in the second pass; as in a run, the first pass is the dry run."""
    with OpenTaps([tap]) as open_taps:
        module(*args, **kwargs)
        open_taps.copy_if_modified()
        open_taps.begin_pass()
        module(*args, **kwargs)
        return open_taps[tap]


class Wrapped(nn.Module):
    """A module with an output of any form."""

    def __init__(self, form):
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.form = form

    def forward(self, inputs):
        return self.form(self.inner(inputs))


def test_a_tap_captures_the_output_of_a_module():
    net, inputs = Mlp().eval(), torch.randn(2, 4)
    assert torch.equal(captured(net, Tap(net.hidden), inputs), net.hidden(inputs))


def test_a_tap_captures_the_input_of_a_module():
    net, inputs = Mlp().eval(), torch.randn(2, 4)
    assert torch.equal(captured(net, Tap(net.norm, "input"), inputs), net.hidden(inputs))


@pytest.mark.parametrize(("layer", "at"), [("act", "input"), ("norm", "output")])
@pytest.mark.parametrize("training", [True, False])
def test_the_input_of_an_in_place_relu_is_the_true_pre_activation(layer, at, training):
    net, inputs = Mlp().train(training), torch.randn(6, 4)
    expected = net.norm(net.hidden(inputs))
    assert (expected < 0).any()  # otherwise the ReLU would change nothing
    torch.testing.assert_close(captured(net, Tap(getattr(net, layer), at), inputs), expected)


def test_gradients_flow_through_a_pre_activation_as_without_a_tap():
    net, inputs = Mlp().eval(), torch.randn(6, 4)
    pre_activation = captured(net, Tap(net.act, "input"), inputs)
    (gradient,) = torch.autograd.grad(pre_activation.square().sum(), net.hidden.weight)
    (expected,) = torch.autograd.grad(net.norm(net.hidden(inputs)).square().sum(), net.hidden.weight)
    torch.testing.assert_close(gradient, expected)


def test_a_tensor_that_is_not_modified_is_captured_without_a_copy():
    net, outputs = Mlp(), []
    net.head.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    assert captured(net, Tap(net.head), torch.randn(3, 4)) is outputs[-1]


@pytest.mark.parametrize(
    ("form", "element"),
    [
        (lambda x: (None, x), 1),
        (lambda x: {"logits": x, "aux": None}, "logits"),
        (lambda x: {"deep": (x, 0)}, lambda value: value["deep"][0]),
        (lambda x: x, None),
        (lambda x: (x, None), None),
        (lambda x: (x, {"cache": x}), None),
    ],
)
def test_one_tensor_of_several_is_picked_by_element(form, element):
    module, inputs = Wrapped(form), torch.randn(2, 4)
    assert torch.equal(captured(module, Tap(module, element=element), inputs), module.inner(inputs))


def test_several_tensors_without_an_element_are_described():
    module = Wrapped(lambda x: {"left": x, "right": x})
    with pytest.raises(RecipeError, match="the output of Wrapped gives a dict with 'left', 'right', but one tensor"):
        captured(module, Tap(module), torch.randn(2, 4))


class TwoInputs(nn.Module):
    def forward(self, values, mask=None):
        return values if mask is None else values * mask


VALUES, MASK = torch.randn(2, 3), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("element", "args", "kwargs", "expected"),
    [
        (None, (VALUES,), {}, VALUES),
        (None, (), {"values": VALUES}, VALUES),
        (0, (VALUES, MASK), {}, VALUES),
        (1, (VALUES, MASK), {}, MASK),
        (1, (), {"values": VALUES, "mask": MASK}, MASK),
        ("mask", (), {"values": VALUES, "mask": MASK}, MASK),
        ("mask", (VALUES,), {"mask": MASK}, MASK),
        (None, (VALUES,), {"mask": MASK}, VALUES),
    ],
)
def test_an_input_is_selected_by_position_or_by_keyword(element, args, kwargs, expected):
    module = TwoInputs()
    assert captured(module, Tap(module, "input", element), *args, **kwargs) is expected


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=5))
def test_channels_last_moves_the_channels_to_the_second_dimension(shape):
    module = nn.Identity()
    tensor = torch.randn(shape)
    feature = captured(module, Tap(module, channels_last=True), tensor)
    assert feature.shape == (shape[0], shape[-1], *shape[1:-1])
    assert torch.equal(feature.movedim(1, -1), tensor)


def test_channels_stay_if_the_tap_says_that_they_are_second():
    module, tokens = nn.Linear(3, 3), torch.randn(2, 5, 3)
    assert torch.equal(captured(module, Tap(module, channels_last=False), tokens), module(tokens))


def test_a_modified_tensor_is_copied_also_if_channels_are_moved():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))
    inputs = torch.randn(2, 5, 3)
    torch.testing.assert_close(captured(net, Tap(net[0], channels_last=True), inputs), net[0](inputs).movedim(-1, 1))


class Twice(nn.Module):
    """A layer that runs twice, as the shared layers of ALBERT run at several depths."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, inputs):
        return self.inner(self.inner(inputs))


def test_the_last_run_is_captured_if_a_module_runs_twice():
    net, inputs = Twice(), torch.randn(2, 3)
    assert torch.equal(captured(net, Tap(net.inner), inputs), net(inputs))


@pytest.mark.parametrize("compiles", [False, True])
def test_a_tap_captures_the_run_that_it_names_in_every_pass(compiles):
    net = Twice()
    run = torch.compile(net, backend="eager", fullgraph=True) if compiles else net
    with OpenTaps([Tap(net.inner, call=0), Tap(net.inner, call=1), Tap(net.inner, "input", call=1)]) as open_taps:
        for _ in range(2):
            inputs = torch.randn(2, 3)
            open_taps.begin_pass()
            output = run(inputs)
            first, second, between = open_taps.take()
            torch.testing.assert_close(first, between)
            torch.testing.assert_close(between, nn.functional.linear(inputs, net.inner.weight, net.inner.bias))
            torch.testing.assert_close(second, output)


def test_a_run_that_a_module_does_not_reach_is_refused():
    net = Twice()
    with OpenTaps([Tap(net.inner, call=2)]) as open_taps:
        net(torch.randn(2, 3))
        with pytest.raises(RecipeError, match="takes call=2, but its module ran 2 times in the forward pass"):
            open_taps.take()
    for call in (-1, 0.5, True):
        with pytest.raises(RecipeError, match="call must be an integer of at least 0 or None"):
            Tap(net.inner, call=call)
    with (
        pytest.raises(RecipeError, match=r"Tap\(Linear, call=0\)\) cannot count runs"),
        kdkit.tap(Tap(net.inner, call=0)),
    ):
        pass


def test_a_feature_is_read_inside_its_context():
    net = Mlp()
    with kdkit.tap(net.head) as feature:
        net(torch.randn(2, 4))
    with pytest.raises(RecipeError, match=r"dropped at the end of the context of kdkit.tap; read feature.value inside"):
        _ = feature.value


def test_a_tap_that_did_not_fire_is_reported():
    net = Mlp()
    idle = Tap(nn.Conv1d(1, 1, 1))
    with OpenTaps([Tap(net.head), idle]) as open_taps:
        net(torch.randn(2, 4))
        assert open_taps.unfired() == [idle]
        with pytest.raises(RecipeError, match=r"the tap on Conv1d never fired: .* if it was replaced in the network"):
            _ = open_taps[idle]


def test_clear_drops_the_captured_tensors():
    net = Mlp()
    tap = Tap(net.head)
    with OpenTaps([tap]) as open_taps:
        net(torch.randn(2, 4))
        open_taps.begin_pass()
        assert open_taps.unfired() == [tap]


def test_nothing_is_captured_between_take_and_clear():
    net, inputs = Mlp(), torch.randn(2, 4)
    with OpenTaps([Tap(net.hidden)]) as open_taps:
        net(inputs)
        open_taps.take()
        net(inputs)
        assert len(open_taps.unfired()) == 1
        open_taps.begin_pass()
        net(inputs)
        assert not open_taps.unfired()


@pytest.mark.parametrize("make_tap", [Tap, lambda net, **options: ClassifierTap(net, classifier=net.head, **options)])
def test_an_element_that_a_paused_pass_lacks_is_no_error(make_tap):
    class TrainingOnly(Mlp):
        def forward(self, inputs):
            outputs = super().forward(inputs)
            return {"logits": outputs, "hidden": self.hidden(inputs)} if self.training else {"logits": outputs}

    net, inputs = TrainingOnly(), torch.randn(2, 4)
    with OpenTaps([make_tap(net, element="hidden")]) as open_taps:
        net(inputs)
        open_taps.take()
        net.eval()(inputs)
        open_taps.begin_pass()
        with pytest.raises(RecipeError, match="no element 'hidden'"):
            net(inputs)


def test_no_hook_is_left_after_an_exception():
    net = Mlp()
    with contextlib.suppress(ZeroDivisionError), OpenTaps([Tap(net.head), Tap(net.act, "input")]):
        assert hooks_of(net) == 2  # the hooks are attached inside
        raise ZeroDivisionError
    assert hooks_of(net) == 0


@pytest.mark.parametrize(
    ("attach", "message"),
    [
        (lambda _module, _capture: [][0], r"Mine.attach\(\) raises IndexError: .*\(.*test_taps.py, line \d+\)"),
        (
            lambda module, capture: module.register_forward_hook(lambda *_: capture(None)).remove,
            "the tap on Linear .* of net 'student' must capture a tensor; Mine passes a NoneType",
        ),
    ],
)
def test_a_faulty_tap_is_a_problem_before_the_run(attach, message):
    class Mine:
        def __init__(self, module):
            self.module = module

        def attach(self, capture):
            return attach(self.module, capture)

    student, teacher = tiny_net("student"), tiny_net("teacher", trained=True)
    match = Match(teacher, nn.MSELoss(), student=Mine(student.module.head), target=Tap(teacher.module.head))
    assert re.search(message, only_problem(one_stage(student, plain_goal() + match)))


@pytest.mark.parametrize(
    ("hook", "noticed"),
    [
        (lambda capture, output: capture(output), False),
        (lambda capture, output: capture(output) or 2 * output, True),
        (lambda capture, output: capture(output.clone()) or print(output.mul_(2), end=""), True),
    ],
)
def test_a_tap_that_changes_its_network_is_noticed(hook, noticed):
    class Mine:
        def __init__(self, module):
            self.module = module

        def attach(self, capture):
            return self.module.register_forward_hook(lambda _module, _args, output: hook(capture, output)).remove

    student, teacher = tiny_net("student"), tiny_net("teacher", trained=True)
    match = Match(teacher, nn.MSELoss(), student=Mine(student.module.head), target=Tap(teacher.module.head))
    plan = kdkit.check(one_stage(student, plain_goal() + match))
    plan.require()
    assert any("the output of Linear, which Mine taps, is changed by" in text for text in plan.notices) is noticed
    assert hooks_of(student.module) == 0


def test_no_hook_is_left_if_one_tap_cannot_be_attached():
    class Broken:
        module = nn.Identity()

        def attach(self, capture):
            raise RecipeError("no")

    net = Mlp()
    with pytest.raises(RecipeError, match="no"):
        OpenTaps([Tap(net.head), Broken()])
    assert hooks_of(net) == 0


def test_hooks_of_user_code_stay():
    net, calls = Mlp(), []
    net.head.register_forward_hook(lambda *_: calls.append(1))
    with OpenTaps([Tap(net.head)]):
        net(torch.randn(2, 4))
    net(torch.randn(2, 4))
    assert len(calls) == 2
    assert hooks_of(net) == 1


def test_two_stages_may_tap_the_same_module():
    net, inputs = Mlp().eval(), torch.randn(2, 4)
    tap = Tap(net.head)
    first, second = OpenTaps([tap]), OpenTaps([tap])
    output = net(inputs)
    assert first[tap] is output
    assert second[tap] is output
    first.close()
    output = net(inputs)
    assert second[tap] is output
    second.close()
    assert hooks_of(net) == 0


def test_equal_taps_share_a_hook():
    net = Mlp()
    with OpenTaps([Tap(net.head), Tap(net.head), Tap(net.head, "input")]) as open_taps:
        assert len(open_taps.taps) == hooks_of(net) == 2


def test_taps_do_not_change_the_output_of_a_net():
    net, inputs = Mlp().eval(), torch.randn(2, 4)
    expected = net(inputs)
    with OpenTaps([Tap(net.norm), Tap(net.act, "input"), Tap(net.head)]) as open_taps:
        net(inputs)
        open_taps.copy_if_modified()
        assert torch.equal(net(inputs), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("layer3",), r"not its name: Tap\(net.module.get_submodule\('layer3'\)\); got a str"),
        ((3,), "got a int"),
        ((nn.Identity(), "outptu"), "got 'outptu'"),
        ((nn.Identity(), "output", None, "last"), "channels_last must be True or False; got 'last'"),
    ],
)
def test_a_tap_sits_on_a_module_at_its_input_or_output(arguments, message):
    with pytest.raises(RecipeError, match=message):
        Tap(*arguments)


class Attention(nn.Module):
    """The members of timm's attention layers that an attention tap relies on."""

    def __init__(self):
        super().__init__()
        self.fused_attn = True
        self.attn_drop = nn.Dropout(0.0)

    def forward(self, tokens):
        scores = tokens @ tokens.transpose(1, 2)
        if self.fused_attn:
            return scores.softmax(-1) @ tokens
        return self.attn_drop(scores.softmax(-1)) @ tokens


@pytest.mark.parametrize("fused", [True, False])
def test_an_attention_tap_captures_the_map_and_restores_the_fused_kernel(fused):
    layer, tokens = Attention(), torch.randn(2, 4, 3)
    layer.fused_attn = fused
    attention = captured(layer, AttentionTap(layer), tokens)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 4))  # rows of a softmax
    assert layer.fused_attn is fused
    assert hooks_of(layer) == 0


def test_an_attention_tap_restores_the_fused_kernel_after_an_exception():
    layer = Attention()
    with contextlib.suppress(ZeroDivisionError), OpenTaps([AttentionTap(layer)]):
        assert not layer.fused_attn
        raise ZeroDivisionError
    assert layer.fused_attn is True


def test_an_attention_tap_refuses_other_layers():
    with pytest.raises(RecipeError, match="got a Linear"):
        AttentionTap(nn.Linear(1, 1))


def tiny_bert(**options):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return BertModel(BertConfig(vocab_size=20, **sizes, **options)).eval()


TEXT = {"input_ids": torch.arange(10).reshape(2, 5), "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])}


@pytest.mark.parametrize("name", ["attention", "attention.self"])
def test_an_attention_tap_on_a_layer_of_transformers_captures_the_map_of_eager_attention(name):
    model = tiny_bert(attn_implementation="sdpa")
    layer = model.encoder.layer[1].get_submodule(name)
    plain = model(**TEXT).last_hidden_state
    attention = captured(model, AttentionTap(layer), **TEXT)
    assert model.config._attn_implementation == "sdpa"
    assert hooks_of(model) == 0
    model.set_attn_implementation("eager")
    expected = model(**TEXT, output_attentions=True)
    torch.testing.assert_close(attention, expected.attentions[1])
    assert attention.shape == (2, 2, 5, 5)
    assert not attention[0, :, :, 3:].any()  # padding is masked as without the tap
    torch.testing.assert_close(plain[1], expected.last_hidden_state[1], rtol=1e-4, atol=1e-5)


def test_an_attention_tap_on_a_layer_around_the_attention_is_refused():
    model = tiny_bert()
    with pytest.raises(RecipeError, match=r"BertLayer returns no attention map, .* second output is \(2, 5, 16\)"):
        captured(model, AttentionTap(model.encoder.layer[0]), **TEXT)
    assert model.config._attn_implementation == "sdpa"


def test_an_attention_layer_without_other_implementations_is_tapped_by_its_second_output():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = MPNetModel(MPNetConfig(vocab_size=20, **sizes)).eval()
    layer = model.encoder.layer[0].attention.attn
    with pytest.raises(RecipeError, match=r"output_attentions=True, pass Tap\(layer, element=1\)$"):
        AttentionTap(layer)
    with pytest.raises(RecipeError, match="or, as for DeBERTa, with output_attentions=True"):
        captured(model, Tap(layer, element=1), **TEXT)
    model.config.output_attentions = True
    torch.testing.assert_close(captured(model, Tap(layer, element=1), **TEXT), model(**TEXT).attentions[0])


def test_a_position_bias_is_not_taken_for_an_attention_map():
    config = T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, vocab_size=20)
    model = T5EncoderModel(config).eval()
    refused = "T5Attention returns no attention map|got a T5Attention"  # the latter with transformers 5.0
    with pytest.raises(RecipeError, match=refused):
        captured(model, AttentionTap(model.encoder.block[0].layer[0].SelfAttention), **TEXT)
    model = T5ForConditionalGeneration(config).eval()
    cross = model.decoder.block[0].layer[1].EncDecAttention
    with pytest.raises(RecipeError, match=refused):  # its bias is 0
        captured(model, AttentionTap(cross), **TEXT, decoder_input_ids=TEXT["input_ids"][:, :3])


def test_the_hidden_state_of_a_layer_of_t5_is_taken():
    model = T5ForConditionalGeneration(T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, vocab_size=20))
    for layer, tokens in ((model.encoder.block[0], 5), (model.decoder.block[0], 3)):
        hidden = captured(model.eval(), Tap(layer), **TEXT, decoder_input_ids=TEXT["input_ids"][:, :3])
        assert hidden.shape == (2, 16, tokens)


def test_the_map_of_fused_attention_is_refused_with_the_layer_and_the_option_to_change():
    model = tiny_bert(attn_implementation="sdpa")
    tap = Tap(model.encoder.layer[1].attention, element=1)
    message = r"BertAttention 'encoder.layer.1.attention' of net 'teacher' gives .* attn_implementation='eager'"
    with OpenTaps([tap], [Net("teacher", model)]), pytest.raises(RecipeError, match=message):
        model(**TEXT)


def model_with_stages(fmt="NCHW"):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model.feature_info = [{"module": "0"}, {"module": "1"}]
    model.output_fmt = fmt
    return model


def test_a_stage_is_selected_by_its_number():
    model = model_with_stages()
    assert timm_tap(model, 0).module is model[0]
    assert timm_tap(model, -1).module is model[1]
    with OpenTaps([timm_tap(model_with_stages("NHWC"), 1)]) as open_taps:
        open_taps.taps[0].module(torch.zeros(2, 5, 4, 3))
        assert open_taps.take()[0].shape == (2, 3, 5, 4)


@pytest.mark.parametrize("index", [2, -3])
def test_a_stage_beyond_the_last_is_refused(index):
    with pytest.raises(RecipeError, match="has stages 0 to 1"):
        timm_tap(model_with_stages(), index)


def test_a_model_without_feature_info_is_refused():
    with pytest.raises(RecipeError, match="is it a timm model"):
        timm_tap(Mlp(), 0)


def test_the_interface_of_a_tap_is_a_module_and_attach():
    assert isinstance(Tap(nn.Identity()), TapLike)
    assert not isinstance(nn.Identity(), TapLike)
