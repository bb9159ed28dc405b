"""Metrics in whole runs: the epoch that is kept, intervals, thresholds, and the table per class."""

import json
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import StackDataset, TensorDataset

import kdkit
from kdkit import Data, Distiller, Match, MetricResult, Net, Recipe, Split, Stage, Tap, TorchData, Truth, Unlabelled
from kdkit.engine.display.tables import metrics_table
from kdkit.engine.storage.finished_run import read_metrics, read_samples
from kdkit.engine.storage.predictions import read_predictions
from kdkit.errors import CheckError, DataError
from kdkit.losses import SoftTargets
from kdkit.metrics import Accuracy, BootstrapInterval, Brier, MacroAUROC, MacroF1
from kdkit.metrics.base import WithoutThresholds
from kdkit.plugins.events import RunEnded
from kdkit.report import write_report
from tests.helpers.stages import Small, samples, training, truth

CLASSES = ("a", "b", "c")


def alone(net, terms=None, **changes):
    """Return the schedule that trains one net without a teacher."""
    return [Stage({net: terms or truth()}, training(**changes))]


def single(metrics, **changes):
    data = TorchData(samples(32), samples(24, 1), samples(24, 2), classes=CLASSES)
    return Recipe(data=data, schedule=alone(Net("student", Small(4)), **changes), metrics=metrics)


def test_the_samples_of_a_report_are_the_hardest_ones_with_a_label(tmp_path, monkeypatch):
    monkeypatch.setattr(Split, "report_tensors", lambda split, rows: {"labels": split.batch(rows, 0).labels})
    test = samples(24, 2)
    test.tensors[1][:10] = -1
    data = TorchData(samples(32), samples(24, 1), test, classes=CLASSES, ignore_index=-1)
    term = Truth(nn.CrossEntropyLoss(ignore_index=-1))
    recipe = Recipe(data=data, schedule=alone(Net("student", Small(4)), term, epochs=1))
    kdkit.run(lambda: recipe, out=tmp_path / "run")
    saved, _ = read_samples(tmp_path / "run")
    predictions = read_predictions(tmp_path / "run" / "1-student" / "predictions-student-test.safetensors")
    losses = nn.functional.cross_entropy(
        torch.from_numpy(predictions.outputs), torch.from_numpy(predictions.labels), reduction="none"
    )
    order = losses.argsort(descending=True, stable=True)[: len(saved["ids"])].numpy()
    assert saved["ids"].tolist() == predictions.ids[order].tolist()
    assert saved["labels"].tolist() == predictions.labels[order].tolist()


@pytest.mark.parametrize("are_alike", [False, True])
def test_a_note_says_that_all_labels_of_a_split_are_alike(are_alike):
    inputs, labels = samples(24, 2).tensors
    test = TensorDataset(inputs, torch.zeros_like(labels) if are_alike else labels)
    data = TorchData(samples(32), samples(24, 1), test, classes=CLASSES)
    recipe = Recipe(data=data, schedule=alone(Net("student", Small(4)), epochs=1), metrics=(Accuracy(), Brier()))
    notes = [result.note for result in kdkit.run(recipe, device="cpu", measure=False).metrics["student"].values()]
    assert ["all 24 labels of the test split are alike" in note for note in notes] == [are_alike, False]


def test_samples_that_cannot_be_read_for_a_report_do_not_end_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Split, "report_tensors", lambda split, rows: 1 / 0)
    with pytest.warns(UserWarning, match="the samples for the report could not be saved: ZeroDivisionError: division"):
        kdkit.run(lambda: single((Accuracy(),), epochs=1), out=tmp_path / "run", measure=False)
    assert read_samples(tmp_path / "run") == ({}, ())


@pytest.mark.parametrize("monitor", [None, "brier"])
def test_the_epoch_with_the_smallest_value_of_an_error_is_kept(monitor):
    metrics = (Brier(), Accuracy()) if monitor is None else (Accuracy(), Brier())  # the first is the default
    result = kdkit.run(lambda: single(metrics, epochs=6, monitor=monitor))
    epochs = result.history["student"]
    values = [epoch["brier"] for epoch in epochs]
    kept = [epoch["epoch"] for epoch in epochs if epoch["best"]]
    assert kept[-1] == int(np.argmin(values))
    assert all(values[epoch] == min(values[: epoch + 1]) for epoch in kept)
    assert kept[0] == 0  # the first epoch is always the best so far


class Mean(WithoutThresholds):
    """A metric whose values are those of a library."""

    name = "mean"

    def __init__(self, library):
        self.library = library

    def compute(self, test):
        value = self.library(test.outputs).mean()
        return MetricResult(value=value, by_class=dict.fromkeys(np.unique(test.labels), value))


@pytest.mark.parametrize("library", [np.float64, np.float32, torch.from_numpy])
def test_a_metric_may_return_numbers_of_numpy_and_torch(library, tmp_path):
    result = kdkit.run(lambda: single((Mean(library),)), out=tmp_path / "run", measure=False)
    metric = read_metrics(tmp_path / "run").results["student"]["mean"]
    assert metric == result.metrics["student"]["mean"]
    assert {type(number) for number in (metric.value, *metric.by_class.values())} == {float}
    assert [*metric.by_class] == ["0", "1", "2"]


def test_an_interval_is_computed_at_the_end_and_not_in_each_epoch(monkeypatch):
    sizes = []
    compute = BootstrapInterval.compute
    monkeypatch.setattr(BootstrapInterval, "compute", lambda self, test: sizes.append(len(test)) or compute(self, test))
    recipe = single((BootstrapInterval(MacroF1(), resamples=50),), epochs=3)
    result = kdkit.run(recipe)
    macro_f1 = result.metrics["student"]["macro_f1"]
    assert macro_f1.interval[0] <= macro_f1.value <= macro_f1.interval[1]
    assert sizes.count(24) == 1  # the check before the run uses fewer samples
    assert "macro_f1" in result.history["student"][0]


class SumOfWeights(WithoutThresholds):
    """A metric that runs the network that is evaluated."""

    name = "weights"

    def reduce_network(self, network, batch):
        assert not network.training
        return network[1].weight.sum().expand(len(batch))

    def compute(self, test):
        return MetricResult(value=test.reduced["weights"].mean())


class OneRow(SumOfWeights):
    def reduce_network(self, network, batch):
        return torch.zeros(1)


def test_a_metric_that_runs_the_network_gets_the_student_its_baseline_and_the_teacher():
    data = TorchData(samples(32), samples(24, 1), samples(24, 2), classes=CLASSES)
    inputs = samples(1)[0][0].numel()
    teacher = Net("teacher", nn.Sequential(nn.Flatten(), nn.Linear(inputs, 3, bias=False)), trained=True)
    student = Net("student", nn.Sequential(nn.Flatten(), nn.Linear(inputs, 3, bias=False)))
    objective = truth() + Match(teacher, SoftTargets())
    recipe = Recipe(data=data, schedule=alone(student, objective), metrics=(BootstrapInterval(SumOfWeights()),))
    result = kdkit.run(recipe, baseline=True, measure=False)
    values = {name: metrics["weights"].value for name, metrics in result.metrics.items()}
    for name, net in result.nets.items():
        assert values[name] == pytest.approx(net.module[1].weight.sum().item(), abs=1e-5)
    assert len({*values.values()}) == 3


def test_a_metric_that_runs_the_network_needs_a_row_for_each_sample():
    with pytest.raises(CheckError, match="a row for each of the 4 samples"):
        kdkit.run(single((OneRow(),)), measure=False)


class OfOutputs(SumOfWeights):
    """A metric that keeps a function of the outputs."""

    def __init__(self, function):
        self.function = function

    def reduce_network(self, network, batch):
        return self.function(network(batch.inputs))


def test_what_a_metric_keeps_may_be_in_bfloat16_but_must_have_one_shape():
    result = kdkit.run(single((OfOutputs(Tensor.bfloat16),), epochs=1), measure=False)
    assert np.isfinite(result.metrics["student"]["weights"].value)
    lengths = count(1)
    growing = single((OfOutputs(lambda outputs: outputs.new_zeros(len(outputs), next(lengths))),), epochs=1)
    with pytest.raises(DataError, match="the values that metric 'weights' keeps of two batches have different shapes"):
        kdkit.run(growing, measure=False)


class PairSimilarity:
    """The correlation of the products of pairs of embeddings, (samples, 2, columns), with scores, (samples, 1)."""

    name = "pair_similarity"

    def fit(self, validation):
        return self

    def compute(self, test):
        products = test.outputs.prod(1).sum(1)
        return MetricResult(value=float(np.corrcoef(products, test.labels[:, 0])[0, 1]))


def test_a_metric_of_pairs_of_embeddings_is_computed_and_reported_if_training_has_no_labels(tmp_path):
    pairs = TensorDataset(samples(32).tensors[0].unflatten(0, (16, 2)), torch.rand(16, 1))
    data = TorchData(Unlabelled(TensorDataset(samples(16).tensors[0])), pairs)
    inputs = pairs.tensors[0].shape[-1]
    teacher, student = Net("teacher", nn.Linear(inputs, 4), trained=True), Net("student", nn.Linear(inputs, 4))
    schedule = alone(student, Match(teacher, nn.MSELoss()), epochs=1)
    result = kdkit.run(Recipe(data=data, schedule=schedule, metrics=(PairSimilarity(),)), out=tmp_path / "run")
    assert [*result.metrics] == ["teacher", "student"]
    (run,) = write_report(tmp_path / "run", tmp_path / "report.html").runs
    assert not run.problems
    assert run.split("student").test.outputs.shape == (16, 2, 4)


class Recognizer(nn.Module):
    """Embeddings, and in training the loss of a head over identities, which are among the inputs."""

    def __init__(self, inputs, width):
        super().__init__()
        self.body, self.head = nn.Linear(inputs, width), nn.Linear(width, 5)

    def forward(self, inputs, identity=None):
        embedding = self.body(inputs)
        if identity is None:
            return {"embedding": embedding}
        return {"embedding": embedding, "loss": nn.functional.cross_entropy(self.head(embedding), identity)}


def test_a_model_computes_its_own_loss_from_inputs_if_training_has_no_labels_and_validation_has_pairs():
    inputs = samples(16).tensors[0]
    train = StackDataset(inputs=inputs, identity=torch.arange(16) % 5)
    pairs = TensorDataset(samples(32).tensors[0].unflatten(0, (16, 2)), torch.rand(16, 1))
    nets = [Net(name, Recognizer(inputs.shape[1], 4), element="embedding") for name in ("teacher", "student")]
    own = [Truth(kdkit.model_loss, student=Tap(net.module, element="loss")) for net in nets]
    schedule = [*alone(nets[0], own[0], epochs=1), *alone(nets[1], own[1] + Match(nets[0], nn.MSELoss()), epochs=1)]
    recipe = Recipe(data=TorchData(Unlabelled(train), pairs), schedule=schedule, metrics=(PairSimilarity(),))
    result = kdkit.run(recipe, baseline=True)
    assert [*result.metrics] == ["teacher", "student", "student-alone"]
    assert {*result.history["student-alone"][0]["terms"]} == {"truth"}
    with Distiller(nets[1], own[1], example=({"inputs": inputs, "identity": train[:]["identity"]}, None)) as distiller:
        loss = distiller({"inputs": inputs, "identity": train[:]["identity"]}).loss
    torch.testing.assert_close(loss, nets[1].module(**train[:])["loss"])


def test_the_table_of_a_run_shows_an_interval_after_its_value():
    metrics = {"auc": MetricResult(value=0.8, interval=(0.75, 0.846)), "f1": MetricResult(value=0.5)}
    event = RunEnded(metrics={"net": metrics}, parameters={"net": 3}, reported_on="test", folder=None, seconds=1.0)
    cells = [next(iter(column.cells)) for column in metrics_table(event).columns]
    assert cells == ["net", "3", "0.8000 (0.7500 to 0.8460)", "0.5000"]


@dataclass(frozen=True)
class RecordsThresholds:
    """MacroF1 that appends the number of samples and its thresholds to a list."""

    metric: MacroF1
    records: list
    name = "macro_f1"

    def fit(self, validation):
        return replace(self, metric=self.metric.fit(validation))

    def compute(self, test):
        self.records.append((len(test), self.metric.thresholds))
        return self.metric.compute(test)


def several(count, first, permuted=None):
    """Return samples of a multilabel task; permuted: a seed that permutes their labels, None to leave them."""
    random = torch.Generator().manual_seed(first)
    labels = (torch.rand(count, 3, generator=random) < 0.4).float()
    inputs = torch.randn(count, 6, generator=random)
    inputs[:, :3] += labels  # so that the labels can be learned
    if permuted is not None:
        labels = labels[torch.randperm(count, generator=torch.Generator().manual_seed(permuted))]
    return TensorDataset(inputs, labels)


def test_thresholds_do_not_depend_on_test_labels():
    thresholds, values = [], []
    for permuted in (None, 3):
        records = []

        def recipe(permuted=permuted, records=records):
            return Recipe(
                data=TorchData(several(40, 0), several(30, 1), several(26, 2, permuted), classes=CLASSES),
                schedule=alone(Net("student", Small(4)), Truth(nn.BCEWithLogitsLoss())),
                metrics=(RecordsThresholds(MacroF1(), records),),
            )

        result = kdkit.run(recipe)
        (used,) = [used for count, used in records if count == 26]  # of the test split, by its size
        thresholds.append(np.array(used).tobytes())
        values.append(result.metrics["student"]["macro_f1"].value)
    assert thresholds[0] == thresholds[1]
    assert values[0] != values[1]  # else the labels were not permuted


class Grouped(Split):
    """A split with groups (of patients) and with its labels."""

    def __init__(self, split, groups):
        self.split = split
        self.groups = groups
        self.ids = split.ids
        self.labels = torch.cat([split.batch(torch.arange(len(split)), 0).labels])

    def __len__(self):
        return len(self.split)

    def batch(self, rows, draw):
        return self.split.batch(rows, draw)


def test_groups_and_training_positives_reach_the_run_folder_and_its_table(tmp_path, kdkit_here):
    plain = TorchData(samples(32), samples(24, 1), samples(24, 2), classes=CLASSES)

    class GroupedData(Data):
        classes, task, draws, fingerprint = plain.classes, plain.task, plain.draws, "grouped"
        train, validation, test = (
            Grouped(split, torch.arange(len(split)) // 2) for split in (plain.train, plain.validation, plain.test)
        )

    out = tmp_path / "out"
    metrics = (BootstrapInterval(MacroAUROC(), resamples=20),)
    recipe = Recipe(data=GroupedData(), schedule=alone(Net("student", Small(4))), metrics=metrics)
    result = kdkit.run(recipe, out=out)
    assert "20 resamples of groups (patients)" in result.metrics["student"]["macro_auroc"].note
    saved = json.loads((out / "metrics.json").read_text())["metrics"]["student"]["macro_auroc"]
    assert saved["interval"] == list(result.metrics["student"]["macro_auroc"].interval)
    assert set(saved["intervals_by_class"]) == set(CLASSES)
    done = kdkit_here("classes", out, "--resamples", 20)
    assert done.code == 0, done.err
    row = next(line for line in done.out.splitlines() if line.startswith("│ a "))
    # The positives of class a in each split: training, validation, test.
    assert [cell.strip() for cell in row.split("│")[2:6]] == ["11", "8", "8", "-"]
    assert kdkit_here("classes", out, "--net", "teacher").code == 2
    assert kdkit_here("classes", tmp_path / "nowhere").code == 2
