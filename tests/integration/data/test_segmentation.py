"""A label or a number for each pixel: terms, metrics, teachers, several processes, and mistakes."""

import re

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, jaccard_score
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import Match, Net, Past, Tap, Teachers, TorchData, Truth
from kdkit.data.device_data import DeviceData
from kdkit.engine.predict import Predictor
from kdkit.errors import CheckError
from kdkit.losses import (
    CTKD,
    CWD,
    DIST,
    DKD,
    MLLD,
    NKD,
    PSKD,
    RLD,
    TAID,
    TTM,
    ULD,
    WSLD,
    WTTM,
    AdaptiveKL,
    AlphaBetaDivergence,
    GeneralisedJSD,
    HardTargets,
    LogitMSE,
    LogitStandardisation,
    PerLabelDKD,
    PerLabelSoftTargets,
    PerPosition,
    PerTeacher,
    ReverseKL,
    SampleWeighted,
    SkewKL,
    SkewReverseKL,
    SoftTargets,
    TotalVariation,
)
from kdkit.metrics import MAE, MSE, R2, Accuracy, MacroAUPRC, MacroF1, MeanIoU, MetricResult, Pearson
from tests.helpers.command_line import environment
from tests.helpers.positions import CLASSES, VOID, as_rows, cross_entropy, images, problems, recipe_of, segmenter
from tests.helpers.processes import run_python
from tests.helpers.ranks import in_two_processes


def test_a_student_learns_to_segment_images_from_labels_and_a_teacher():
    teacher, student = Net("teacher", segmenter(), trained=True), Net("student", segmenter())
    with torch.no_grad():  # the largest channel is the class
        teacher.module.weight.zero_()
        teacher.module.bias.zero_()
        teacher.module.weight[range(3), range(3), 1, 1] = 8.0
    objective = 0.5 * Truth(cross_entropy()) + 0.5 * Match(teacher, SoftTargets())
    data = TorchData(images(), images(seed=1), images(seed=2), classes=CLASSES)
    result = kdkit.run(recipe_of(objective, student, data, epochs=30))
    assert result.metrics["teacher"]["mean_iou"].value == 1.0
    assert result.metrics["student"]["accuracy"].value > 0.8
    assert set(result.metrics["student"]["mean_iou"].by_class) == set(CLASSES)


def test_metrics_of_images_are_those_of_their_labelled_pixels():
    student = Net("student", segmenter())
    metrics = (MeanIoU(), Accuracy(), MacroF1())
    validation = images(seed=1)
    result = kdkit.run(recipe_of(Truth(cross_entropy()), student, TorchData(images(), validation), metrics=metrics))
    inputs, labels = validation.tensors
    with torch.no_grad():
        outputs, truth = as_rows(student.module.cpu()(inputs), labels, VOID)
    predicted = outputs.argmax(1)
    values = {name: metric.value for name, metric in result.metrics["student"].items()}
    assert values == pytest.approx(
        {
            "mean_iou": jaccard_score(truth, predicted, average="macro"),
            "accuracy": accuracy_score(truth, predicted),
            "macro_f1": f1_score(truth, predicted, average="macro"),
        },
        abs=1e-12,
    )


def test_metrics_of_saved_predictions_and_the_table_of_classes_are_those_of_the_run(tmp_path, kdkit_here):
    student, folder = Net("student", segmenter()), tmp_path / "run"
    result = kdkit.run(recipe_of(Truth(cross_entropy()), student, TorchData(images(), images(seed=1))), out=folder)
    evaluated = kdkit.evaluate(
        recipe_of(Truth(cross_entropy()), Net("student", segmenter()), TorchData(images(), images(seed=1))), folder
    )
    assert {name: metric.value for name, metric in evaluated.items()} == {
        name: metric.value for name, metric in result.metrics["student"].items()
    }
    labels = images(seed=1).tensors[1]
    table = kdkit_here("classes", folder)
    assert table.code == 0
    assert str(int((labels == 0).sum())) in table.out
    assert "thresholds were chosen" not in table.out + table.err  # pixels have none


def test_one_output_for_two_classes_is_refused_with_the_labels_that_it_takes():
    inputs, labels = images(void=False).tensors
    indices = torch.utils.data.TensorDataset(inputs, (labels > 0).long())
    objective = Truth(nn.BCEWithLogitsLoss())
    refused = recipe_of(objective, Net("student", segmenter(1)), TorchData(indices, indices))
    advice = "; labels for one output are floats (samples, 1, *positions), and TorchData(..., classes=1)"
    assert problems(refused).endswith(advice)
    floats = torch.utils.data.TensorDataset(inputs, (labels > 0).float().unsqueeze(1))
    assert not problems(recipe_of(objective, Net("student", segmenter(1)), TorchData(floats, floats, classes=1)))


def test_masks_with_a_last_dimension_of_one_are_refused_with_the_remedy():
    inputs, labels = images().tensors
    rows = torch.utils.data.TensorDataset(inputs, labels[..., None])
    data = TorchData(rows, rows, classes=CLASSES)
    problem = problems(recipe_of(Truth(cross_entropy()), Net("student", segmenter()), data))
    assert problem.endswith("; masks (height, width, 1) need labels.squeeze(-1) in the data")


def test_an_auxiliary_head_of_a_lower_resolution_is_resized_by_its_tap():
    class Deep(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1))
            self.head = nn.Conv2d(4, 3, 2, stride=2)

        def forward(self, inputs):
            hidden = self[0](inputs)
            self.head(hidden)
            return self[1](hidden)

    data = TorchData(images(), images(seed=1), classes=CLASSES)
    student, loss = Net("student", Deep()), cross_entropy()
    objective = Truth(loss) + Truth(loss, label="deep", student=Tap(student.module.head))
    resize = "Tap(..., element=lambda outputs: nn.functional.interpolate(outputs, (8, 8)))"
    assert problems(recipe_of(objective, student, data)).endswith(
        f"; resize them to the positions of the labels, {resize}"
    )
    student = Net("student", Deep())
    resized = Tap(student.module.head, element=lambda maps: nn.functional.interpolate(maps, (8, 8)))
    objective = Truth(loss) + Truth(loss, label="deep", student=resized)
    assert not problems(recipe_of(objective, student, data))


@pytest.mark.parametrize(
    "make",
    [
        SoftTargets,
        HardTargets,
        DKD,
        NKD,
        DIST,
        LogitMSE,
        LogitStandardisation,
        ReverseKL,
        GeneralisedJSD,
        SkewKL,
        SkewReverseKL,
        AdaptiveKL,
        AlphaBetaDivergence,
        TotalVariation,
        TTM,
        WTTM,
        WSLD,
        MLLD,
        RLD,
        ULD,
        lambda: PerTeacher(DKD(), weights=(0.25, 0.75)),
    ],
)
def test_a_loss_on_outputs_compares_the_positions_that_have_a_label(make):
    torch.manual_seed(0)
    inputs, labels = images(4).tensors
    first, second = (Net(name, segmenter(), trained=True) for name in ("first", "second"))
    student, loss = Net("student", segmenter()), make()
    teacher = Teachers(first, second) if isinstance(loss, PerTeacher) else first
    with kdkit.Distiller(student, Match(teacher, loss, label="term"), (inputs, labels), classes=CLASSES) as distiller:
        value = distiller(inputs, labels).terms["term"]
    rows, kept = as_rows(student.module(inputs), labels, VOID)
    kwargs = {"labels": kept} if make in (DKD, NKD, RLD, WSLD) else {}
    with torch.no_grad():
        targets = [as_rows(net.module(inputs), labels, VOID)[0] for net in (first, second)]
        if isinstance(loss, PerTeacher):
            expected = 0.25 * DKD()(rows, targets[0], labels=kept) + 0.75 * DKD()(rows, targets[1], labels=kept)
        else:
            expected = loss(rows, targets[0], **kwargs)
    torch.testing.assert_close(value, expected)


def test_a_position_without_a_label_has_no_gradient():
    inputs, labels = images(4).tensors
    student, teacher = Net("student", nn.Conv2d(3, 3, 1)), Net("teacher", segmenter(), trained=True)
    objective = Truth(cross_entropy()) + Match(teacher, SoftTargets()) + Match(teacher, DKD())
    with kdkit.Distiller(student, objective, (inputs, labels), classes=CLASSES) as distiller:
        step = distiller(inputs, labels)
        (gradient,) = torch.autograd.grad(step.loss, step.outputs)
    assert not gradient[:, :, 0].any()
    assert gradient[:, :, 1:].abs().min() > 0


@pytest.mark.parametrize("make", [DKD, TAID, CTKD])
def test_a_batch_without_any_label_has_a_loss_of_zero(make):
    inputs, labels = images(4).tensors
    student, teacher = Net("student", segmenter()), Net("teacher", segmenter(), trained=True)
    with kdkit.Distiller(student, Match(teacher, make()), (inputs, labels), classes=CLASSES) as distiller:
        loss = distiller(inputs, torch.full_like(labels, VOID), progress=0.0).loss
        loss.backward()
    assert loss == 0


def test_per_position_without_an_ignore_index_compares_images_without_labels_too():
    inputs, labels = images(4).tensors
    student, teacher = Net("student", segmenter()), Net("teacher", segmenter(), trained=True)
    loss = PerPosition(SoftTargets(), ignore_index=None)
    with kdkit.Distiller(student, Match(teacher, loss), (inputs, labels), classes=CLASSES) as distiller:
        value = distiller(inputs, torch.full_like(labels, VOID)).loss
    with torch.no_grad():
        sides = [net.module(inputs).permute(0, 2, 3, 1).reshape(-1, 3) for net in (student, teacher)]
        torch.testing.assert_close(value.detach(), SoftTargets()(*sides))


def test_a_term_that_compares_no_position_of_the_first_samples_is_a_notice():
    inputs, labels = images(8).tensors
    unlabelled = TensorDataset(inputs, torch.full_like(labels, VOID))
    data = TorchData(unlabelled, TensorDataset(inputs, labels), classes=CLASSES)
    student, teacher = Net("student", segmenter()), Net("teacher", segmenter(), trained=True)
    objective = Match(teacher, SoftTargets()) + Match(teacher, DKD())
    objective += Match(teacher, PerPosition(SoftTargets(), ignore_index=None))
    first, second = (note for note in kdkit.check(recipe_of(objective, student, data)).notices if "position of" in note)
    assert first.startswith("term 'teacher/soft_targets' compares no position of the first samples, ")
    assert first.endswith("none of them has a label; PerPosition(loss, ignore_index=None) compares all positions")
    assert re.fullmatch(r"term 'teacher/dkd' compares no position .* has a label", second)


def test_without_labels_a_distiller_compares_all_positions():
    inputs, _ = images(4).tensors
    student = Net("student", segmenter(), channels_last=False)
    teacher = Net("teacher", segmenter(), channels_last=False, trained=True)
    objective = Match(teacher, SoftTargets()) + Match(teacher, PerPosition(SoftTargets(), ignore_index=None))
    with kdkit.Distiller(student, objective, (inputs, None)) as distiller, torch.no_grad():
        terms = distiller(inputs).terms
        sides = [net.module(inputs).permute(0, 2, 3, 1).reshape(-1, 3) for net in (student, teacher)]
    expected = SoftTargets()(*sides)
    torch.testing.assert_close([*terms.values()], [expected, expected])


def test_a_distiller_without_labels_needs_channels_last_if_a_term_takes_outputs_with_positions():
    inputs, _ = images(4).tensors
    student, teacher = Net("student", segmenter()), Net("teacher", segmenter(), trained=True)
    with pytest.raises(CheckError, match=r"the classes; pass Net\(..., channels_last=True\)") as error:
        kdkit.Distiller(student, Match(teacher, SoftTargets()), (inputs, None))
    assert len(error.value.problems) == 2  # one for each network
    with pytest.raises(CheckError, match=r"has none; PerPosition\(loss, ignore_index=None\) compares all positions"):
        kdkit.Distiller(student, Match(teacher, PerPosition(SoftTargets())), (inputs, None))
    features = Match(teacher, CWD(), student=Tap(student.module), target=Tap(teacher.module))
    kdkit.Distiller(student, features, (inputs, None)).close()


def test_a_loss_on_maps_gets_the_whole_outputs():
    inputs, labels = images(4).tensors
    student, teacher = Net("student", segmenter()), Net("teacher", segmenter(), trained=True)
    with kdkit.Distiller(student, Match(teacher, CWD()), (inputs, labels), classes=CLASSES) as distiller:
        value = distiller(inputs, labels).loss
    torch.testing.assert_close(value, CWD()(student.module(inputs), teacher.module(inputs)))


def test_features_of_other_positions_than_the_labels_are_compared_at_all_of_them():
    class Strided(nn.Module):
        def __init__(self):
            super().__init__()
            self.coarse = nn.Conv2d(3, 3, 2, stride=2)
            self.up = nn.Upsample(scale_factor=2)

        def forward(self, images):
            return self.up(self.coarse(images))

    inputs, labels = images(4).tensors
    student, teacher = Net("student", Strided()), Net("teacher", Strided(), trained=True)
    taps = {"student": Tap(student.module.coarse), "target": Tap(teacher.module.coarse)}
    objective = Truth(cross_entropy()) + Match(teacher, SoftTargets(), label="coarse", **taps)
    with kdkit.Distiller(student, objective, (inputs, labels), classes=CLASSES) as distiller:
        value = distiller(inputs, labels).terms["coarse"]
    with torch.no_grad():
        sides = [net.module.coarse(inputs).permute(0, 2, 3, 1).reshape(-1, 3) for net in (student, teacher)]
        torch.testing.assert_close(value, SoftTargets()(*sides))


def test_a_teacher_with_other_classes_is_compared_by_those_it_shares():
    torch.manual_seed(0)
    inputs, labels = images(4).tensors
    teacher = Net("teacher", segmenter(4), classes=("car", "tree", "road", "bus"), trained=True)
    student = Net("student", segmenter())
    with kdkit.Distiller(student, Match(teacher, DKD()), (inputs, labels), classes=CLASSES) as distiller:
        value = distiller(inputs, labels).loss
    rows, kept = as_rows(student.module(inputs), labels, VOID)
    targets, _ = as_rows(teacher.module(inputs), labels, VOID)
    shared = kept > 0  # road and car, in the order of the student
    expected = DKD()(rows[shared][:, [1, 2]], targets[shared][:, [2, 0]].detach(), labels=kept[shared] - 1)
    torch.testing.assert_close(value, expected)


def test_metrics_of_a_teacher_with_other_classes_are_about_shared_ones():
    teacher = Net("teacher", segmenter(3), classes=("car", "tree", "road"), trained=True)
    student = Net("student", segmenter())
    data = TorchData(images(), images(seed=1), classes=CLASSES)
    result = kdkit.run(recipe_of(Truth(cross_entropy()) + Match(teacher, SoftTargets()), student, data))
    inputs, labels = images(seed=1).tensors
    with torch.no_grad():
        outputs, truth = as_rows(teacher.module.cpu()(inputs)[:, [2, 0]], labels, VOID)
    shared = truth > 0
    expected = accuracy_score(truth[shared] - 1, outputs.argmax(1)[shared])
    assert result.metrics["teacher"]["accuracy"].value == pytest.approx(expected)
    assert set(result.metrics["teacher"]["accuracy"].by_class) == {"road", "car"}


def test_a_student_learns_from_its_own_past_per_pixel():
    student = Net("student", segmenter())
    objective = Match(Past(student), PSKD())
    result = kdkit.run(recipe_of(objective, student, TorchData(images(), images(seed=1)), epochs=3))
    terms = [epoch["terms"]["past of student/pskd"] for epoch in result.history["student"]]
    assert all(np.isfinite(terms))
    assert terms[2] != terms[1]


def test_cached_teacher_outputs_per_pixel_train_to_the_same_weights(tmp_path):
    def student_of(**options):
        def recipe():
            teacher, student = Net("teacher", segmenter(), trained=True), Net("student", segmenter())
            objective = Truth(cross_entropy()) + Match(teacher, SoftTargets())
            data = TorchData(images(), images(seed=1), classes=CLASSES)
            return recipe_of(objective, student, data, epochs=3)

        return kdkit.run(recipe, **options).student.module.weight

    cached = student_of(teacher_cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir())
    torch.testing.assert_close(cached, student_of(teacher_cache="off"))


def test_masks_of_images_may_be_uint8_or_bool():
    inputs, labels = images(void=False).tensors
    for masks in (labels.to(torch.uint8), labels == 1):
        data = TensorDataset(inputs, masks)
        result = kdkit.distill(segmenter(), segmenter(), data, data, classes=CLASSES, epochs=1)
        assert 0 <= result.metrics["student"]["mean_iou"].value <= 1


def test_distill_leaves_out_void_pixels_of_images():
    data = images()
    result = kdkit.distill(segmenter(), segmenter(), data, data, classes=CLASSES, epochs=2)
    assert all(np.isfinite([epoch["terms"]["truth"] for epoch in result.history["student"]]))


@pytest.mark.parametrize("weighted", [False, True])
def test_a_loss_of_torch_leaves_out_every_label_that_stands_for_none(weighted):
    inputs, labels = images().tensors
    labels[:, 1] = -100  # next to the void pixels in the first row
    train = TensorDataset(inputs, labels, *([torch.rand(len(labels))] if weighted else []))
    result = kdkit.distill(segmenter(), segmenter(), train, images(), classes=CLASSES, epochs=1)
    assert np.isfinite(result.history["student"][0]["terms"]["truth"])

    student, weights = Net("student", segmenter()), train.tensors[2] if weighted else None
    loss = SampleWeighted(nn.CrossEntropyLoss()) if weighted else nn.CrossEntropyLoss()
    targets = torch.where(labels == VOID, -100, labels)
    sums = nn.functional.cross_entropy(student.module(inputs), targets, reduction="none").sum((1, 2))
    counts = (targets != -100).sum((1, 2))
    share = torch.ones(len(labels)) if weights is None else weights
    expected = (share * sums).sum() / (share * counts).sum()
    with kdkit.Distiller(student, Truth(loss), train.tensors, classes=CLASSES) as distiller:
        value = distiller(inputs, labels, sample_weights=weights).loss
    torch.testing.assert_close(value, expected)


def test_masks_by_class_are_labels_per_pixel_of_a_sigmoid():
    inputs, labels = images(void=False).tensors
    masks = torch.stack([labels == 1, labels == 2], 1).float()  # (samples, classes, height, width)
    student, teacher = Net("student", segmenter(2)), Net("teacher", segmenter(2), trained=True)
    objective = Truth(nn.BCEWithLogitsLoss()) + Match(teacher, PerLabelSoftTargets()) + Match(teacher, PerLabelDKD())
    data = TorchData(TensorDataset(inputs, masks), TensorDataset(inputs, masks), classes=["road", "car"])
    assert data.task == "multilabel"
    result = kdkit.run(recipe_of(objective, student, data))
    with torch.no_grad():
        predicted = (student.module.cpu()(inputs) >= 0).permute(0, 2, 3, 1).reshape(-1, 2)
    truth = masks.permute(0, 2, 3, 1).reshape(-1, 2)
    assert result.metrics["student"]["mean_iou"].value == pytest.approx(
        jaccard_score(truth, predicted, average="macro")
    )
    assert result.metrics["student"]["macro_f1"].value == pytest.approx(f1_score(truth, predicted, average="macro"))


def test_mixed_masks_by_class_count_as_present_above_one_half():
    inputs, labels = images(void=False).tensors
    masks = torch.stack([labels == 1, labels == 2], 1).float()
    data = TorchData(
        TensorDataset(inputs, masks), TensorDataset(inputs, 0.2 + 0.7 * masks), classes=2, task="multilabel"
    )
    predictor = Predictor(data, DeviceData(torch.device("cpu"), share=0, draws=1, passes=1))
    predictions = predictor.predict(Net("student", segmenter(2)), data.validation, batch_size=8)
    assert torch.equal(torch.from_numpy(predictions.labels).float(), masks)


SEGMENTATION = """
import os
import torch
from torch import nn
from torch.utils.data import TensorDataset
import kdkit
from kdkit import Match, Net, Optimizer, Recipe, Stage, TorchData, Training, Truth
from kdkit.losses import SoftTargets

def recipe():
    inputs = torch.randn(37, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    labels = inputs.argmax(1)
    labels[:, 0] = 255
    images = TensorDataset(inputs, labels)
    teacher, student = Net("teacher", nn.Conv2d(3, 3, 3, padding=1), trained=True), Net("student", nn.Conv2d(3, 3, 1))
    objective = Truth(nn.CrossEntropyLoss(ignore_index=255)) + Match(teacher, SoftTargets())
    training = Training(epochs=3, batch_size=8, optimizer=Optimizer(torch.optim.SGD, lr=0.1))
    data = TorchData(images, images, classes=["a", "b", "c"])
    return Recipe(data=data, schedule=[Stage({student: objective}, training)])

result = kdkit.run(recipe, device="cpu", teacher_cache="off")
if os.environ.get("RANK", "0") == "0":
    print({net: {name: metric.value for name, metric in metrics.items()} for net, metrics in result.metrics.items()})
"""


@pytest.mark.slow
def test_two_processes_end_in_the_metrics_of_one(tmp_path):
    script = tmp_path / "segmentation.py"
    script.write_text(SEGMENTATION)
    alone = run_python([script], tmp_path, environment())
    both = run_python(
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script], tmp_path, environment()
    )
    assert alone.returncode == both.returncode == 0, alone.stderr + both.stderr
    assert "mean_iou" in alone.stdout
    assert both.stdout == alone.stdout


class Confidence:
    """A metric of user code: the mean largest probability over all pixels."""

    name = "confidence"
    accepts_positions = True

    def fit(self, validation):
        return self

    def compute(self, test):
        return MetricResult(value=float(test.reduced["confidence"].mean()))

    def reduce_positions(self, outputs, labels):
        return outputs.softmax(1).amax(1).flatten(1).mean(1)


class OfLogits(Confidence):
    """The same metric, which takes the outputs of its predictions for logits."""

    reduce_positions = None

    def compute(self, test):
        return MetricResult(value=float(torch.as_tensor(test.outputs).softmax(1).amax(1).mean()))


def test_a_metric_of_user_code_may_have_the_logits_of_pixels():
    student, data = Net("student", segmenter()), TorchData(images(), images(seed=1), classes=CLASSES)
    objective = Truth(cross_entropy())
    recipe = recipe_of(objective, student, data, metrics=(Confidence(),))
    assert 1 / 3 < kdkit.run(recipe).metrics["student"]["confidence"].value < 1
    problem = problems(recipe_of(objective, Net("student", segmenter()), data, metrics=(OfLogits(),)))
    assert "metric 'confidence' does not fit this data (multiclass)" in problem


# One of two processes, which predicts a half of the images: the smaller ones, or the larger ones.
RANK = """
import contextlib
import sys

import torch
from torch import distributed, nn

from kdkit import Net, TorchData
from kdkit.data.device_data import DeviceData
from kdkit.engine.predict import Predictor
from kdkit.metrics import TopKAccuracy


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, row):
        size = 4 if row < 4 else 6
        image = torch.randn(3, size, size, generator=torch.Generator().manual_seed(row))
        return image, image.argmax(0)


number, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
data = TorchData(Images(), Images(), classes=["sky", "road", "car"])
device_data = DeviceData(torch.device("cpu"), share=0.25, draws=1, passes=1)
predictor = Predictor(data, device_data, metrics=[TopKAccuracy(1)])
predictions = predictor.predict(Net("net", nn.Identity()), data.validation, batch_size=4)
arrays = (predictions.labels, predictions.outputs, predictions.reduced["top_1_accuracy"])
torch.save([torch.tensor(array) for array in arrays], f"{folder}/{number}.pt")
distributed.destroy_process_group()
"""


def test_processes_may_predict_images_of_different_sizes(tmp_path):
    in_two_processes(RANK, tmp_path)
    for number in range(2):
        labels, outputs, reduced = torch.load(tmp_path / f"{number}.pt")
        assert labels.shape == outputs.shape == (8, 6, 6)
        assert (labels >= 0).sum((1, 2)).tolist() == [16] * 4 + [36] * 4
        assert torch.equal(labels[labels >= 0], outputs[labels >= 0])
        assert reduced.tolist() == [[16, 16]] * 4 + [[36, 36]] * 4  # hits and labels of each image, of both processes


# Maps of numbers


def test_maps_of_numbers_have_metrics_over_all_entries():
    inputs = torch.randn(16, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    depth = inputs.mean(1, keepdim=True) + 0.1
    data = TensorDataset(inputs, depth)
    metrics = (MSE(), MAE(), R2(), Pearson())
    student, teacher = Net("student", nn.Conv2d(2, 1, 1)), Net("teacher", nn.Conv2d(2, 1, 3, padding=1), trained=True)
    objective = Truth(nn.MSELoss()) + Match(teacher, nn.MSELoss())
    result = kdkit.run(recipe_of(objective, student, TorchData(data, data), metrics=metrics))
    values = {name: metric.value for name, metric in result.metrics["student"].items()}
    with torch.no_grad():
        outputs = student.module.cpu()(inputs).double().flatten()
    truth = depth.double().flatten()
    error = outputs - truth
    assert values == pytest.approx(
        {
            "mse": float(error.square().mean()),
            "mae": float(error.abs().mean()),
            "r2": float(1 - error.square().mean() / truth.var(correction=0)),
            "pearson": float(np.corrcoef(outputs, truth)[0, 1]),
        },
        rel=1e-6,
    )


# Mistakes


def test_a_loss_that_ignores_another_label_is_a_problem():
    data = TorchData(images(), images(), classes=CLASSES, ignore_index=VOID)
    recipe = recipe_of(Truth(nn.CrossEntropyLoss()), Net("student", segmenter()), data)
    message = "CrossEntropyLoss ignores the label -100, but in this data 255 stands for no label; pass ignore_index=255"
    assert message in problems(recipe)


def test_per_position_that_ignores_another_label_is_a_problem():
    data = TorchData(images(), images(), classes=CLASSES, ignore_index=VOID)
    student, teacher = Net("student", segmenter()), Net("teacher", segmenter(), trained=True)
    objective = Truth(cross_entropy()) + Match(teacher, PerPosition(SoftTargets()))
    message = "PerPosition ignores the label -100, but in this data 255 stands for no label; pass ignore_index=255"
    assert message in problems(recipe_of(objective, student, data))


def test_outputs_of_another_size_than_the_labels_are_a_problem():
    student = Net("student", nn.Conv2d(3, 3, 2, stride=2))
    recipe = recipe_of(Truth(cross_entropy()), student, TorchData(images(), images(), classes=CLASSES))
    assert "outputs of shape (batch, 3, 4, 4) for labels of shape (batch, 8, 8)" in problems(recipe)


@pytest.mark.parametrize("dim", [1, -1])
def test_integer_masks_that_are_one_hot_are_refused_with_the_remedy(dim):
    inputs, labels = images().tensors
    masks = TensorDataset(inputs, nn.functional.one_hot(labels.where(labels < 3, 0), 3).movedim(-1, dim))
    recipe = recipe_of(
        Truth(cross_entropy()), Net("student", nn.Conv2d(3, 3, 1)), TorchData(masks, masks, classes=CLASSES)
    )
    assert f"if the labels are 0 and 1 by class, make them class indices, labels.argmax({dim})" in problems(recipe)


def test_outputs_per_image_for_labels_per_pixel_are_a_problem():
    student = Net("student", nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))
    recipe = recipe_of(Truth(cross_entropy()), student, TorchData(images(), images(), classes=CLASSES))
    assert "outputs of shape (batch, 3) for labels of shape (batch, 8, 8), one per pixel or token" in problems(recipe)


def test_a_metric_of_samples_is_a_problem_for_labels_per_position():
    data = TorchData(images(), images(), classes=CLASSES)
    recipe = recipe_of(Truth(cross_entropy()), Net("student", segmenter()), data, metrics=(MacroAUPRC(),))
    assert "metric 'macro_auprc' takes one label per sample, but this data has labels per position" in problems(recipe)


def test_the_plan_shows_the_outputs_and_not_their_rows():
    teacher, student = Net("teacher", segmenter(), trained=True), Net("student", segmenter())
    data = TorchData(images(), images(), classes=CLASSES)
    ((term,),) = kdkit.check(recipe_of(Match(teacher, SoftTargets()), student, data)).terms
    assert (term.student, term.target) == ("outputs (4, 3, 8, 8)", "outputs (4, 3, 8, 8)")
