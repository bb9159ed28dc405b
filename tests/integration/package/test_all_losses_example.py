"""Every loss, as the example all_losses.py uses it, trains, resumes exactly, and leaves the saved student unchanged."""

import re
import types

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Recipe, RecipeError, Stage, TorchData, Training, hookimpl
from kdkit.plugins.manager import installed
from kdkit_ecg import Synthetic
from tests.helpers.callbacks import KillAtStep, PressCtrlC, killed_and_resumed
from tests.helpers.modules import load_module
from tests.helpers.stages import assert_same_results, last_checkpoint

all_losses = load_module("examples/all_losses.py")

HARD = {"dkd", "margin_mse", "nkd", "ofa", "pskd", "rld", "sdd", "wsld"}  # these need one class per sample
SEVERAL = {"per_label_dkd", "per_label_pskd", "per_label_rld", "led"}  # these need several labels per sample
FOR_DIGITS = [name for name in all_losses.NAMES if name not in SEVERAL]
ON_FEATURES = [name for name, (sides, _) in all_losses.LOSSES.items() if sides != all_losses.OUTPUTS]
# The classifiers of the networks for ECGs do not follow the pooling of a map.
ON_MAPS_OF_CLASSES = [name for name in ON_FEATURES if all_losses.LOSSES[name][0] == all_losses.CLASSES]
FOR_ECG = [
    *all_losses.PER_LABEL,
    *(name for name in ON_FEATURES if name not in ON_MAPS_OF_CLASSES),
    "simkd",
    "mean_teacher",
]
# Many losses save no state of their own, and many that of a projector alone: the suite has time for a few of them.
WITHOUT_STATE = [
    name
    for name in all_losses.LOSSES
    if name in FOR_DIGITS and not isinstance(kdkit.registry("losses")[name](), nn.Module)
]
PROJECTED = ["hint", "cosine", "square_head", "distil_hubert", "cwd", "pkd", "mgd", "dist_plus", "wkdf"]
PROJECTED += ["fsp", "kdsvd", "ft", "ickd", "ab", "pad"]
WITH_STATE = [name for name in FOR_DIGITS if name not in (*WITHOUT_STATE, *PROJECTED)]
# That a state dict restores a loss is tested for each of them, in tests/contract. These remember samples or steps.
MEMORIES = {"crd", "mean_teacher", "pskd", "queue_kl", "simkd", "taid"} & set(FOR_DIGITS)
IN_SUITE = {*WITH_STATE[::8], *MEMORIES, *WITHOUT_STATE[::16], *PROJECTED[::8]}
# Most of these are tried with digits too: the suite has time for those with a state.
ON_ECG_IN_SUITE = {"led", "per_label_pskd", "simkd"}
RECORDS = Synthetic(train=12, validation=4, test=4, length=500)


def random_digits(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 10)


DIGITS = TorchData(random_digits(12, 0), random_digits(4, 1), random_digits(4, 2), classes=list("0123456789"))


def recipe(name, data, epochs=2):
    """Return the example's last stage alone, on a few samples, with an untrained teacher."""
    teacher = all_losses.teacher_net(data)
    teacher.net.trained = True  # so that the stage accepts it as a teacher
    stage = Stage(
        all_losses.student_objectives(name, data, teacher), Training(epochs=epochs, batch_size=6, keep="last")
    )
    return Recipe(data=DIGITS if data == "digits" else RECORDS, schedule=[stage])


def student_keys(name, data):
    """Return the keys of the student's weights, without those of the loss."""
    teacher = all_losses.teacher_net(data)
    net = all_losses.simkd_student(data, teacher) if name == "simkd" else all_losses.student_net(data).net
    return net.module.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        *(pytest.param(name, "digits", marks=[pytest.mark.slow] * (name not in IN_SUITE)) for name in FOR_DIGITS),
        *(pytest.param(name, "ecg", marks=[pytest.mark.slow] * (name not in ON_ECG_IN_SUITE)) for name in FOR_ECG),
    ],
)
def test_a_resumed_run_has_identical_weights_and_saves_the_student_alone(name, data, tmp_path):
    recipes = []

    def function():
        recipes.append(recipe(name, data))
        return recipes[-1]

    # To measure the networks, or to cache the outputs of the teacher, takes as long as to train them.
    options = {"device": "cpu", "measure": False, "teacher_cache": "off"}
    whole = kdkit.run(function, **options)
    with pytest.raises(KeyboardInterrupt):
        kdkit.run(function, **options, out=tmp_path / "run", callbacks=[PressCtrlC(1)])
    (folder,) = tmp_path.glob("run/1-*")
    checkpoint = last_checkpoint(folder)
    resumed = kdkit.run(function, **options, out=tmp_path / "run", resume=True)

    assert checkpoint["position"]["batches"] == 1  # of two in this epoch
    # The state of an epoch holds the weights and buffers of the losses.
    (stage,) = recipes[1].stages
    losses = [weighted.term.loss for objective in stage.objectives.values() for weighted in objective]
    states = [loss.state_dict() for loss in losses if isinstance(loss, nn.Module)]
    saved = [value for key, value in checkpoint["train_state"]["module"].items() if key.startswith("losses.")]
    assert [value.shape for value in saved] == [value.shape for state in states for value in state.values()]
    assert_same_results(whole, resumed)
    for file in folder.glob("weights*.safetensors"):  # one for each student
        assert load_file(file).keys() == student_keys(name, data)


def test_a_resumed_run_restores_a_head_that_an_earlier_stage_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(all_losses, "digits", lambda samples: DIGITS)

    def function():
        return all_losses.recipe("simkd", epochs=2)

    kill = KillAtStep(1, stage="student")
    resumed = killed_and_resumed(function, tmp_path / "run", kill, device="cpu")
    assert_same_results(resumed, kdkit.run(function, device="cpu"))
    teacher, student = (resumed.nets[name].network.state_dict() for name in ("teacher", "student"))
    assert torch.equal(student["head.1.weight"], teacher["fc.weight"])


def test_every_registered_loss_has_an_entry():
    registered, listed = set(kdkit.registry("losses")), set(all_losses.NAMES) - {"none", "simkd", "mean_teacher"}
    assert listed == registered, f"list these in examples/all_losses.py: {registered ^ listed}"


@pytest.mark.parametrize("name", sorted(HARD))
def test_a_loss_that_needs_one_class_per_sample_is_refused_on_ecgs(name):
    with pytest.raises(RecipeError, match=r"needs one class per sample.*take --loss per_label_"):
        all_losses.recipe(name, "ecg", samples=8)


@pytest.mark.parametrize("name", sorted(SEVERAL))
def test_a_loss_that_needs_several_labels_per_sample_is_refused_on_digits(name):
    problems = kdkit.check(recipe(name, "digits")).problems
    assert re.search("for one class per sample use the loss without PerLabel|LED needs a value", " ".join(problems))


def test_a_loss_on_maps_of_classes_is_refused_on_ecgs():
    with pytest.raises(RecipeError, match="take --data digits or another loss"):
        all_losses.recipe("catkd", "ecg", samples=8)


@pytest.mark.parametrize("samples", [0, 1001])
def test_a_number_of_digits_out_of_range_is_refused(samples):
    with pytest.raises(RecipeError, match="1 to 1000 digits"):
        all_losses.recipe("none", samples=samples)


def test_a_loss_of_another_plugin_compares_outputs():
    def l1(student, target):
        return (student - target).abs().mean()

    plugin = types.ModuleType("plugin")
    plugin.register_losses = hookimpl(specname="register_losses")(lambda register: register("l1", lambda: l1))
    installed().add(plugin, "plugin")
    assert not kdkit.check(recipe("l1", "digits")).problems


def test_the_weight_option_replaces_the_default():
    ((_, objective),) = all_losses.recipe("hint", weight=7.0).stages[-1].objectives.items()
    assert objective.weights(0.0) == {"truth": 1, "teacher/hint": 7.0}


def test_sem_ckd_on_ecgs_has_the_weights_of_lrh_net():
    ((_, objective),) = all_losses.recipe("sem_ckd", "ecg", samples=8).stages[-1].objectives.items()
    assert objective.weights(0.0) == {"teacher/soft_targets": 1, "truth": 1, "teacher/sem_ckd": 40.0}
    soft = next(weighted.term.loss for weighted in objective if weighted.term.label == "teacher/soft_targets")
    assert (soft.temperature, soft.t_squared) == (4.0, True)


@pytest.mark.parametrize("name", ["hint", "simkd"])
def test_a_teacher_is_trained_first_if_the_loss_uses_one(name):
    assert [stage.name for stage in all_losses.recipe(name).stages] == ["teacher", "student"]
    assert [stage.name for stage in all_losses.recipe("none").stages] == ["student"]
