"""Labels per position: segmentation, sequences of tokens, maps of numbers, and samples without a label."""

import json
import math
import re

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, jaccard_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdkit
from kdkit import Ema, Match, Net, Optimizer, Past, Recipe, Stage, Tap, Teachers, TorchData, Training, Truth
from kdkit.engine.storage.stage_folder import StageFolder
from kdkit.errors import CheckError, DataError, RecipeError
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
    WTTM,
    AdaptiveKL,
    AlphaBetaDivergence,
    GeneralisedJSD,
    HardTargets,
    Hint,
    LogitMSE,
    LogitStandardisation,
    Masked,
    MiniLM,
    PerLabelDKD,
    PerLabelSoftTargets,
    PerPosition,
    PerTeacher,
    PerToken,
    ReverseKL,
    SampleWeighted,
    SkewKL,
    SkewReverseKL,
    SoftTargets,
    TotalVariation,
)
from kdkit.metrics import (
    MAE,
    MSE,
    R2,
    Accuracy,
    BootstrapInterval,
    CrossEntropy,
    MacroAUPRC,
    MacroF1,
    MeanIoU,
    MetricResult,
    Pearson,
    Perplexity,
    Predictions,
    TopKAccuracy,
    classification,
)
from tests.helpers.command_line import environment
from tests.helpers.processes import run_python

from .test_distributed_balancing import in_two_processes

CLASSES = ("sky", "road", "car")
VOID = 255


def images(count=24, size=8, *, seed=0, void=True):
    """Images (count, 3, size, size) whose largest channel is the class, and their labels, void in the first row."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 3, size, size, generator=generator)
    labels = inputs.argmax(1)
    if void:
        labels[:, 0] = VOID
    return TensorDataset(inputs, labels)


def tokens(lengths=(5, 3, 7, 4, 6, 2), *, seed=0):
    """Sequences of integers below 20 of these lengths, as pairs (tokens, labels): the class is the token modulo 3."""
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(0, 20, (length,), generator=generator) for length in lengths]
    return [(text, text % 3) for text in texts]


def pad(samples):
    """Collate sequences: padded tokens and a mask as a dict, and labels that are -100 at the padding."""
    texts, labels = zip(*samples, strict=True)
    inputs = nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    padded = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
    return {"tokens": inputs, "mask": mask}, padded


class Tagger(nn.Module):
    """A class per token, (batch, tokens, classes), as of transformers."""

    def __init__(self, width=8):
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.head = nn.Linear(width, 3)

    def forward(self, tokens, mask):
        return self.head(self.embed(tokens) * mask[..., None])


def segmenter(classes=3):
    return nn.Conv2d(3, classes, 3, padding=1)


def cross_entropy():
    return nn.CrossEntropyLoss(ignore_index=VOID)


def recipe_of(objective, student, data, metrics=(), epochs=1):
    training = Training(epochs=epochs, batch_size=8, optimizer=Optimizer(torch.optim.Adam, lr=0.05))
    return Recipe(data=data, schedule=[Stage({student: objective}, training)], metrics=metrics)


def problems(recipe):
    return "\n".join(kdkit.check(recipe).problems)


def as_rows(outputs, labels, ignored):
    """Return outputs (batch, classes, ...) and labels (batch, ...) of the positions with a label, one by one."""
    kept = labels != ignored
    return torch.stack([outputs[:, index][kept] for index in range(outputs.shape[1])], 1), labels[kept]


# Segmentation


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


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_metrics_of_positions_do_not_depend_on_the_blocks_they_are_counted_in(task, monkeypatch):
    random = np.random.default_rng(0)
    if task == "multiclass":
        labels, outputs = random.integers(-1, 3, (7, 5, 6)), random.integers(0, 3, (7, 5, 6))
    else:
        labels, outputs = random.integers(-1, 2, (7, 3, 5, 6)), random.random((7, 3, 5, 6)) > 0.5
    predictions = Predictions(labels=labels.astype(np.int8), outputs=outputs, classes=CLASSES, per_position=True)
    expected = MeanIoU().compute(predictions)
    monkeypatch.setattr(classification, "_BLOCK", 100)  # one map of a class has 30 positions
    assert MeanIoU().compute(predictions) == expected
    if task == "multilabel":
        has_label = labels >= 0
        scores = [
            jaccard_score(labels[:, index][has_label[:, index]], outputs[:, index][has_label[:, index]])
            for index in range(3)
        ]
        assert expected.value == pytest.approx(np.mean(scores))


def test_an_interval_resamples_images_and_not_pixels():
    labels = np.zeros((6, 4, 4), np.int8)
    outputs = labels.copy()
    outputs[:3] = 1  # three images are right at all pixels, and three at none
    test = Predictions(labels=labels, outputs=outputs, classes=("a", "b"), per_position=True)
    result = BootstrapInterval(Accuracy(), resamples=500).compute(test)
    assert result.value == 0.5
    assert result.interval[0] < 0.2  # of 96 independent pixels it would be above 0.4
    assert result.interval[1] > 0.8


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
    kwargs = {"labels": kept} if make in (DKD, NKD, RLD) else {}
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
    assert first.endswith("no label; PerPosition(loss, ignore_index=None) compares all positions")
    assert re.fullmatch(r"term 'teacher/dkd' compares no position .* no label", second)


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


def test_a_distiller_without_labels_asks_where_the_classes_are_if_a_term_takes_outputs_with_positions():
    inputs, _ = images(4).tensors
    student, teacher = Net("student", segmenter()), Net("teacher", segmenter(), trained=True)
    with pytest.raises(CheckError, match=r"the classes; pass Net\(..., channels_last=True\)") as error:
        kdkit.Distiller(student, Match(teacher, SoftTargets()), (inputs, None))
    assert len(error.value.problems) == 2  # one for each network
    with pytest.raises(CheckError, match=r"has none; PerPosition\(loss, ignore_index=None\) compares all positions"):
        kdkit.Distiller(student, Match(teacher, PerPosition(SoftTargets())), (inputs, None))
    features = Match(teacher, CWD(), student=Tap(student.module), target=Tap(teacher.module))
    kdkit.Distiller(student, features, (inputs, None)).close()


def test_per_position_applies_any_loss_to_tensors():
    student, target = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 3, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    labels[0, 0] = -100
    rows, kept = as_rows(student, labels, -100)
    targets, _ = as_rows(target, labels, -100)
    value = PerPosition(DKD())(student, target, labels=labels)
    torch.testing.assert_close(value, DKD()(rows, targets, labels=kept))
    torch.testing.assert_close(PerPosition(SoftTargets())(student, target, labels=labels), SoftTargets()(rows, targets))
    assert PerPosition(SoftTargets())(student, target, labels=torch.full_like(labels, -100)) == 0
    with pytest.raises(RecipeError, match=r"a label for every position of outputs \(2, 3, 4, 4\); got labels \(2, 4\)"):
        PerPosition(DKD())(student, target, labels=labels[:, 0])


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


# Sequences


def test_a_tagger_learns_from_texts_of_different_lengths():
    teacher, student = Net("teacher", Tagger(16), trained=True), Net("student", Tagger())
    loader = DataLoader(tokens(), batch_size=3, collate_fn=pad)
    data = TorchData(loader, loader, classes=CLASSES)
    objective = 0.5 * Truth(nn.CrossEntropyLoss()) + 0.5 * Match(teacher, SoftTargets()) + Match(teacher, DKD())
    result = kdkit.run(recipe_of(objective, student, data, metrics=(Accuracy(), MacroF1(), MeanIoU())))
    outputs, truth = [], []
    for text, labels in tokens():
        with torch.no_grad():
            outputs.append(student.module.cpu()(text[None], torch.ones_like(text)[None])[0].argmax(1))
        truth.append(labels)
    predicted, truth = torch.cat(outputs), torch.cat(truth)
    values = {name: metric.value for name, metric in result.metrics["student"].items()}
    assert values == pytest.approx(
        {
            "accuracy": accuracy_score(truth, predicted),
            "macro_f1": f1_score(truth, predicted, average="macro"),
            "mean_iou": jaccard_score(truth, predicted, average="macro"),
        }
    )


def next_tokens(*, lengths, seed=0):
    """Texts of these lengths below 20 tokens; the label of a token is the next one, -100 at the last one."""
    return [(text, torch.cat([text[1:], torch.tensor([-100])])) for text, _ in tokens(lengths, seed=seed)]


class NextToken(nn.Module):
    """Logits of 20 tokens, (batch, tokens, 20)."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20)

    def forward(self, tokens, mask):
        return self.head(self.embed(tokens))


def test_perplexity_and_loss_of_texts_are_those_of_all_their_tokens(tmp_path):
    torch.manual_seed(0)
    training, held_out = (next_tokens(lengths=lengths) for lengths in ((5, 3, 7, 4), (6, 2, 9, 4, 5)))
    data = TorchData(
        *(DataLoader(texts, batch_size=2, collate_fn=pad) for texts in (training, held_out)),
        classes=[str(token) for token in range(20)],
    )
    student = Net("student", NextToken())
    metrics = (Accuracy(), CrossEntropy(), BootstrapInterval(Perplexity()), TopKAccuracy(3))
    stage = Stage({student: Truth(nn.CrossEntropyLoss())}, Training(epochs=3, monitor="perplexity", keep="best"))
    recipe = Recipe(data=data, schedule=[stage], metrics=metrics)
    result = kdkit.run(recipe, out=tmp_path / "run")
    values = result.metrics["student"]

    network = student.module.cpu()
    with torch.no_grad():
        logits = torch.cat([network(text[None], None)[0, :-1] for text, _ in held_out]).double()
    labels = torch.cat([labels[:-1] for _, labels in held_out])
    loss = nn.functional.cross_entropy(logits, labels).item()
    assert values["cross_entropy"].value == pytest.approx(loss, rel=1e-6)
    assert values["perplexity"].value == pytest.approx(math.exp(loss), rel=1e-6)
    among_three = (logits.topk(3).indices == labels[:, None]).any(1).double().mean().item()
    assert values["top_3_accuracy"].value == pytest.approx(among_three)
    low, high = values["perplexity"].interval
    assert low < values["perplexity"].value < high

    history = result.history["student"]
    assert min(entry["perplexity"] for entry in history) == pytest.approx(values["perplexity"].value, rel=1e-6)
    assert not any("cross_entropy" in entry for entry in history)  # an epoch computes the monitor alone
    stored = StageFolder(tmp_path / "run" / "1-student").load_predictions("student", "validation")
    assert Perplexity().compute(stored).value == values["perplexity"].value
    evaluated = kdkit.evaluate(recipe, tmp_path / "run")
    assert evaluated["perplexity"].value == pytest.approx(values["perplexity"].value)


def test_the_loss_of_masks_by_class_is_that_of_their_known_labels():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, 2, 4, 4, generator=generator)
    labels = torch.randint(-1, 2, (3, 2, 4, 4), generator=generator)
    test = Predictions(
        labels=labels.numpy(),
        outputs=(outputs >= 0).numpy(),
        classes=("a", "b"),
        per_position=True,
        reduced={"cross_entropy": CrossEntropy().reduce_positions(outputs, labels).numpy()},
    )
    result = CrossEntropy().compute(test)
    losses = nn.functional.binary_cross_entropy_with_logits(outputs, labels.float(), reduction="none")
    assert result.value == pytest.approx(losses[labels >= 0].mean().item(), rel=1e-6)
    first = losses[:, 0][labels[:, 0] >= 0].mean().item()
    assert result.by_class["a"] == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize("metric", [CrossEntropy(), Perplexity(), TopKAccuracy(2)])
def test_a_metric_that_needs_logits_refuses_predictions_of_classes_alone(metric):
    labels = np.zeros((2, 3), np.int8)
    stored = Predictions(labels=labels, outputs=labels, classes=CLASSES, per_position=True)
    with pytest.raises(DataError, match=r"needs the logits of positions, .*Recipe\(metrics=...\)"):
        metric.compute(stored)


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


def test_each_token_counts_once_however_long_its_text_is():
    student, teacher = Net("student", Tagger()), Net("teacher", Tagger(), trained=True)
    samples = tokens((2, 9))
    inputs, labels = pad(samples)
    with kdkit.Distiller(student, Match(teacher, SoftTargets()), (inputs, labels), classes=CLASSES) as distiller:
        value = distiller(inputs, labels).loss
    with torch.no_grad():
        single = [
            SoftTargets()(*(net.module(text[None], torch.ones_like(text)[None])[0] for net in (student, teacher)))
            for text, _ in samples
        ]
    torch.testing.assert_close(value.detach(), (2 * single[0] + 9 * single[1]) / 11)


def test_the_classes_of_tokens_stay_last_in_a_batch_with_as_many_tokens_as_classes():
    student, teacher = Net("student", Tagger()), Net("teacher", Tagger(), trained=True)
    inputs, labels = pad(tokens((5, 4)))
    square = pad(tokens((3, 3, 2)))
    with kdkit.Distiller(student, Match(teacher, SoftTargets()), (inputs, labels), classes=CLASSES) as distiller:
        outputs = distiller(*square).outputs
    expected = student.module(square[0]["tokens"], square[0]["mask"]).movedim(-1, 1)
    torch.testing.assert_close(outputs, expected)


def test_a_first_batch_with_as_many_tokens_as_classes_is_refused_until_the_layout_is_known():
    loader = DataLoader(tokens((3, 3, 2)), batch_size=3, collate_fn=pad)
    data = TorchData(loader, loader, classes=CLASSES)
    message = r"outputs \(3, 3, 3\) for labels \(3, 3\), .* pass Net\(\.\.\., channels_last=True\) or False"
    with pytest.raises(CheckError, match=message):
        kdkit.run(recipe_of(Truth(nn.CrossEntropyLoss()), Net("student", Tagger()), data))
    student = Net("student", Tagger(), channels_last=True)
    objective = Truth(nn.CrossEntropyLoss()) + Match(Ema(student), SoftTargets())  # its average has the same layout
    result = kdkit.run(recipe_of(objective, student, data))
    assert 0 <= result.metrics["student"]["accuracy"].value <= 1


def test_per_token_is_accepted_in_a_stage_too():
    inputs, labels = pad(tokens((5, 4)))
    student, teacher = Net("student", Tagger()), Net("teacher", Tagger(), trained=True)
    objective = Match(teacher, PerToken(ReverseKL()), label="wrapped") + Match(teacher, ReverseKL(), label="plain")
    with kdkit.Distiller(student, objective, (inputs, labels), classes=CLASSES) as distiller:
        terms = distiller(inputs, labels).terms
    assert terms["wrapped"] == terms["plain"]


def test_labels_of_tokens_that_are_all_zero_and_one_are_classes_if_the_task_says_so():
    texts = torch.randint(0, 20, (8, 6), generator=torch.Generator().manual_seed(0))
    data = TensorDataset(texts, texts % 2)
    assert TorchData(data, data).task == "multilabel"
    with pytest.raises(DataError, match="if they are classes of positions, such as tokens, pass task='multiclass'"):
        kdkit.distill(nn.Embedding(20, 2), nn.Embedding(20, 2), data, data, classes=["even", "odd"], epochs=1)
    result = kdkit.distill(
        nn.Embedding(20, 2), nn.Embedding(20, 2), data, data, classes=["even", "odd"], epochs=1, task="multiclass"
    )
    assert 0 <= result.metrics["student"]["accuracy"].value <= 1


def test_a_signal_is_segmented_in_one_dimension():
    signals = torch.randn(16, 1, 20, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(signals, (signals[:, 0] > 0).long() + (signals[:, 0] > 1).long())
    result = kdkit.distill(nn.Conv1d(1, 3, 5, padding=2), nn.Conv1d(1, 3, 1), data, data, epochs=1)
    assert set(result.metrics["student"]["accuracy"].by_class) == {"0", "1", "2"}


class Embedder(nn.Module):
    """Tokens to logits of a class per text, with hidden states (batch, tokens, width)."""

    def __init__(self, width):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, width), nn.Linear(width, 3)

    def forward(self, tokens, mask):
        hidden = self.embed(tokens)
        return self.head((hidden * mask[..., None]).sum(1))


def hidden_objective(student, teacher, loss):
    taps = {
        name: Tap(net.module.embed, channels_last=True) for name, net in (("student", student), ("target", teacher))
    }
    return Match(teacher, loss, label="hidden", **taps)


@pytest.mark.parametrize("mask", ["mask", lambda inputs: inputs["mask"].bool()])
def test_masked_features_of_padded_texts_are_compared_at_their_tokens(mask):
    student, teacher = Net("student", Embedder(4)), Net("teacher", Embedder(4), trained=True)
    samples = tokens((2, 9))
    inputs, _ = pad(samples)
    labels = torch.tensor([0, 1])
    objective = hidden_objective(student, teacher, Masked(Hint(), mask=mask))
    with kdkit.Distiller(student, objective, (inputs, labels), classes=CLASSES) as distiller:
        value = distiller(inputs, labels).loss
    with torch.no_grad():
        rows = [torch.cat([net.module.embed(text) for text, _ in samples]) for net in (student, teacher)]
    torch.testing.assert_close(value.detach(), nn.functional.mse_loss(*rows))


@pytest.mark.parametrize("loss", [Masked(Hint(), mask="mask"), MiniLM(heads=2, mask="mask")], ids=["hint", "mini_lm"])
def test_masked_features_of_other_widths_do_not_depend_on_padding(loss):
    student, teacher = Net("student", Embedder(4)), Net("teacher", Embedder(6), trained=True)
    inputs, _ = pad(tokens((2, 9)))
    labels = torch.tensor([0, 1])
    padded = {name: nn.functional.pad(value, (0, 5)) for name, value in inputs.items()}
    objective = hidden_objective(student, teacher, loss)
    with kdkit.Distiller(student, objective, (inputs, labels), classes=CLASSES) as distiller:
        has_projector = any("projector" in name for name, _ in distiller.named_parameters())
        assert has_projector == isinstance(loss, Masked)
        torch.testing.assert_close(distiller(padded, labels).loss, distiller(inputs, labels).loss)
        empty = {**inputs, "mask": torch.zeros_like(inputs["mask"])}
        assert distiller(empty, labels).loss == 0


def attention_maps(heads=2, *, seed=0):
    """Attention maps of texts of 2 and 4 tokens, padded to 4, and the mask of their tokens."""
    scores = torch.randn(2, heads, 4, 4, generator=torch.Generator().manual_seed(seed))
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    return scores.masked_fill(mask[:, None, None] == 0, -1e4).softmax(-1), mask


@pytest.mark.parametrize("shape", [lambda mask: mask, lambda mask: mask[:, :, None] * mask[:, None, :]])
def test_masked_attention_maps_are_compared_at_pairs_of_tokens(shape):
    (student, mask), (target, _) = attention_maps(), attention_maps(seed=1)
    loss = Masked(nn.MSELoss(), mask=lambda inputs: shape(inputs["attention_mask"]))
    value = loss(student, target, inputs={"attention_mask": mask})
    rows = [torch.cat([maps[0, :, :2, :2].flatten(), maps[1].flatten()]) for maps in (student, target)]
    torch.testing.assert_close(value, nn.functional.mse_loss(*rows))
    # What the padding attends to does not count, whatever it is.
    student[0, :, 2:] = 0.25
    torch.testing.assert_close(loss(student, target, inputs={"attention_mask": mask}), value)


def test_means_over_heads_compare_maps_of_different_numbers_of_heads():
    (student, mask), (target, _) = attention_maps(), attention_maps(4, seed=1)

    def of_means(student, target):
        return nn.functional.mse_loss(student.mean(1), target.mean(1))

    value = Masked(of_means)(student, target, inputs={"attention_mask": mask})
    means = [maps.mean(1, keepdim=True) for maps in (student, target)]
    torch.testing.assert_close(value, Masked(nn.MSELoss())(*means, inputs={"attention_mask": mask}))


def test_a_mask_that_the_inputs_lack_or_of_other_positions_is_a_problem():
    def problem(**options):
        student, teacher = Net("student", Embedder(4)), Net("teacher", Embedder(4), trained=True)
        loader = DataLoader([(*sample,) for sample in tokens()], batch_size=3, collate_fn=texts)
        objective = Truth(nn.CrossEntropyLoss()) + hidden_objective(student, teacher, Masked(Hint(), **options))
        return problems(recipe_of(objective, student, TorchData(loader, loader, classes=CLASSES)))

    def texts(samples):
        inputs, _ = pad(samples)
        return inputs, torch.arange(len(samples)) % 3

    assert "the inputs have no mask 'attention_mask'; got 'tokens', 'mask': pass mask=KEY" in problem()
    assert "the positions of its mask (3, 6); got (3, 4, 7)" in problem(mask=lambda inputs: inputs["mask"][:, 1:])
    with pytest.raises(RecipeError, match="Masked takes a loss on features without extra keyword arguments; got DKD"):
        Masked(DKD())
    with pytest.raises(RecipeError, match="mask is a key of the inputs, or a function of them; got 1"):
        Masked(Hint(), mask=1)


def test_a_mask_of_samples_selects_those_of_a_teacher():
    outputs, selected = torch.randn(2, 6, 3), torch.tensor([1, 0, 0, 1, 1, 0])
    value = Masked(SoftTargets(), mask=lambda inputs: inputs)(*outputs, inputs=selected)
    torch.testing.assert_close(value, SoftTargets()(*outputs[:, selected > 0]))


# Samples without a label


def unlabelled(count=32):
    inputs = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    labels = inputs.argmax(1)
    labels[::2] = -1
    return TensorDataset(inputs, labels)


def test_a_sample_without_a_label_is_compared_to_the_teacher_only():
    inputs, labels = unlabelled().tensors
    student, teacher = Net("student", nn.Linear(3, 3)), Net("teacher", nn.Linear(3, 3), trained=True)
    terms = {
        "truth": Truth(nn.CrossEntropyLoss(ignore_index=-1)),
        "soft": Match(teacher, SoftTargets(), label="soft"),
        "dkd": Match(teacher, DKD(), label="dkd"),
    }
    objective = sum(terms.values())
    with kdkit.Distiller(student, objective, (inputs, labels), classes=CLASSES, ignore_index=-1) as distiller:
        values = distiller(inputs, labels).terms
    with torch.no_grad():
        outputs, targets = student.module(inputs), teacher.module(inputs)
        kept = labels >= 0
        torch.testing.assert_close(values["truth"], nn.functional.cross_entropy(outputs[kept], labels[kept]))
        torch.testing.assert_close(values["soft"], SoftTargets()(outputs, targets))
        torch.testing.assert_close(values["dkd"], DKD()(outputs[kept], targets[kept], labels=labels[kept]))


def test_samples_without_a_label_are_left_out_of_metrics_and_counts(tmp_path):
    student = Net("student", nn.Linear(3, 3))
    data = TorchData(unlabelled(), unlabelled(), classes=CLASSES, ignore_index=-1)
    objective = Truth(nn.CrossEntropyLoss(ignore_index=-1))
    result = kdkit.run(recipe_of(objective, student, data), out=tmp_path / "run")
    inputs, labels = unlabelled().tensors
    with torch.no_grad():
        predicted = student.module.cpu()(inputs).argmax(1)
    kept = labels >= 0
    assert result.metrics["student"]["accuracy"].value == pytest.approx(accuracy_score(labels[kept], predicted[kept]))
    positives = json.loads((tmp_path / "run" / "run.json").read_text())["positives"]
    assert positives == {name: int((labels == index).sum()) for index, name in enumerate(CLASSES)}


def test_distill_learns_from_samples_without_a_label():
    data = unlabelled()
    result = kdkit.distill(nn.Linear(3, 3), nn.Linear(3, 3), data, data, classes=CLASSES, ignore_index=-1, epochs=2)
    assert np.isfinite(result.history["student"][-1]["terms"]["truth"])


def test_a_batch_without_labelled_samples_has_a_loss_of_zero():
    inputs = torch.randn(8, 3)
    student, teacher = Net("student", nn.Linear(3, 3)), Net("teacher", nn.Linear(3, 3), trained=True)
    objective = Truth(nn.CrossEntropyLoss(ignore_index=-1)) + Match(teacher, SoftTargets(), label="soft")
    example = (inputs, torch.arange(8) % 3)
    with kdkit.Distiller(student, objective, example, classes=CLASSES, ignore_index=-1) as distiller:
        output = distiller(inputs, torch.full((8,), -1))
    assert output.terms["truth"] == 0
    assert output.terms["soft"] > 0


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
predictor = Predictor(data, device_data, contextlib.nullcontext, [TopKAccuracy(1)])
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
    message = "CrossEntropyLoss leaves out the label -100, and this data has 255 for no label; pass ignore_index=255"
    assert message in problems(recipe)


def test_per_position_that_ignores_another_label_is_a_problem():
    data = TorchData(images(), images(), classes=CLASSES, ignore_index=VOID)
    student, teacher = Net("student", segmenter()), Net("teacher", segmenter(), trained=True)
    objective = Truth(cross_entropy()) + Match(teacher, PerPosition(SoftTargets()))
    message = "PerPosition leaves out the label -100, and this data has 255 for no label; pass ignore_index=255"
    assert message in problems(recipe_of(objective, student, data))


def test_a_label_beyond_the_classes_is_refused_with_the_option_for_no_label():
    inputs, labels = images(void=False).tensors
    labels[5, 2, 3] = 7
    with pytest.raises(DataError, match=r"is 7 \(row 5\), and there are 3 classes.* pass ignore_index=7"):
        TorchData(TensorDataset(inputs, labels), images(), classes=CLASSES)


def test_an_ignored_label_must_not_be_a_class():
    with pytest.raises(DataError, match="ignore_index=1 must not be one of the 3 classes"):
        TorchData(images(), images(), classes=CLASSES, ignore_index=1)
    with pytest.raises(DataError, match="such as 255; got True"):
        TorchData(images(), images(), ignore_index=True)


def test_an_ignored_label_needs_class_indices():
    inputs, labels = torch.randn(4, 3), torch.eye(4)[:, :3]
    with pytest.raises(DataError, match="ignore_index=9 is a class index, and the task of this data is multilabel"):
        kdkit.Distiller(
            Net("student", nn.Linear(3, 3)),
            Truth(nn.BCEWithLogitsLoss()),
            (inputs, labels),
            task="multilabel",
            ignore_index=9,
        )


def test_outputs_of_another_size_than_the_labels_are_a_problem():
    student = Net("student", nn.Conv2d(3, 3, 2, stride=2))
    recipe = recipe_of(Truth(cross_entropy()), student, TorchData(images(), images(), classes=CLASSES))
    assert "outputs of shape (batch, 3, 4, 4) for labels of shape (batch, 8, 8)" in problems(recipe)


def test_outputs_per_image_for_labels_per_pixel_are_a_problem():
    student = Net("student", nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))
    recipe = recipe_of(Truth(cross_entropy()), student, TorchData(images(), images(), classes=CLASSES))
    assert "outputs of shape (batch, 3) for labels of shape (batch, 8, 8), one per pixel or token" in problems(recipe)


def test_a_metric_of_samples_is_a_problem_for_labels_per_position():
    data = TorchData(images(), images(), classes=CLASSES)
    recipe = recipe_of(Truth(cross_entropy()), Net("student", segmenter()), data, metrics=(MacroAUPRC(),))
    assert "metric 'macro_auprc': labels of this data are per position" in problems(recipe)


def test_splits_with_labels_per_image_and_per_pixel_are_refused():
    inputs, labels = images().tensors
    with pytest.raises(DataError, match=r"class indices per position must be integers .* in all splits"):
        TorchData(images(), TensorDataset(inputs, labels[:, 0, 0]), classes=CLASSES)


def test_the_plan_shows_the_outputs_and_not_their_rows():
    teacher, student = Net("teacher", segmenter(), trained=True), Net("student", segmenter())
    data = TorchData(images(), images(), classes=CLASSES)
    ((term,),) = kdkit.check(recipe_of(Match(teacher, SoftTargets()), student, data)).terms
    assert (term.student, term.target) == ("outputs (4, 3, 8, 8)", "outputs (4, 3, 8, 8)")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
def test_a_compiled_student_of_tokens_trains_to_the_same_losses():
    def losses(**options):
        def recipe():
            teacher, student = Net("teacher", Tagger(16), trained=True), Net("student", Tagger())
            loader = DataLoader(tokens((5, 5, 5, 5)), batch_size=2, collate_fn=pad)
            objective = Truth(nn.CrossEntropyLoss()) + Match(teacher, SoftTargets())
            return recipe_of(objective, student, TorchData(loader, loader, classes=CLASSES), epochs=2)

        return [epoch["terms"] for epoch in kdkit.run(recipe, **options).history["student"]]

    for compiled, plain in zip(losses(compile=True), losses(), strict=True):
        assert compiled == pytest.approx(plain, rel=1e-4)
