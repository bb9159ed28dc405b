"""Weights load from the files that training programs write if the match is unambiguous, and never run code."""

import argparse
import json
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from timm.models._hub import save_for_hf
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

import kdkit
from kdkit import Match, Net, Recipe, Stage, Training
from kdkit.errors import CheckError, RecipeError
from kdkit.losses import SoftTargets
from kdkit.teachers.cache.key import compute_key
from tests.helpers.callbacks import KillAfterEpoch, Recorder, killed_and_resumed
from tests.helpers.stages import assert_same_results
from tests.helpers.tiny import Mlp, one_stage, plain_goal, tiny_data


class Tied(nn.Module):
    """Two layers that share one weight, as the embedding and the head of a language model do."""

    def __init__(self, *, tie=True):
        super().__init__()
        self.embedding, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        if tie:
            self.head.weight = self.embedding.weight

    def forward(self, inputs):
        return self.head(self.embedding(inputs))


class Holder(nn.Module):
    """A LightningModule of distillation, as far as its state dict goes: networks, and a loss with parameters."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def trained(seed=1, **options):
    """Return a network whose tensors all differ from those of a new one."""
    torch.manual_seed(seed)
    module = Mlp(**options)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(seed if tensor.dtype == torch.int64 else torch.rand_like(tensor) + 1)
    return module


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def lightning_checkpoint(state, **entries):
    """Return the layout that `Trainer.save_checkpoint` documents."""
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(2))])
    return {
        "epoch": 3,
        "global_step": 120,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict(state),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.25), "dirpath": "x"}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "widths": [1, 2], "name": "kd"},
        **entries,
    }


def load(path, module=None, **options):
    return Net("teacher", Mlp() if module is None else module, weights=path, **options)


def assert_loaded(net, source):
    state = net.module.state_dict()
    assert state.keys() == source.state_dict().keys()
    assert all(torch.equal(state[key].cpu(), value.cpu()) for key, value in source.state_dict().items())
    assert net.trained


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


@pytest.fixture
def refused(path):
    """Return the message with which a file is refused, after a check that nothing was loaded."""

    def message(module=None, path=path, **options):
        module = Mlp() if module is None else module
        before = {key: value.clone() for key, value in module.state_dict().items()}
        with pytest.raises(RecipeError) as caught:
            load(path, module, **options)
        assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
        return str(caught.value)

    return message


# Prefixes


def test_a_plain_state_dict_is_loaded_without_a_note(path):
    torch.save(trained().state_dict(), path)
    net = load(path)
    assert_loaded(net, trained())
    assert net.weights_note == ""


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "model.",
        "student.",
        "net.",
        "backbone.",
        "model.net.",
        "mine.own.",
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_prefix_of_all_keys_is_removed_and_noted(tmp_path, prefix, suffix):
    path = tmp_path / f"weights{suffix}"
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(
        prefixed(prefix, trained().state_dict()), path
    )
    net = load(path)
    assert_loaded(net, trained())
    assert net.weights_note == f"weights of net 'teacher' from {path}: the prefix {prefix!r} is removed from keys"


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda module: torch.compile(module, backend="eager"),
        lambda module: nn.DataParallel(torch.compile(module, backend="eager")),
        checkpoint_wrapper,
    ],
    ids=["DataParallel", "compile", "DataParallel of compile", "activation checkpointing"],
)
def test_the_state_dict_of_a_wrapped_network_is_loaded(path, wrap):
    torch.save(wrap(trained()).state_dict(), path)
    assert_loaded(load(path), trained())


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda part: torch.compile(part, backend="eager")])
def test_wrappers_of_parts_are_removed_from_the_middle_of_keys(path, wrap):
    source = trained()
    source.hidden = wrap(source.hidden)
    torch.save(nn.DataParallel(source).state_dict(), path)
    net = load(path)
    assert_loaded(net, trained())
    assert "'module.'" in net.weights_note


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda module: torch.compile(module, backend="eager")])
def test_plain_weights_are_loaded_into_a_wrapped_network(path, wrap):
    torch.save(trained().state_dict(), path)
    module = Mlp()
    net = load(path, wrap(module))
    assert all(torch.equal(module.state_dict()[key].cpu(), value) for key, value in trained().state_dict().items())
    assert net.weights_note == ""


def test_the_state_dict_of_averaged_weights_is_loaded(path):
    average = AveragedModel(trained(), use_buffers=True)
    average.update_parameters(trained())
    torch.save(average.state_dict(), path)
    net = load(path)
    assert_loaded(net, average.module)
    assert "the prefix 'module.' is removed from keys; not used: 'n_averaged' of the file" in net.weights_note


def test_a_submodule_that_is_named_like_a_prefix_keeps_its_name(path):
    torch.save(nn.DataParallel(Holder(module=trained(), net=nn.Linear(2, 2))).state_dict(), path)
    module = Holder(module=Mlp(), net=nn.Linear(2, 2))
    load(path, module)
    assert torch.equal(module.module.head.weight, trained().head.weight)


def test_a_prefix_that_some_keys_share_is_named_but_not_removed(path, refused):
    # It may be a part of another network that happens to have the same form.
    torch.save(Holder(bert=trained(), pooler=nn.Linear(3, 3)).state_dict(), path)
    assert refused().endswith("those under 'bert.' fit: pass weights_key='bert'")
    net = load(path, weights_key="bert")
    assert_loaded(net, trained())
    assert "the entry 'bert'" in net.weights_note


# Checkpoints of training programs


def test_a_lightning_checkpoint_of_one_network_is_loaded(path):
    torch.save(lightning_checkpoint(prefixed("model.", trained().state_dict())), path)
    net = load(path)
    assert_loaded(net, trained())
    assert "the entry 'state_dict'; the prefix 'model.' is removed from keys" in net.weights_note


def test_the_student_of_a_lightning_checkpoint_is_loaded_next_to_its_teacher(path):
    parts = Holder(student=trained(), teacher=trained(hidden=9), loss=nn.Linear(5, 9))
    torch.save(lightning_checkpoint(parts.state_dict()), path)
    net = load(path)
    assert_loaded(net, trained())
    assert "not used: 'loss.bias', 'loss.weight', 'teacher.head.bias' and 8 more of the file" in net.weights_note


def test_two_networks_of_one_form_in_a_checkpoint_need_a_choice(path, refused):
    torch.save(lightning_checkpoint(Holder(student=trained(1), teacher=trained(2)).state_dict()), path)
    message = refused()
    assert "several weights" in message
    assert "weights_key='state_dict.student', weights_key='state_dict.teacher'" in message
    for key in ("state_dict.teacher", "teacher", "teacher."):
        assert_loaded(load(path, weights_key=key), trained(2))


def test_a_network_that_is_saved_under_two_names_needs_no_choice(path):
    module = trained()
    torch.save(lightning_checkpoint(Holder(student=module, model=module).state_dict()), path)
    assert_loaded(load(path), trained())


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "params", "ema", "model_ema"])
def test_a_state_dict_under_a_key_is_loaded(path, key):
    optimizer = torch.optim.SGD(trained().parameters(), lr=0.1, momentum=0.9)
    torch.save({"epoch": 3, key: trained().state_dict(), "optimizer": optimizer.state_dict(), "best": None}, path)
    net = load(path)
    assert_loaded(net, trained())
    assert f"the entry {key!r}" in net.weights_note


def test_a_state_dict_two_keys_deep_is_loaded(path):
    torch.save({"ema": {"module": prefixed("module.", trained().state_dict()), "decay": 0.9}}, path)
    assert_loaded(load(path), trained())


@pytest.mark.parametrize(
    ("plain", "average"),
    [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("params", "params_ema"), ("student", "average")],
)
def test_plain_weights_are_taken_and_averaged_ones_are_noted(path, plain, average):
    torch.save({average: trained(2).state_dict(), plain: trained(1).state_dict()}, path)
    net = load(path)
    assert_loaded(net, trained(1))
    assert net.weights_note.endswith(f"the file also has averaged weights, for weights_key={average!r}")
    chosen = load(path, weights_key=average)
    assert_loaded(chosen, trained(2))
    assert chosen.weights_note.endswith(f"the entry {average!r}")


def test_averaged_weights_in_one_state_dict_are_noted(path):
    parts = Holder(model=trained(1), ema_model=trained(2))
    torch.save(lightning_checkpoint(parts.state_dict()), path)
    net = load(path)
    assert_loaded(net, trained(1))
    assert "weights_key='state_dict.ema_model'" in net.weights_note
    assert_loaded(load(path, weights_key="state_dict.ema_model"), trained(2))


def test_moments_of_an_optimizer_are_not_taken_for_weights(path, refused):
    torch.save({"model": trained(1).state_dict(), "optimizer": {"exp_avg": trained(2).state_dict()}}, path)
    assert_loaded(load(path), trained(1))
    torch.save({"optimizer": {"exp_avg": trained(2).state_dict()}}, path)
    assert "holds no plain state dict" in refused()


def test_a_file_without_counters_of_batch_norm_is_loaded_as_torch_does(path):
    state = trained().state_dict()
    del state["norm.num_batches_tracked"]
    torch.save(dict(state), path)
    net = load(path)
    assert net.trained
    assert torch.equal(net.module.norm.running_mean, trained().norm.running_mean)
    assert "the file lacks 'norm.num_batches_tracked', which keep their values in the net" in net.weights_note


def test_two_entries_of_one_form_need_a_choice(path, refused):
    torch.save({"generator": trained(1).state_dict(), "best": trained(2).state_dict()}, path)
    assert "choose one: weights_key='generator', weights_key='best'" in refused()


def test_an_unknown_weights_key_is_refused_with_the_names_in_the_file(path, refused):
    torch.save({"state_dict": trained().state_dict(), "state_dict_ema": trained(2).state_dict()}, path)
    assert "did you mean 'state_dict_ema'?" in refused(weights_key="state_dict_emma")
    assert "there are: " in refused(weights_key="???")


def test_the_checkpoint_of_timm_is_loaded_with_its_arguments(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    average = ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        model.fc.bias.add_(1)
    average.update(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    args = argparse.Namespace(model="test_resnet", lr=0.1, output=Path("out"))
    saver = CheckpointSaver(model, optimizer, args, average, checkpoint_dir=tmp_path, recovery_dir=tmp_path)
    saver.save_checkpoint(0, metric=np.float64(0.5))
    net = load(tmp_path / "last.pth.tar", timm.create_model("test_resnet", num_classes=3))
    assert_loaded(net, model)
    assert "weights_key='state_dict_ema'" in net.weights_note
    module = timm.create_model("test_resnet", num_classes=3)
    assert_loaded(load(tmp_path / "last.pth.tar", module, weights_key="state_dict_ema"), average.module)


def test_metrics_that_are_numpy_scalars_are_no_obstacle(path):
    values = {"best": np.float32(0.5), "epoch": np.int64(3), "done": np.bool_(True)}
    torch.save({"model": trained().state_dict(), **values}, path)
    assert_loaded(load(path), trained())


# Folders


@pytest.mark.parametrize("safe", [True, False, "both"])
def test_a_folder_that_timm_saved_is_loaded(tmp_path, safe):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    save_for_hf(model, tmp_path, safe_serialization=safe)
    assert_loaded(load(tmp_path, timm.create_model("test_resnet", num_classes=3)), model)


def write_shards(folder, state, ending="safetensors"):
    """Write the layout of a sharded `save_pretrained`."""
    stem = "model" if ending == "safetensors" else "pytorch_model"
    keys, weight_map = list(state), {}
    for part, chosen in enumerate((keys[:3], keys[3:]), start=1):
        name = f"{stem}-0000{part}-of-00002.{ending}"
        shard = {key: state[key].clone() for key in chosen}
        (safetensors.torch.save_file if ending == "safetensors" else torch.save)(shard, folder / name)
        weight_map.update(dict.fromkeys(chosen, name))
    index = folder / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_sharded_weights_are_loaded_from_their_folder_and_from_their_index(tmp_path, ending):
    index = write_shards(tmp_path, trained().state_dict(), ending)
    assert_loaded(load(tmp_path), trained())
    assert_loaded(load(index), trained())


def test_a_sharded_index_that_lost_a_file_or_names_one_elsewhere_is_refused(tmp_path, refused):
    index = write_shards(tmp_path, trained().state_dict())
    content = json.loads(index.read_text())
    index.write_text(
        json.dumps({**content, "weight_map": {**content["weight_map"], "head.bias": "../other.safetensors"}})
    )
    assert "names '../other.safetensors', but there is no such file in its folder" in refused(path=index)
    index.write_text(
        json.dumps({**content, "weight_map": {**content["weight_map"], "tail": "model-00001-of-00002.safetensors"}})
    )
    assert "it names 'tail', which its files do not have" in refused(path=index)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "there is no such file" in refused(path=tmp_path)
    index.write_text("[]")
    assert "an index must have a 'weight_map'" in refused(path=index)


def test_a_folder_without_weights_is_refused(tmp_path, refused):
    safetensors.torch.save_file(trained().state_dict(), tmp_path / "weights.safetensors")  # of another program
    assert "has no weights of net 'teacher'; expected the folder of a run" in refused(path=tmp_path)


@pytest.fixture
def two_stages(tmp_path):
    """Return the folder of a run that trained a net alone, and then two nets in one stage."""
    teacher, first, second = (Net(name, Mlp(hidden=width)) for name, width in (("teacher", 5), ("one", 5), ("two", 7)))
    training = Training(epochs=1, batch_size=4)
    stages = [
        Stage({teacher: plain_goal()}, training),
        Stage({first: plain_goal() + Match(teacher, SoftTargets()), second: plain_goal()}, training, name="both"),
    ]
    result = kdkit.run(Recipe(data=tiny_data(), schedule=stages), out=tmp_path / "run", device="cpu")
    return result


def test_a_run_folder_gives_the_net_of_the_same_name(two_stages):
    net = load(two_stages.folder)
    assert_loaded(net, two_stages.nets["teacher"].module)
    assert net.weights_note == ""
    assert_loaded(Net("two", Mlp(hidden=7), weights=two_stages.folder), two_stages.nets["two"].module)
    assert_loaded(load(two_stages.folder / "1-teacher"), two_stages.nets["teacher"].module)


def test_a_run_folder_without_that_net_lists_its_nets(two_stages):
    with pytest.raises(RecipeError) as caught:
        Net("student", Mlp(), weights=two_stages.folder)
    assert "has no weights of net 'student', only of 'teacher', 'one', 'two'" in str(caught.value)
    net = Net("student", Mlp(), weights=two_stages.folder, weights_key="one")
    assert_loaded(net, two_stages.nets["one"].module)
    assert "those of net 'one'" in net.weights_note


def test_weights_of_a_stage_that_is_not_finished_are_noted(two_stages):
    (two_stages.folder / "1-teacher" / "stage.json").unlink()
    assert "stage '1-teacher' is not finished" in load(two_stages.folder).weights_note


def test_the_last_stage_of_a_net_counts(tmp_path):
    net = Net("teacher", Mlp())
    training = Training(epochs=1, batch_size=4)
    stages = [Stage({net: plain_goal()}, training, name=name) for name in ("warm", "tune")]
    result = kdkit.run(Recipe(data=tiny_data(), schedule=stages), out=tmp_path / "run", device="cpu")
    assert_loaded(load(tmp_path / "run"), result.nets["teacher"].module)


# Students in wrappers

WRAPPERS = {"compile": lambda module: torch.compile(module, backend="eager"), "DataParallel": nn.DataParallel}


def device_of(wrap):
    return "auto" if wrap is nn.DataParallel else "cpu"  # it moves a network to the first GPU, if there is one


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_weights_of_a_wrapped_student_load_into_the_plain_one(tmp_path, wrap):
    module = Mlp()
    recipe = one_stage(Net("student", wrap(module)), plain_goal(), epochs=2)
    kdkit.run(recipe, out=tmp_path / "run", device=device_of(wrap))
    file = tmp_path / "run" / "1-student" / "weights.safetensors"
    assert safetensors.torch.load_file(file).keys() == Mlp().state_dict().keys()
    net = Net("student", Mlp(), weights=file)
    assert_loaded(net, module)
    assert net.weights_note == ""


@pytest.mark.parametrize("ema", [None, kdkit.AverageWeights(decay=0.5)], ids=["plain", "average"])
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_run_of_a_wrapped_student_resumes(tmp_path, wrap, ema):
    def recipe():
        torch.manual_seed(0)
        return one_stage(Net("student", wrap(Mlp())), plain_goal(), epochs=3, ema=ema)

    options = {"device": device_of(wrap)}
    whole = kdkit.run(recipe, **options)
    assert_same_results(killed_and_resumed(recipe, tmp_path / "run", KillAfterEpoch(1), **options), whole)
    # A run of a finished stage loads it.
    assert_same_results(kdkit.run(recipe, out=tmp_path / "run", resume=True, **options), whole)


# Tied weights


def test_tied_weights_are_loaded_from_one_of_their_keys(tmp_path):
    torch.manual_seed(1)
    source = Tied()
    safetensors.torch.save_model(source, tmp_path / "w.safetensors")
    assert len(safetensors.torch.load_file(tmp_path / "w.safetensors")) == len(source.state_dict()) - 1
    net = load(tmp_path / "w.safetensors", Tied())
    assert_loaded(net, source)
    assert net.module.head.weight is net.module.embedding.weight
    assert net.weights_note == ""


def test_tied_weights_do_not_fill_a_network_that_does_not_tie_them(tmp_path, refused):
    safetensors.torch.save_model(Tied(), tmp_path / "w.safetensors")
    assert "the file lacks 'head.weight'" in refused(Tied(tie=False), path=tmp_path / "w.safetensors")


def test_different_values_are_not_loaded_into_one_tensor(path, refused):
    torch.save(Tied(tie=False).state_dict(), path)
    assert "'embedding.weight' and 'head.weight' are one tensor in the net, but differ in the file" in refused(Tied())


# What is refused


class Hostile:
    """An object that creates a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, path, refused, legacy):
    trace = tmp_path / "trace"
    content = {"state_dict": trained().state_dict(), "args": Hostile(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert "could run code from the file" in refused()
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # the file is hostile indeed


def test_a_hostile_pickle_without_torch_is_refused(tmp_path, path, refused):
    path.write_bytes(pickle.dumps(Hostile(tmp_path / "trace")))
    assert "cannot be read" in refused()
    assert not (tmp_path / "trace").exists()


class Settings:
    """A class of a training program."""


def test_a_checkpoint_with_other_objects_says_how_to_export_it(path, refused):
    torch.save(lightning_checkpoint(trained().state_dict(), hyper_parameters=Settings()), path)
    message = refused()
    assert "Settings, which is not loaded" in message
    assert "torch.save(model.state_dict(), FILE)" in message


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"losses": [0.1]}])
def test_a_file_without_tensors_is_refused(path, refused, content):
    torch.save(content, path)
    assert "holds no plain state dict" in refused()


def test_another_shape_under_a_prefix_is_refused_with_both_shapes(path, refused):
    torch.save({"state_dict": prefixed("module.", trained(outputs=7).state_dict())}, path)
    message = refused()
    assert "has 'head.bias' of shape (7,), not (3,)" in message
    assert "(the entry 'state_dict', the prefix 'module.' is removed from keys)" in message


@pytest.mark.parametrize(("dtype", "message"), [(torch.int8, "torch.int8, not"), (torch.complex64, "complex64, not")])
def test_tensors_of_another_kind_are_refused(path, refused, dtype, message):
    state = trained().state_dict()
    torch.save({**state, "head.weight": state["head.weight"].to(dtype)}, path)
    assert message in refused()


def test_half_precision_is_loaded(path):
    state = {key: value.half() if value.is_floating_point() else value for key, value in trained().state_dict().items()}
    torch.save(state, path)
    assert torch.equal(load(path).module.head.weight, state["head.weight"].float())


def test_a_network_without_shapes_is_refused(path, refused):
    torch.save({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, path)
    with pytest.raises(RecipeError, match="'weight' has no shape yet; run its module once first"):
        load(path, nn.LazyLinear(2))


# Weights that fit in part


def test_weights_that_fit_in_part_are_loaded_if_that_is_requested(path):
    source = trained(outputs=7)
    state = prefixed("module.", source.state_dict())
    state["module.extra"] = state.pop("module.hidden.bias")
    torch.save({"state_dict": state}, path)
    module = Mlp()
    bias, head = module.hidden.bias.detach().clone(), module.head.weight.detach().clone()
    net = load(path, module, strict=False)
    assert torch.equal(module.hidden.weight, source.hidden.weight)
    assert torch.equal(module.hidden.bias, bias)
    assert torch.equal(module.head.weight, head)
    for text in (
        "6 of the 9 tensors of the net are loaded",
        "the file lacks 'hidden.bias', which keep their values in the net",
        "not loaded: 'head.bias' of shape (7,), not (3,)",
        "not loaded: 'head.weight' of shape (7, 5), not (3, 5)",
        "not used: 'module.extra' of the file",
    ):
        assert text in net.weights_note
    assert not net.trained
    assert load(path, Mlp(), strict=False, trained=True).trained


def test_weights_with_more_than_the_net_has_are_complete(path):
    torch.save({**trained().state_dict(), "total_ops": torch.zeros(1)}, path)
    net = load(path, strict=False)
    assert_loaded(net, trained())
    assert "not used: 'total_ops' of the file" in net.weights_note


def test_strict_false_is_offered_if_some_fit_and_refused_if_none_do(path, refused):
    torch.save(trained(outputs=7).state_dict(), path)
    assert refused().endswith("strict=False loads the tensors that fit")
    torch.save({"a": torch.zeros(3)}, path)
    assert "do not fit net 'teacher'" in refused(strict=False)


def test_if_only_the_weights_or_only_the_net_are_pruned_they_are_refused_with_the_remedy(path):
    source, module = trained(), Mlp()
    prune.l1_unstructured(source.hidden, "weight", amount=0.5)
    torch.save(source.state_dict(), path)
    with pytest.raises(RecipeError, match=r"these weights are pruned: .*prune\.identity\(layer, 'weight'\) before"):
        load(path, module)
    prune.identity(module.hidden, "weight")
    load(path, module)
    assert torch.equal(module.hidden.weight_mask, source.hidden.weight_mask)
    assert torch.equal(module.hidden.weight, source.hidden.weight)  # which torch computes in forward passes only
    torch.save(trained().state_dict(), path)
    with pytest.raises(RecipeError, match="the net is pruned already: load the weights before it is pruned"):
        load(path, module)


def test_weights_of_a_part_are_refused_with_the_net_that_loads_them(path, refused):
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = Mlp(), nn.Linear(3, 2)

    base = trained()
    torch.save(base.state_dict() | {"pooler.weight": torch.zeros(2)}, path)
    module = Classifier()
    message = refused(module)
    assert "has the weights of its part 'body' alone" in message
    assert "Net('part', module.get_submodule('body'), weights=...)" in message
    torch.save(base.state_dict(), path)
    assert message == refused(module)
    assert_loaded(load(path, module.body), base)
    torch.save(nn.Linear(4, 2).state_dict(), path)
    assert "has the weights of its part '1' alone" in refused(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    assert "of its part" not in refused(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)))


def test_strict_false_prefers_weights_that_fit_entirely(path):
    torch.save({"state_dict": trained().state_dict(), "old": trained(outputs=7).state_dict()}, path)
    assert_loaded(load(path, strict=False), trained())


def test_a_teacher_with_a_part_of_its_weights_does_not_teach(path):
    torch.save(trained(outputs=7).state_dict(), path)
    net = load(path, strict=False)
    with pytest.raises(CheckError, match="has only a part of its weights"):
        kdkit.run(one_stage(Net("student", Mlp()), Match(net, SoftTargets())), device="cpu")


def test_options_of_weights_without_weights_are_refused():
    for options in ({"strict": False}, {"weights_key": "ema"}):
        with pytest.raises(RecipeError, match="choose what to load from weights=FILE"):
            Net("teacher", Mlp(), **options)


def test_a_weights_key_that_is_no_text_is_refused(path, refused):
    torch.save(trained().state_dict(), path)
    assert "weights_key of net 'teacher' must be a text such as 'student'; got 3" in refused(weights_key=3)


# Runs


def test_a_run_notes_what_was_loaded(path):
    torch.save(prefixed("module.", trained().state_dict()), path)
    teacher, recorder = load(path), Recorder()
    recipe = one_stage(Net("student", Mlp()), plain_goal() + Match(teacher, SoftTargets()))
    kdkit.run(recipe, device="cpu", callbacks=[recorder])
    assert teacher.weights_note in recorder.notices


def test_the_key_of_cached_outputs_depends_on_weights_and_not_on_their_file(tmp_path):
    torch.save(trained().state_dict(), tmp_path / "plain.pth")
    torch.save({"state_dict": prefixed("module.", trained().state_dict())}, tmp_path / "wrapped.ckpt")
    torch.save(trained(2).state_dict(), tmp_path / "other.pth")
    digests = [
        compute_key(load(tmp_path / name), (), data={}, settings={}).digest
        for name in ("plain.pth", "wrapped.ckpt", "other.pth")
    ]
    assert digests[0] == digests[1] != digests[2]
    assert repr(load(tmp_path / "wrapped.ckpt")) == "Net('teacher', Mlp)"
