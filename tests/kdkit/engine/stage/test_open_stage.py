"""A stage is opened: taps are placed, teachers are frozen, and both end when it is closed."""

import pytest
import torch
from torch.utils.data import DataLoader

from kdkit import Batch, BuildContext, Match, Net, Peer, RecipeError, Stage, TorchData, Training
from kdkit.engine.stage.open_stage import OpenStage, build_context, tiny_batch
from kdkit.losses import Hint, SoftTargets
from tests.helpers.open_stages import hidden_taps, open_and_build
from tests.helpers.tiny import hooks_of, plain_goal, samples, tiny_data, tiny_net

CONTEXT = BuildContext(classes=("a", "b", "c"), task="multiclass", samples=8, ids=True)
CPU = torch.device("cpu")
BATCH = Batch(torch.randn(2, 4), torch.tensor([0, 1]), torch.arange(2))


def stage_of(objective, student):
    return Stage({student: objective}, Training(epochs=1, batch_size=4))


def test_a_teacher_is_in_eval_mode_while_the_stage_is_open():
    teacher, student = tiny_net("teacher", trained=True), tiny_net("student")
    teacher.module.train()
    with open_and_build(stage_of(Match(teacher, SoftTargets()), student), CONTEXT, BATCH):
        assert not any(module.training for module in teacher.module.modules())
    assert all(module.training for module in teacher.module.modules())


def test_teachers_of_one_module_restore_its_mode():
    first, student = tiny_net("first", trained=True), tiny_net("student")
    second = Net("second", first.module, trained=True)
    first.module.train()
    objective = Match(first, SoftTargets()) + Match(second, SoftTargets())
    with open_and_build(stage_of(objective, student), CONTEXT, BATCH):
        assert not first.module.training
    assert first.module.training


def test_a_stage_that_cannot_be_moved_to_its_device_leaves_no_hook():
    teacher, student = tiny_net("teacher", trained=True), tiny_net("student")
    teacher.module.train()
    stage = stage_of(Match(teacher, Hint(), **hidden_taps(student, teacher)), student)
    # torch raises one of these, depending on whether it was built with CUDA.
    with pytest.raises((AssertionError, RuntimeError)):
        OpenStage(stage, CONTEXT, torch.device("cuda:99"))
    assert hooks_of(student.module) == hooks_of(teacher.module) == 0
    assert teacher.module.training


def test_a_stage_whose_second_teacher_cannot_be_opened_closes_the_first():
    class Broken:
        name = "broken"

        def open(self, taps, context):
            raise ValueError("not today")

    teacher, student = tiny_net("teacher", trained=True), tiny_net("student")
    teacher.module.train()
    features = Match(teacher, Hint(), **hidden_taps(student, teacher))
    with pytest.raises(RecipeError, match=r"'broken' cannot be opened: .* raises ValueError: not today"):
        OpenStage(stage_of(features + Match(Broken(), SoftTargets()), student), CONTEXT, CPU)
    assert hooks_of(student.module) == hooks_of(teacher.module) == 0
    assert teacher.module.training


def test_teachers_get_the_context_with_the_batch_size_of_the_stage():
    contexts = []

    class Recording:
        name = "recording"

        def open(self, taps, context):
            contexts.append(context)
            raise ValueError("seen")

    student = tiny_net("student")
    with pytest.raises(RecipeError, match="seen"):
        OpenStage(stage_of(Match(Recording(), SoftTargets()), student), CONTEXT, CPU)
    assert [(context.batch_size, context.classes) for context in contexts] == [(4, ("a", "b", "c"))]


def test_the_output_of_every_teacher_is_returned_by_name_and_a_peer_does_not_run():
    teacher, student = tiny_net("teacher", trained=True, hidden=7), tiny_net("student")
    objective = Match(teacher, Hint(), **hidden_taps(student, teacher)) + Match(Peer(student), Hint(), label="peer")
    with OpenStage(stage_of(plain_goal() + objective, student), CONTEXT, CPU) as stage:
        outputs = stage.teacher_outputs(BATCH)
    assert list(outputs) == ["teacher"]
    assert outputs["teacher"].output.shape == (2, 3)
    assert [tuple(feature.shape) for feature in outputs["teacher"].features] == [(2, 7)]
    assert outputs["teacher"].mask is None
    assert not outputs["teacher"].output.requires_grad


def test_the_context_holds_the_facts_about_the_data():
    data = tiny_data("multilabel", rows=5)
    assert build_context(data) == BuildContext(classes=("a", "b", "c"), task="multilabel", samples=5, ids=True)


def test_the_context_of_a_user_defined_loader_has_no_ids_and_no_number_of_samples():
    data = TorchData(DataLoader(samples(), batch_size=4), samples(), classes=["a", "b", "c"])
    context = build_context(data)
    assert (context.samples, context.ids) == (None, False)


@pytest.mark.parametrize(
    ("rows", "batch_size", "ids"),
    [
        (8, 4, [0, 1, 2, 3]),
        (8, 64, [0, 1, 2, 3]),  # larger batches are not needed to learn the shapes
        (8, 1, [0]),  # a batch norm in training mode fails for one sample, which a dry run must show
        (3, 4, [0, 1, 2, 2]),
        (1, 4, [0]),
    ],
)
def test_a_tiny_batch_has_four_samples_if_the_batch_size_and_the_data_allow_it(rows, batch_size, ids):
    data = tiny_data(rows=rows)
    assert tiny_batch(data, batch_size).ids.tolist() == data.train.ids[ids].tolist()


def test_the_tiny_batch_of_a_user_defined_loader_is_its_first_batch():
    data = TorchData(DataLoader(samples(), batch_size=5), samples(), classes=["a", "b", "c"])
    batch = tiny_batch(data, 2)
    assert torch.equal(batch.inputs, samples().tensors[0][:5])
