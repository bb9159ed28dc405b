"""A participant: what it may be made of, and loading weights whole or not at all."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdkit import Batch, Images, Net, RecipeError
from tests.helpers.tiny import Mlp, state_of


def batch(rows=2):
    return Batch(torch.ones(rows, 4), torch.zeros(rows, dtype=torch.int64))


@pytest.mark.parametrize("name", ["teacher", "a+b", "net 2", "ResNet-18_v1"])
def test_a_name_may_be_made_of_words_and_digits(name):
    assert Net(name, nn.Identity()).name == name


@pytest.mark.parametrize("name", ["", "a/b", "..", "a.b", "x\n", "a:b"])
def test_a_name_that_cannot_be_a_folder_is_refused(name):
    with pytest.raises(RecipeError, match="a net's name is made of"):
        Net(name, nn.Identity())


def test_what_cannot_be_called_is_no_net():
    with pytest.raises(RecipeError, match=r"needs an nn.Module or a callable; got int"):
        Net("teacher", 3)


def test_a_plain_callable_needs_a_version():
    with pytest.raises(RecipeError, match="give it a version"):
        Net("teacher", lambda inputs: inputs)


def test_a_plain_callable_teaches_but_has_no_network():
    net = Net("api", lambda inputs: inputs * 2, version="1")
    assert net.trained
    assert net.parameters == 0
    assert torch.equal(net(batch()), torch.full((2, 4), 2.0))
    with pytest.raises(RecipeError, match=r"cannot be|not be trained"):
        _ = net.network


def test_a_net_counts_its_parameters_and_not_its_buffers():
    assert Net("norm", nn.BatchNorm1d(3)).parameters == 6


def test_a_net_answers_what_it_sees():
    seen = []
    view = Images(mean=(0.5,), std=(0.5,))
    net = Net("eye", lambda inputs: seen.append(inputs) or inputs, version="1", view=view)
    net(Batch(torch.ones(2, 1, 2, 2), torch.zeros(2)))
    torch.testing.assert_close(seen[0], torch.ones(2, 1, 2, 2))


def test_a_net_picks_its_outputs_out_of_what_it_returns():
    net = Net("dict", lambda inputs: {"logits": inputs, "aux": 0}, version="1", element="logits")
    assert torch.equal(net(batch()), torch.ones(2, 4))


def test_a_net_that_returns_more_than_a_tensor_says_so():
    net = Net("pair", lambda inputs: (inputs, inputs), version="1")
    with pytest.raises(RecipeError, match="net 'pair' gives a tuple of 2"):
        net(batch())


def test_another_module_can_speak_in_its_place():
    net = Net("student", nn.Linear(4, 2))
    assert torch.equal(net.through(lambda inputs: inputs * 3, batch()), torch.full((2, 4), 3.0))


@pytest.mark.parametrize(("classes", "said"), [([], "got none"), (["a", "b", "a"], "['a'] more than once")])
def test_class_names_are_distinct_and_at_least_one(classes, said):
    with pytest.raises(RecipeError) as caught:
        Net("net", nn.Identity(), classes=classes)
    assert said in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_are_loaded_and_the_net_counts_as_trained(tmp_path, suffix):
    source = Mlp()
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    net = Net("teacher", Mlp(), weights=path)
    assert net.trained
    assert all(torch.equal(net.module.state_dict()[key], value) for key, value in source.state_dict().items())


def test_weights_may_be_named_by_a_text(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")
    assert Net("net", nn.Linear(2, 2), weights=str(tmp_path / "w.pt")).trained


def test_a_net_without_weights_is_not_trained_unless_told_so():
    assert not Net("net", Mlp()).trained
    assert Net("net", Mlp(), trained=True).trained


def misfit(change):
    state = dict(Mlp().state_dict())
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("head.bias"), "the file lacks 'head.bias'"),
        (lambda state: state.update({"haed.bias": torch.zeros(3)}), "(did you mean 'head.bias'?)"),
        (lambda state: state.update({"head.bias": torch.zeros(7)}), "has 'head.bias' of shape (7,), not (3,)"),
        (lambda state: state.clear(), "and 6 more"),
    ],
)
def test_weights_that_do_not_fit_change_nothing_and_say_where(tmp_path, change, said):
    torch.save(misfit(change), tmp_path / "w.pt")
    module = Mlp()
    before = state_of(module)["tensors"]
    with pytest.raises(RecipeError) as caught:
        Net("teacher", module, weights=tmp_path / "w.pt")
    assert said in str(caught.value)
    assert "do not fit net 'teacher'" in str(caught.value)
    assert all(torch.equal(module.state_dict()[key], value) for key, value in before.items())


def test_weights_that_are_not_there_are_named():
    with pytest.raises(RecipeError, match=r"should be in nowhere\.pt, but there is no such file"):
        Net("teacher", Mlp(), weights="nowhere.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match="cannot be read"):
        Net("teacher", Mlp(), weights=tmp_path / name)


def test_a_pickled_module_is_never_unpickled(tmp_path):
    torch.save(Mlp(), tmp_path / "whole.pt")
    with pytest.raises(RecipeError, match="cannot be read"):
        Net("teacher", Mlp(), weights=tmp_path / "whole.pt")


def test_a_checkpoint_around_the_weights_is_no_plain_state_dict(tmp_path):
    torch.save({"epoch": 3, "model": Mlp().state_dict()}, tmp_path / "checkpoint.pt")
    with pytest.raises(RecipeError, match="holds no plain state dict"):
        Net("teacher", Mlp(), weights=tmp_path / "checkpoint.pt")


def test_a_callable_has_no_weights_to_load(tmp_path):
    torch.save(Mlp().state_dict(), tmp_path / "w.pt")
    with pytest.raises(RecipeError, match="plain callable"):
        Net("api", lambda inputs: inputs, version="1", weights=tmp_path / "w.pt")
