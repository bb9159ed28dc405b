"""The predictions of a network for a whole split, and the metrics of them."""

import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, get_worker_info

import kdkit
from kdkit import (
    Batch,
    DataError,
    KdkitError,
    LoaderSplit,
    Net,
    Predictions,
    Recipe,
    Split,
    Stage,
    TorchData,
    Training,
    Truth,
)
from kdkit.data.device_data import DeviceData
from kdkit.engine.predict import Predictor, compute_metrics
from kdkit.engine.storage.finished_run import read_net_report
from kdkit.metrics import Accuracy, CrossEntropy, MacroAUROC, MacroF1
from tests.helpers.tiny import same_state, samples, state_of, tiny_data, tiny_net


def on_cpu():
    return DeviceData(torch.device("cpu"), share=0.25, draws=1, passes=2)


def predictor(data):
    return Predictor(data, on_cpu())


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_every_sample_is_predicted_once_and_in_order_for_any_batch_size(batch_size):
    data, net = tiny_data(), tiny_net("net")
    predictions = predictor(data).predict(net, data.validation, batch_size=batch_size)
    inputs, labels = samples(rows=6, seed=1).tensors  # the validation split of tiny_data
    net.module.eval()
    np.testing.assert_allclose(predictions.outputs, net.module(inputs).detach().numpy(), rtol=1e-5)
    assert predictions.labels.tolist() == labels.tolist()
    assert predictions.ids.tolist() == data.validation.ids.tolist()
    assert predictions.classes == ("a", "b", "c")


def test_whole_numbers_of_a_regression_are_not_taken_for_classes(tmp_path):
    splits = [TensorDataset(torch.randn(8, 4), torch.arange(40, 48)) for _ in range(3)]

    def recipe():
        truth = Truth(lambda outputs, labels: (outputs[:, 0] - labels).square().mean())
        data = TorchData(*splits, classes=("age",), task="regression")
        training = Training(epochs=1, batch_size=4)
        return Recipe(data=data, schedule=[Stage({Net("net", nn.Linear(4, 1)): truth}, training)])

    kdkit.run(recipe, out=tmp_path / "run", device="cpu", measure=False)
    assert read_net_report(tmp_path / "run", "net").test.labels.tolist() == [*range(40, 48)]


def test_predicting_does_not_change_the_net():
    data, net = tiny_data(), tiny_net("net")
    net.module.train()
    net.module.norm.eval()  # a mode that differs from that of its parent
    before = state_of(net.module)
    predictor(data).predict(net, data.test, batch_size=4)
    assert same_state(before, state_of(net.module))


def test_the_mode_of_a_net_is_restored_if_it_fails():
    data, net = tiny_data(), Net("net", nn.Linear(9, 3))
    with pytest.raises(RuntimeError):
        predictor(data).predict(net, data.test, batch_size=4)
    assert net.module.training


def test_another_module_can_predict_for_the_net():
    data, net, average = tiny_data(), tiny_net("net"), tiny_net("average", seed=5)
    predictions = predictor(data).predict(net, data.validation, batch_size=4, module=average.module)
    expected = predictor(data).predict(average, data.validation, batch_size=4)
    assert np.array_equal(predictions.outputs, expected.outputs)


def test_a_plain_callable_can_predict():
    data = tiny_data()
    api = Net("api", lambda inputs: inputs[:, :3], version="1")
    predictions = predictor(data).predict(api, data.validation, batch_size=4)
    assert predictions.outputs.shape == (6, 3)


def test_the_graphs_of_a_network_that_computes_gradients_are_freed_batch_by_batch():
    class Differentiated(nn.Linear):
        @torch.enable_grad()
        def forward(self, inputs):
            hidden = super().forward(inputs)
            graphs.append(weakref.ref(hidden))
            return hidden.square()

    graphs, alive, data = [], [], tiny_data("regression")
    predictor(data).predict(
        Net("net", Differentiated(4, 3)),
        data.validation,
        batch_size=1,
        between_batches=lambda: alive.append(sum(graph() is not None for graph in graphs)),
    )
    assert max(alive) <= 1


def test_predictions_for_a_user_defined_loader_have_no_ids():
    data = TorchData(samples(), DataLoader(samples(rows=6), batch_size=4), classes=["a", "b", "c"])
    predictions = predictor(data).predict(tiny_net("net"), data.validation, batch_size=2)
    assert predictions.ids is None  # a batch of a user-defined loader is (inputs, labels)
    assert len(predictions.outputs) == 6


def test_an_empty_split_is_refused():
    empty = LoaderSplit(DataLoader(samples(rows=0), batch_size=2))
    with pytest.raises(DataError, match="the evaluated data yields no batch"):
        predictor(tiny_data()).predict(tiny_net("net"), empty, batch_size=2)


def test_multilabel_columns_of_classes_that_the_net_lacks_are_dropped():
    data = tiny_data("multilabel")
    net = Net("net", nn.Linear(4, 3), classes=["c", "x", "a"])
    predictions = predictor(data).predict(net, data.validation, batch_size=4)
    all_classes = predictor(data).predict(Net("all", net.module), data.validation, batch_size=4)
    assert predictions.classes == ("a", "c")  # in the order of the data
    assert np.array_equal(predictions.labels, all_classes.labels[:, [0, 2]])
    assert np.array_equal(predictions.outputs, all_classes.outputs[:, [2, 0]])


def test_multiclass_samples_of_classes_that_the_net_lacks_are_dropped():
    data = tiny_data()
    net = Net("net", nn.Linear(4, 2), classes=["c", "a"])
    predictions = predictor(data).predict(net, data.validation, batch_size=4)
    rows = np.array([0, 2, 3, 5])  # labels are 0 1 2 0 1 2, and the net has no class "b"
    assert predictions.classes == ("a", "c")
    assert predictions.labels.tolist() == [0, 1, 0, 1]
    assert predictions.ids.tolist() == data.validation.ids[rows].tolist()
    assert predictions.outputs.shape == (4, 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])  # the last one is infinite in float32
def test_outputs_that_are_not_finite_are_refused_with_the_name_of_the_net(value):
    def api(inputs):
        outputs = inputs[:, :3].double()
        outputs[0, 1] = value  # once in each of the two batches
        return outputs

    data = tiny_data()
    with pytest.raises(KdkitError, match=r"net 'api' has outputs that are not finite numbers, for 2 of 6 samples"):
        predictor(data).predict(Net("api", api, version="1"), data.validation, batch_size=3)


def test_scores_of_more_candidates_than_classes_are_refused_unless_a_metric_takes_any_outputs():
    data = tiny_data()
    ranker = Net("ranker", lambda inputs: inputs.repeat(1, 2), version="1")  # 8 candidates, and 3 in training
    with pytest.raises(KdkitError, match=r"'ranker' has outputs \(6, 8\) for the validation .* need \(6, 3\)"):
        predictor(data).predict(ranker, data.validation, batch_size=3)

    class Largest(Accuracy):
        any_outputs = True

    predictions = Predictor(data, on_cpu(), metrics=(Largest(),)).predict(ranker, data.validation, batch_size=3)
    assert predictions.outputs.shape == (6, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_class_that_a_net_masks_is_never_predicted_and_has_finite_metrics(dtype):
    def masked(inputs):
        outputs = inputs[:, :3].to(dtype, copy=True)
        outputs[:, 1] = -torch.inf
        return outputs

    data = tiny_data()
    predictions = predictor(data).predict(Net("api", masked, version="1"), data.validation, batch_size=3)
    assert np.isfinite(predictions.outputs).all()
    assert 1 not in predictions.outputs.argmax(1)
    results = compute_metrics([Accuracy(), MacroF1(), MacroAUROC()], predictions, predictions)
    assert all(np.isfinite(result.value) for result in results.values())


def test_a_sample_all_of_whose_classes_are_masked_is_refused():
    data = tiny_data()
    net = Net("api", lambda inputs: torch.full((len(inputs), 3), -torch.inf), version="1")
    with pytest.raises(KdkitError, match="not finite numbers, for 6 of 6 samples"):
        predictor(data).predict(net, data.validation, batch_size=3)


@pytest.mark.parametrize("labels", ["one per pixel", "several per pixel"])
@pytest.mark.parametrize(
    ("masked", "bad"),
    [([], []), ([1], []), ([0, 1, 2], [0]), (["nan"], [0]), (["inf"], [0])],
    ids=["nothing", "a class", "all classes", "a NaN", "infinity"],
)
def test_pixels_are_refused_if_an_output_is_not_finite_and_is_no_mask(labels, masked, bad):
    outputs = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    for item in masked:
        if isinstance(item, str):
            outputs[0, 2, 1, 4] = float(item)
        else:
            outputs[0, item, 1, 4] = -torch.inf
    shape = (4, 3, 5, 5) if labels == "several per pixel" else (4, 5, 5)
    images = TensorDataset(torch.arange(4), torch.zeros(shape, dtype=torch.int64))
    task = "multilabel" if labels == "several per pixel" else "multiclass"
    data = TorchData(images, images, classes=["a", "b", "c"], task=task)
    predictor, net = Predictor(data, on_cpu(), metrics=(CrossEntropy(),)), Net("net", outputs.__getitem__, version="1")
    if bad:
        with pytest.raises(KdkitError, match="net 'net' has outputs that are not finite numbers, for 1 of 4 samples"):
            predictor.predict(net, data.validation, batch_size=2)
        return
    predictions = predictor.predict(net, data.validation, batch_size=2)
    decisions = outputs >= 0 if labels == "several per pixel" else outputs.argmax(1)
    assert np.array_equal(predictions.outputs, decisions.numpy())
    assert np.isfinite(CrossEntropy().compute(predictions).value)


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (nn.Conv2d(3, 2, 2, stride=2), r"\(4, 4, 4\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), r"\(4,\)"),
    ],
    ids=["fewer pixels", "one for each image"],
)
def test_decisions_of_another_shape_than_the_labels_are_refused(network, shape):
    images = TensorDataset(torch.randn(4, 3, 8, 8), torch.zeros(4, 8, 8, dtype=torch.int64))
    data, net = TorchData(images, images, classes=["a", "b"]), Net("net", network)
    with pytest.raises(KdkitError, match=rf"net 'net' has decisions of shape {shape} for labels \(4, 8, 8\)"):
        predictor(data).predict(net, data.validation, batch_size=4)


class InWorkers(Split):
    """Samples whose label is 1 if a worker process reads them."""

    ids = torch.arange(6)

    def batch(self, rows, draw):
        labels = torch.full((len(rows),), int(get_worker_info() is not None))
        return Batch(torch.zeros(len(rows), 4), labels, self.ids[rows], draw)


@pytest.mark.parametrize("workers", [0, 1])
def test_worker_processes_read_the_samples_if_there_are_any(workers):
    data = tiny_data()
    predictions = predictor(data).predict(tiny_net("net"), InWorkers(), batch_size=4, workers=workers)
    assert predictions.labels.tolist() == [workers] * 6


def test_outputs_are_float32_under_autocast():
    data = tiny_data()
    half = Predictor(data, on_cpu(), "bf16")
    assert half.predict(tiny_net("net"), data.validation, batch_size=4).outputs.dtype == np.float32


def test_numbers_of_a_float64_network_are_not_rounded():
    energies = torch.tensor([[-40000.001], [-40000.002]], dtype=torch.float64)
    split = TensorDataset(energies, energies)
    data = TorchData(split, split)
    predictions = predictor(data).predict(Net("net", nn.Identity()), data.validation, batch_size=2)
    assert np.array_equal(predictions.outputs, energies)


def test_thresholds_are_fitted_on_validation_and_metrics_are_computed_on_test():
    def split(outputs):
        return Predictions(labels=np.array([[0.0], [1.0]]), outputs=np.array(outputs), classes=("a",))

    # The threshold of validation, between 5 and 6, separates the test split; the default one, at 0, does not.
    validation, test = split([[5.0], [6.0]]), split([[4.0], [7.0]])
    results = compute_metrics((MacroF1(),), validation, test)
    assert results["macro_f1"].value == 1
    assert MacroF1().compute(test).value < 1
    multiclass = Predictions(labels=np.array([0, 1]), outputs=np.eye(2), classes=("a", "b"))
    assert list(compute_metrics((Accuracy(), MacroF1()), multiclass, multiclass)) == ["accuracy", "macro_f1"]


class Grouped(Split):
    """A split whose samples belong to groups, such as patients."""

    def __init__(self, split, groups):
        self.ids, self.batch, self.groups, self.rows = split.ids, split.batch, groups, len(split)

    def __len__(self):
        return self.rows


def test_predictions_have_the_groups_of_their_split():
    data = tiny_data()
    grouped = Grouped(data.validation, torch.arange(6) // 2)
    predictions = predictor(data).predict(tiny_net("net"), grouped, batch_size=4)
    assert predictions.groups.tolist() == [0, 0, 1, 1, 2, 2]
    # If samples are dropped, because the net lacks class "b", their groups are dropped too.
    two_classes = Net("two", nn.Linear(4, 2), classes=("a", "c"))
    reduced = predictor(data).predict(two_classes, Grouped(data.validation, torch.arange(6)), batch_size=4)
    assert reduced.groups.tolist() == [row for row, label in enumerate(predictions.labels) if label != 1]


def test_the_groups_of_a_loader_are_those_of_its_samples():
    loader = DataLoader(TensorDataset(torch.randn(6, 4), torch.arange(6) % 3), 4)
    data = TorchData(loader, loader, classes=3)
    data.validation.groups = [0, 0, 1, 1, 2, 2]
    predictions = predictor(data).predict(tiny_net("net"), data.validation, batch_size=4)
    assert predictions.groups.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("groups", [torch.arange(5), torch.rand(6), torch.zeros(6, 1, dtype=torch.int64)])
def test_groups_must_be_an_integer_per_row(groups):
    data = tiny_data()
    with pytest.raises(DataError, match=r"groups of a split must be integers, one per row: \(6,\); got "):
        predictor(data).predict(tiny_net("net"), Grouped(data.validation, groups), batch_size=4)
