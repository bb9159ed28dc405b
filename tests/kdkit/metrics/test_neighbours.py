"""The accuracy of nearest neighbours: its value, what is a neighbour, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.utils.data import TensorDataset

import kdkit
from kdkit import DataError, Match, Net, Recipe, RecipeError, Stage, TorchData, Training
from kdkit.losses import Cosine
from kdkit.metrics import (
    Accuracy,
    BootstrapInterval,
    NearestNeighbours,
    Predictions,
    SplitPredictions,
    paired_bootstrap,
)

RANDOM = np.random.default_rng(0)
CENTRES = RANDOM.normal(size=(4, 6))


def split(samples, first_id=0, noise=1.0):
    """Return embeddings around the centres of four classes. Their lengths mean nothing."""
    labels = RANDOM.integers(0, 4, samples)
    outputs = (CENTRES[labels] + noise * RANDOM.normal(size=(samples, 6))) * RANDOM.uniform(0.1, 10, (samples, 1))
    ids = np.arange(first_id, first_id + samples)
    return Predictions(labels=labels, outputs=outputs.astype(np.float32), classes=("0", "1", "2", "3"), ids=ids)


@pytest.mark.parametrize("block", [1 << 24, 90])
@pytest.mark.parametrize("k", [1, 7])
def test_the_value_is_that_of_scikit_learn(monkeypatch, k, block):
    monkeypatch.setattr("kdkit.metrics.neighbours._BLOCK", block)
    known, test = split(60), split(50, 60)
    weights = lambda distances: np.exp((1 - distances) / 0.07)  # noqa: E731  # a function of distances
    reference = KNeighborsClassifier(k, weights=weights, metric="cosine", algorithm="brute")
    expected = reference.fit(known.outputs, known.labels).score(test.outputs, test.labels)
    assert 0.3 < expected < 0.95
    assert NearestNeighbours(k).fit(known).compute(test).value == pytest.approx(expected)
    numbers = replace(test, labels=test.labels[:, None].astype(np.float32))  # as of a regression
    assert NearestNeighbours(k).fit(known).compute(numbers).value == pytest.approx(expected)


def test_the_nearest_neighbour_decides_at_a_low_temperature():
    known, test = split(60), split(50, 60)
    nearest = NearestNeighbours(1).fit(known).compute(test).value
    assert NearestNeighbours(20, temperature=1e-5).fit(known).compute(test).value == nearest > 0
    single = known.rows(np.arange(1))
    assert NearestNeighbours().fit(single).compute(single).value == 0  # it does not find itself


def test_a_note_tells_how_many_classes_the_validation_split_lacks():
    known, test = split(60), split(50, 60)
    assert NearestNeighbours().fit(known).compute(test).note == ""
    result = NearestNeighbours().fit(known.rows(known.labels > 0)).compute(test)
    assert result.note.startswith("1 of 4 classes have no sample in the validation split, so theirs are never right")


@pytest.mark.parametrize("has_ids", [False, True])
def test_a_sample_does_not_find_itself(has_ids):
    known = split(40, noise=5.0) if has_ids else replace(split(40, noise=5.0), ids=None)
    assert NearestNeighbours(1).fit(known).compute(known).value < 0.7
    others = replace(known, outputs=2 * known.outputs, ids=None if known.ids is None else known.ids + 40)
    # Without ids, equal directions in the same order are those of the same samples.
    assert (NearestNeighbours(1).fit(known).compute(others).value == 1) is has_ids


def test_intervals_and_comparisons_do_not_search_again():
    known, test = split(60), split(50, 60)
    assert BootstrapInterval(NearestNeighbours(5)).fit(known).compute(test).interval is not None
    better = SplitPredictions(validation=known, test=test)
    worse = SplitPredictions(validation=known, test=replace(test, outputs=test.outputs[::-1].copy()))
    assert paired_bootstrap(NearestNeighbours(5), better, worse).verdict == "better"


def test_students_and_wider_teachers_are_evaluated_without_labels_in_training():
    torch.manual_seed(0)
    inputs = torch.randn(60, 4)
    labelled = TensorDataset(inputs, inputs.argmax(1))
    teacher, student = Net("teacher", nn.Linear(4, 16), trained=True), Net("student", nn.Linear(4, 8))
    data = TorchData(kdkit.Unlabelled(TensorDataset(inputs)), labelled, task="regression")
    stage = Stage({student: 1.0 * Match(teacher, Cosine())}, Training(epochs=1))
    metrics = kdkit.run(Recipe(data=data, schedule=[stage], metrics=(NearestNeighbours(3),)), progress=False).metrics
    assert {0.3 < metrics[net]["knn_3_accuracy"].value < 1 for net in ("teacher", "student")} == {True}


def test_what_does_not_fit_is_refused():
    known, metric = split(10), NearestNeighbours()
    with pytest.raises(DataError, match="call fit"):
        metric.compute(known)
    with pytest.raises(DataError, match=r"one class per sample, .* got labels \(10, 2\)"):
        metric.fit(known).compute(replace(known, labels=np.zeros((10, 2))))
    with pytest.raises(DataError, match="of whole numbers; got labels"):
        metric.fit(replace(known, labels=known.labels + 0.5)).compute(known)
    with pytest.raises(DataError, match=r"finite numbers; got \(10, 6\), 1 of them NaN"):
        metric.fit(known).compute(replace(known, outputs=np.where(np.arange(60).reshape(10, 6), known.outputs, np.nan)))
    with pytest.raises(RecipeError, match="k must be"):
        NearestNeighbours(0)
    assert NearestNeighbours(3) == NearestNeighbours(3).fit(known) != NearestNeighbours(5) != Accuracy()
