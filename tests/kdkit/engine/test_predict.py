"""What a net says about a whole split."""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from kdkit import DataError, KdkitError, LoaderSplit, Net, Predictions, Split, TorchData
from kdkit.data.loading import batches
from kdkit.engine import predict
from kdkit.engine.predict import Predictor, compute_metrics
from kdkit.metrics import Accuracy, MacroF1
from tests.helpers.tiny import same_state, samples, state_of, tiny_data, tiny_net


def predictor(data):
    return Predictor(data, torch.device("cpu"), contextlib.nullcontext)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_every_sample_is_predicted_once_in_order_whatever_the_batch(batch_size):
    data, net = tiny_data(), tiny_net("net")
    said = predictor(data).predict(net, data.validation, batch_size=batch_size)
    inputs, labels = samples(rows=6, seed=1).tensors
    net.module.eval()
    np.testing.assert_allclose(said.outputs, net.module(inputs).detach().numpy(), rtol=1e-5)
    assert said.labels.tolist() == labels.tolist()
    assert said.ids.tolist() == data.validation.ids.tolist()
    assert said.classes == ("a", "b", "c")


def test_predicting_leaves_the_net_as_it_was():
    data, net = tiny_data(), tiny_net("net")
    net.module.train()
    net.module.norm.eval()
    before = state_of(net.module)
    predictor(data).predict(net, data.test, batch_size=4)
    assert same_state(before, state_of(net.module))


def test_a_net_that_cannot_predict_gets_its_mode_back():
    data, net = tiny_data(), Net("net", nn.Linear(9, 3))
    with pytest.raises(RuntimeError):
        predictor(data).predict(net, data.test, batch_size=4)
    assert net.module.training


def test_another_module_may_speak_for_the_net():
    data, net, other = tiny_data(), tiny_net("net"), tiny_net("other", seed=5)
    said = predictor(data).predict(net, data.validation, batch_size=4, module=other.module)
    expected = predictor(data).predict(other, data.validation, batch_size=4)
    assert np.array_equal(said.outputs, expected.outputs)


def test_a_plain_callable_predicts_too():
    data = tiny_data()
    said = predictor(data).predict(Net("api", lambda x: x[:, :3], version="1"), data.validation, batch_size=4)
    assert said.outputs.shape == (6, 3)


def test_a_loader_of_ones_own_has_no_ids():
    data = TorchData(samples(), DataLoader(samples(rows=6), batch_size=4), classes=["a", "b", "c"])
    said = predictor(data).predict(tiny_net("net"), data.validation, batch_size=2)
    assert said.ids is None
    assert len(said.outputs) == 6


def test_there_is_nothing_to_predict_in_an_empty_split():
    empty = LoaderSplit(DataLoader(samples(rows=0), batch_size=2))
    with pytest.raises(DataError, match="the split is empty"):
        predictor(tiny_data()).predict(tiny_net("net"), empty, batch_size=2)


def test_multilabel_columns_that_the_net_does_not_know_are_left_out():
    data = tiny_data("multilabel")
    net = Net("net", nn.Linear(4, 3), classes=["c", "x", "a"])
    said = predictor(data).predict(net, data.validation, batch_size=4)
    everything = predictor(data).predict(Net("all", net.module), data.validation, batch_size=4)
    assert said.classes == ("c", "a")
    assert np.array_equal(said.labels, everything.labels[:, [2, 0]])
    assert np.array_equal(said.outputs, everything.outputs[:, [0, 2]])


def test_multiclass_rows_that_the_net_does_not_know_are_left_out():
    data = tiny_data()
    net = Net("net", nn.Linear(4, 2), classes=["c", "a"])
    said = predictor(data).predict(net, data.validation, batch_size=4)
    known = np.array([0, 2, 3, 5])  # labels are 0 1 2 0 1 2
    assert said.classes == ("c", "a")
    assert said.labels.tolist() == [1, 0, 1, 0]
    assert said.ids.tolist() == data.validation.ids[known].tolist()
    assert said.outputs.shape == (4, 2)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_outputs_that_are_not_finite_are_refused_by_the_name_of_their_net(broken):
    def api(inputs):
        outputs = inputs[:, :3].clone()
        outputs[0, 1] = broken
        return outputs

    data = tiny_data()
    with pytest.raises(KdkitError, match=r"net 'api' gives outputs that are not finite numbers, for 2 of 6 samples"):
        predictor(data).predict(Net("api", api, version="1"), data.validation, batch_size=3)


def test_workers_and_pinning_are_passed_on(monkeypatch):
    asked = []

    def counted(*args, **kwargs):
        asked.append(kwargs)
        return batches(*args)

    monkeypatch.setattr(predict, "batches", counted)
    data = tiny_data()
    predictor(data).predict(tiny_net("net"), data.validation, batch_size=4, workers=3)
    assert asked == [{"workers": 3, "pin": False}]


def test_half_precision_is_reported_in_single():
    data = tiny_data()
    half = Predictor(data, torch.device("cpu"), lambda: torch.autocast("cpu", torch.bfloat16))
    assert half.predict(tiny_net("net"), data.validation, batch_size=4).outputs.dtype == np.float32


def test_thresholds_come_from_one_split_and_figures_from_the_other():
    def split(outputs):
        return Predictions(labels=np.array([[0.0], [1.0]]), outputs=np.array(outputs), classes=("a",))

    validation, test = split([[5.0], [6.0]]), split([[4.0], [7.0]])
    table = compute_metrics((MacroF1(),), validation, test)
    assert table["macro_f1"].value == 1
    assert MacroF1().compute(test).value < 1
    assert list(compute_metrics((Accuracy(), MacroF1()), *(_multiclass(),) * 2)) == ["accuracy", "macro_f1"]


def _multiclass():
    return Predictions(labels=np.array([0, 1]), outputs=np.eye(2), classes=("a", "b"))


class Grouped(Split):
    """A split that says which of its samples belong together."""

    def __init__(self, split, groups):
        self.ids, self.batch, self.groups, self.rows = split.ids, split.batch, groups, len(split)

    def __len__(self):
        return self.rows


def test_groups_of_a_split_come_with_its_predictions():
    data = tiny_data()
    said = predictor(data).predict(tiny_net("net"), Grouped(data.validation, torch.arange(6) // 2), batch_size=4)
    assert said.groups.tolist() == [0, 0, 1, 1, 2, 2]
    some = predictor(data).predict(
        Net("two", nn.Linear(4, 2), classes=("a", "c")), Grouped(data.validation, torch.arange(6)), batch_size=4
    )
    assert some.groups.tolist() == [row for row, label in enumerate(said.labels) if label != 1]


@pytest.mark.parametrize("groups", [torch.arange(5), torch.rand(6), torch.zeros(6, 1, dtype=torch.int64)])
def test_groups_that_are_no_number_per_row_are_refused(groups):
    data = tiny_data()
    with pytest.raises(DataError, match="one per row"):
        predictor(data).predict(tiny_net("net"), Grouped(data.validation, groups), batch_size=4)
