"""Every loss on the shelf, as the zoo wires it: trained by the real engine, stopped and gone on with, and let go of."""

import importlib.util
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
from tests.helpers.command_line import ROOT


def zoo_module():
    spec = importlib.util.spec_from_file_location("all_losses", ROOT / "examples" / "all_losses.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


zoo = zoo_module()

HARD = {"dkd", "nkd", "pskd"}  # they need one class per sample
FOR_DIGITS = [name for name in zoo.NAMES if name not in {"per_label_dkd", "per_label_pskd"}]
ON_FEATURES = [name for name, (compared, _) in zoo.LOSSES.items() if compared != zoo.OUTPUTS]
FOR_ECG = [*zoo.PER_LABEL, *ON_FEATURES, "simkd", "mean_teacher"]
RECORDS = Synthetic(train=12, validation=4, test=4, length=500)


def drawn(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % 10)


DIGITS = TorchData(drawn(12, 0), drawn(4, 1), drawn(4, 2), classes=list("0123456789"))


def recipe(name, data, epochs=2):
    """Return the zoo's last stage alone, on a few samples; its teacher stays as it was made."""
    teacher = zoo.large(data)
    teacher.net.trained = True
    stage = Stage(zoo.student_goals(name, data, teacher), Training(epochs=epochs, batch_size=6, keep="last"))
    return Recipe(data=DIGITS if data == "digits" else RECORDS, schedule=[stage])


class Stop:
    """Interrupt a run, as a keyboard does, in the first step of the student's second epoch."""

    @hookimpl
    def step_ended(self, event):
        if event.epoch == 1 and event.stage != "teacher":
            raise KeyboardInterrupt


def weights(run):
    return {
        (path.name, key): value for path in run.glob("*/weights*.safetensors") for key, value in load_file(path).items()
    }


def own_keys(name, data):
    """What a student is made of, without whatever its loss needs."""
    teacher = zoo.large(data)
    module = zoo.reusing(data, teacher).module if name == "simkd" else zoo.small(data).net.module
    return set(module.state_dict())


@pytest.mark.parametrize(
    ("name", "data"), [*((name, "digits") for name in FOR_DIGITS), *((name, "ecg") for name in FOR_ECG)]
)
def test_a_run_gone_on_with_ends_in_the_same_bits_and_leaves_the_student_alone(name, data, tmp_path):
    made = []

    def function():
        made.append(recipe(name, data))
        return made[-1]

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    kdkit.run(function, device="cpu", out=whole)
    with pytest.raises(KeyboardInterrupt):
        kdkit.run(function, device="cpu", out=cut, callbacks=[Stop()])
    state = torch.load(next(cut.glob("1-*/state.pt")), weights_only=True)["work"]
    kdkit.run(function, device="cpu", out=cut, resume=True)

    (stage,) = made[1].stages
    losses = [each.term.loss for objective in stage.objectives.values() for each in objective]
    of_losses = [loss.state_dict() for loss in losses if isinstance(loss, nn.Module)]
    saved = [value for key, value in state["lesson"].items() if key.startswith("losses.")]
    assert [value.shape for value in saved] == [value.shape for each in of_losses for value in each.values()]
    one, other = weights(whole), weights(cut)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    for net in stage.objectives:
        keys = {key for file, key in one if len(stage.objectives) == 1 or file == f"weights-{net.name}.safetensors"}
        assert keys == own_keys(name, data)


def test_a_head_that_was_trained_in_the_same_run_is_there_again_when_it_is_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "digits", lambda samples: DIGITS)

    def function():
        return zoo.recipe("simkd", epochs=2)

    kdkit.run(function, device="cpu", out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        kdkit.run(function, device="cpu", out=tmp_path / "cut", callbacks=[Stop()])
    kdkit.run(function, device="cpu", out=tmp_path / "cut", resume=True)
    one, other = (load_file(tmp_path / run / "2-student" / "weights.safetensors") for run in ("whole", "cut"))
    teacher = load_file(tmp_path / "whole" / "1-teacher" / "weights.safetensors")
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert torch.equal(one["head.1.weight"], teacher["fc.weight"])


def test_every_loss_on_the_shelf_has_an_entry():
    assert set(kdkit.registry("losses")) == set(zoo.NAMES) - {"none", "simkd", "mean_teacher"}


@pytest.mark.parametrize("name", sorted(HARD))
def test_a_loss_that_needs_one_class_per_sample_is_refused_on_ecgs(name):
    with pytest.raises(RecipeError, match=r"needs one class per sample.*take --loss per_label_"):
        zoo.recipe(name, "ecg", samples=8)


@pytest.mark.parametrize("name", ["per_label_dkd", "per_label_pskd"])
def test_a_loss_that_needs_an_answer_for_every_label_is_refused_on_digits(name):
    problems = kdkit.check(recipe(name, "digits")).problems
    assert "take the loss without PerLabel" in " ".join(problems)


@pytest.mark.parametrize("samples", [0, 1001])
def test_more_digits_than_there_are_to_learn_from_are_refused(samples):
    with pytest.raises(RecipeError, match="1 to 1000 digits"):
        zoo.recipe("none", samples=samples)


def test_a_loss_of_ones_own_plugin_compares_outputs():
    def mine(student, target):
        return (student - target).abs().mean()

    plugin = types.ModuleType("plugin")
    plugin.register_losses = hookimpl(specname="register_losses")(lambda register: register("mine", lambda: mine))
    installed().add(plugin, "plugin")
    assert not kdkit.check(recipe("mine", "digits")).problems


def test_a_weight_of_ones_own_takes_the_place_of_the_tables():
    taught = zoo.recipe("hint", weight=7.0)
    ((_, objective),) = taught.stages[-1].objectives.items()
    assert objective.weights(0.0) == {"truth": 1, "teacher/hint": 7.0}


def test_sem_ckd_on_ecgs_is_the_recipe_of_lrh_net():
    ((_, objective),) = zoo.recipe("sem_ckd", "ecg", samples=8).stages[-1].objectives.items()
    assert objective.weights(0.0) == {"teacher/soft_targets": 1, "truth": 1, "teacher/sem_ckd": 40.0}
    soft = next(each.term.loss for each in objective if each.term.label == "teacher/soft_targets")
    assert (soft.temperature, soft.t_squared) == (4.0, True)


@pytest.mark.parametrize("name", ["hint", "simkd"])
def test_a_teacher_is_trained_first_where_one_is_asked(name):
    assert [stage.name for stage in zoo.recipe(name).stages] == ["teacher", "student"]
    assert [stage.name for stage in zoo.recipe("none").stages] == ["student"]
