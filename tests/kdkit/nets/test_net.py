"""Tests of nets: their arguments, their outputs, and loading weights completely or not at all."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdkit import Batch, Images, Net, RecipeError
from tests.helpers.tiny import Mlp, state_of


def batch(rows=2):
    return Batch(torch.ones(rows, 4), torch.zeros(rows, dtype=torch.int64))


@pytest.mark.parametrize("name", ["teacher", "a+b", "net 2", "ResNet-18_v1", "resnet18.a1_in1k"])
def test_a_name_may_contain_words_and_digits(name):
    assert Net(name, nn.Identity()).name == name


@pytest.mark.parametrize("name", ["", "a/b", "..", "a..b", ".a", "a.", "x\n", "a:b", "a=b", 3])
def test_a_name_that_cannot_be_a_folder_is_refused(name):
    with pytest.raises(
        RecipeError, match="the name of a net may have letters, digits, '-', '_', '\\+', spaces, and single dots"
    ):
        Net(name, nn.Identity())


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((nn.Identity(), "net"), {}, r"a net takes its name first: Net\('student', module\); got a Identity"),
        (
            ("net", nn.Identity()),
            {"weights": {}},
            r"the path of a file or a folder; got a dict; load a state dict with",
        ),
        (
            ("net", nn.Identity()),
            {"element": 0.5},
            "element must be an index, a key or attribute, or a function; got 0",
        ),
        (("net", nn.Identity()), {"trained": "weights.pt"}, "trained must be True or False; got 'weights.pt'"),
        (("net", nn.Identity()), {"channels_last": "yes"}, "channels_last must be True or False; got 'yes'"),
        (("net", nn.Identity()), {"strict": 0}, "strict must be True or False; got 0"),
    ],
)
def test_arguments_of_other_kinds_are_refused(arguments, options, message):
    with pytest.raises(RecipeError, match=message):
        Net(*arguments, **options)


def test_an_object_that_is_not_callable_is_refused():
    with pytest.raises(RecipeError, match=r"needs an nn.Module or a callable; got int"):
        Net("teacher", 3)


def test_an_array_of_outputs_is_refused_with_the_function_that_returns_them():
    with pytest.raises(RecipeError, match=r"put stored outputs among .* pass Net\('teacher', lambda outputs"):
        Net("teacher", torch.zeros(4, 3))


def test_a_plain_callable_needs_a_version():
    with pytest.raises(RecipeError, match=r"give it a version .*: Net\('teacher', function, version='1'\)"):
        Net("teacher", lambda inputs: inputs)


def test_a_plain_callable_teaches_but_has_no_network():
    net = Net("api", lambda inputs: inputs * 2, version="1")
    assert net.trained
    assert net.parameters == 0
    assert torch.equal(net(batch()), torch.full((2, 4), 2.0))
    with pytest.raises(RecipeError, match=r"cannot be|not be trained"):
        _ = net.network


@pytest.mark.parametrize(
    ("recompute", "message"),
    [
        (["hiden"], "net 'student' has no submodule 'hiden' to recompute; did you mean 'hidden'?"),
        ([""], "net 'student' has no submodule '' to recompute; there are: act, head, hidden, norm"),
        ("hidden", "recompute of net 'student' must be a list of names; got 'hidden'"),
        (None, "recompute of net 'student' must be a list of names; got None"),
    ],
)
def test_unknown_names_of_submodules_are_refused(recompute, message):
    with pytest.raises(RecipeError) as raised:
        Net("student", Mlp(), recompute=recompute)
    assert str(raised.value) == message


def test_a_plain_callable_has_no_submodules_to_recompute():
    with pytest.raises(RecipeError, match="is a plain callable"):
        Net("api", lambda inputs: inputs, version="1", recompute=["layer1"])


def test_a_net_counts_its_parameters_and_not_its_buffers():
    assert Net("norm", nn.BatchNorm1d(3)).parameters == 6


def test_a_net_is_called_with_its_view_of_a_batch():
    inputs_seen = []
    view = Images(mean=(0.5,), std=(0.5,))
    net = Net("eye", lambda inputs: inputs_seen.append(inputs) or inputs, version="1", view=view)
    net(Batch(torch.ones(2, 1, 2, 2), torch.zeros(2)))
    torch.testing.assert_close(inputs_seen[0], torch.ones(2, 1, 2, 2))


def test_a_view_may_be_a_function_of_the_batch():
    def doubled(batch):
        return (2 * batch.inputs,), {}

    net = Net("eye", nn.Identity(), view=doubled)
    assert torch.equal(net(batch()), 2 * torch.ones(2, 4))
    assert net.view.key == "doubled"


def test_a_net_picks_its_outputs_by_element():
    net = Net("dict", lambda inputs: {"logits": inputs, "aux": 0}, version="1", element="logits")
    assert torch.equal(net(batch()), torch.ones(2, 4))


def test_several_outputs_without_an_element_are_refused():
    net = Net("pair", lambda inputs: (inputs, inputs), version="1")
    with pytest.raises(RecipeError, match="net 'pair' gives a tuple of 2"):
        net(batch())


def test_the_outputs_of_a_plain_callable_are_moved_to_the_device_of_the_batch():
    net = Net("service", lambda inputs: torch.zeros(len(inputs), 3), version="1")
    on_device = Batch(torch.ones(2, 4), torch.zeros(2, dtype=torch.int64, device="meta"))
    assert net(on_device).device.type == "meta"


@pytest.mark.parametrize(
    "answer", [lambda inputs: inputs[:1], lambda inputs: inputs.sum()], ids=["fewer rows", "scalar"]
)
def test_a_plain_callable_must_return_one_row_per_sample(answer):
    net = Net("api", answer, version="1")
    with pytest.raises(RecipeError, match=r"net 'api' must return one row per sample, 2 for this batch; got outputs"):
        net(batch())


def test_another_module_can_be_run_in_place_of_a_net():
    net = Net("student", nn.Linear(4, 2))
    assert torch.equal(net.outputs_of(lambda inputs: inputs * 3, batch()), torch.full((2, 4), 3.0))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "got none"),
        (["a", "b", "a"], "['a'] more than once"),
        (0, "must be a list of names, such as ['cat', 'dog'], or their number; got 0"),
        ([0, 1], "got [0, 1]"),
        ("abc", "got 'abc'"),
    ],
)
def test_class_names_must_be_distinct_and_at_least_one(classes, message):
    with pytest.raises(RecipeError) as caught:
        Net("net", nn.Identity(), classes=classes)
    assert message in str(caught.value)


def test_a_number_of_classes_names_them_by_numbers():
    assert Net("net", nn.Identity(), classes=3).classes == ("0", "1", "2")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_are_loaded_and_the_net_counts_as_trained(tmp_path, suffix):
    source = Mlp()
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    net = Net("teacher", Mlp(), weights=path)
    assert net.trained
    assert all(torch.equal(net.module.state_dict()[key], value) for key, value in source.state_dict().items())


def test_the_path_of_weights_may_be_a_text(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")
    assert Net("net", nn.Linear(2, 2), weights=str(tmp_path / "w.pt")).trained


def test_a_net_without_weights_is_trained_only_if_declared():
    assert not Net("net", Mlp()).trained
    assert Net("net", Mlp(), trained=True).trained


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("head.bias"), "the file lacks 'head.bias'"),
        (lambda state: state.update({"haed.bias": torch.zeros(3)}), "(did you mean 'head.bias'?)"),
        (lambda state: state.update({"head.bias": torch.zeros(7)}), "has 'head.bias' of shape (7,), not (3,)"),
        (lambda state: state.clear(), "and 6 more"),
    ],
)
def test_weights_that_do_not_fit_change_nothing_and_name_the_keys(tmp_path, change, message):
    state = dict(Mlp().state_dict())
    change(state)
    torch.save(state, tmp_path / "w.pt")
    module = Mlp()
    before = state_of(module)["tensors"]
    with pytest.raises(RecipeError) as caught:
        Net("teacher", module, weights=tmp_path / "w.pt")
    assert message in str(caught.value)
    assert "do not fit net 'teacher'" in str(caught.value)
    assert all(torch.equal(module.state_dict()[key], value) for key, value in before.items())  # nothing was loaded


def test_a_key_that_a_large_net_does_not_have_is_refused_without_all_its_keys(tmp_path):
    layers = nn.Sequential(*(nn.Linear(1, 1) for _ in range(30)))
    torch.save(layers.state_dict() | {"classifier.weight": torch.zeros(3)}, tmp_path / "w.pt")
    with pytest.raises(RecipeError) as caught:
        Net("teacher", layers, weights=tmp_path / "w.pt")
    message = "the file has 'classifier.weight', which the net does not have; strict=False loads the tensors that fit"
    assert str(caught.value).endswith(message)


def test_a_missing_weights_file_is_named():
    with pytest.raises(RecipeError, match=rf"should be in nowhere\.pt, but there is no such file in {Path.cwd()}; "):
        Net("teacher", Mlp(), weights="nowhere.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_a_file_without_weights_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match="cannot be read") as caught:
        Net("teacher", Mlp(), weights=tmp_path / name)
    assert "weights_only" not in str(caught.value)  # torch's advice to execute the file


def test_a_pickled_module_is_never_unpickled(tmp_path):
    # unpickling a module runs code from the file
    torch.save(Mlp(), tmp_path / "whole.pt")
    with pytest.raises(RecipeError, match="cannot be read"):
        Net("teacher", Mlp(), weights=tmp_path / "whole.pt")


def test_a_callable_has_no_weights_to_load(tmp_path):
    torch.save(Mlp().state_dict(), tmp_path / "w.pt")
    with pytest.raises(RecipeError, match="plain callable"):
        Net("api", lambda inputs: inputs, version="1", weights=tmp_path / "w.pt")
