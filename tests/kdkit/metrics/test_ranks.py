"""Metrics of the rank of the correct class, against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score, top_k_accuracy_score

from kdkit import DataError, Predictions, RecipeError
from kdkit.metrics import MRR, NDCG, Accuracy, TopKAccuracy, lower_is_better
from tests.helpers.metrics import assert_interval_is_that_of_resamples

CLASSES = tuple("abcdefg")
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 7, 60)
LOGITS = RANDOM.normal(0, 3, (60, 7)) + 2 * np.eye(7)[LABELS]
METRICS = [TopKAccuracy(2), MRR(3), NDCG(3)]


def multiclass(logits=LOGITS, labels=LABELS):
    return Predictions(labels=labels, outputs=logits, classes=CLASSES)


def test_top_k_accuracy_is_that_of_scikit_learn():
    for k in (1, 3, 5):
        expected = top_k_accuracy_score(LABELS, LOGITS, k=k, labels=range(7))
        metric = TopKAccuracy(k)
        assert metric.name == f"top_{k}_accuracy"
        assert metric.compute(multiclass()).value == expected
    assert TopKAccuracy(1).compute(multiclass()).value == Accuracy().compute(multiclass()).value


def test_rankings_with_one_relevant_item_have_the_values_of_scikit_learn():
    relevant = np.eye(7)[LABELS]
    for k in (1, 3, 7):
        assert NDCG(k).compute(multiclass()).value == pytest.approx(ndcg_score(relevant, LOGITS, k=k))
    # with one relevant item, the average precision is the reciprocal of its rank
    expected = label_ranking_average_precision_score(relevant, LOGITS)
    assert MRR().compute(multiclass()).value == pytest.approx(expected)
    ranks = 1 + (LOGITS[range(60), LABELS][:, None] < LOGITS).sum(1)
    assert MRR(3).compute(multiclass()).value == pytest.approx(np.where(ranks <= 3, 1 / ranks, 0).mean())
    assert (MRR(3).name, NDCG().name) == ("mrr_3", "ndcg_10")


def test_rankings_with_several_relevant_items_have_the_values_of_scikit_learn():
    labels = (RANDOM.random((60, 7)) < 0.3).astype(np.float32)
    labels[:, 0] = 1
    unlabelled = np.zeros((4, 7), np.float32)  # such as users without a purchase in the test period, who do not count
    test = multiclass(np.concatenate([LOGITS, LOGITS[:4]]), np.concatenate([labels, unlabelled]))
    for k in (1, 3, 7, 20):
        assert NDCG(k).compute(test).value == pytest.approx(ndcg_score(labels, LOGITS, k=k))
    first = np.take_along_axis(labels, (-LOGITS).argsort(1), 1).argmax(1)
    assert MRR(3).compute(test).value == pytest.approx(np.where(first < 3, 1 / (1 + first), 0).mean())


@pytest.mark.parametrize("metric", [MRR(3), NDCG(3), MRR(7), NDCG(7)], ids=repr)
@pytest.mark.parametrize("outputs", [LOGITS, np.where(LOGITS > 0, LOGITS, -np.inf)], ids=["finite", "masked"])
def test_items_of_unknown_relevance_have_no_rank(metric, outputs):
    labels = np.eye(7)[LABELS % 5]
    labels[:, :2] = np.nan
    known = Predictions(labels=labels[:, 2:], outputs=outputs[:, 2:], classes=CLASSES[2:])
    assert metric.compute(multiclass(outputs, labels=labels)).value == metric.compute(known).value


def test_a_network_with_constant_outputs_is_right_for_the_first_classes_only():
    for k in (1, 3):
        share = np.less(LABELS, k).mean()
        assert TopKAccuracy(k).compute(multiclass(np.zeros_like(LOGITS))).value == share


@pytest.mark.parametrize("metric", [MRR(6), NDCG(6)], ids=repr)
def test_equal_scores_of_all_items_have_no_value_although_the_first_one_is_relevant(metric):
    equal, first = np.zeros_like(LOGITS), np.zeros(60, int)
    assert metric.compute(multiclass(equal, first)).value == 0
    assert metric.compute(multiclass(equal, np.eye(7)[first])).value == 0
    positions = metric.reduce_positions(torch.zeros(2, 7, 3), torch.zeros(2, 3))
    assert positions.tolist() == [[0, 3], [0, 3]]
    pair = equal + np.eye(7)[0] + np.eye(7)[1]  # the relevant item shares the first place, so it has the second one
    expected = {"mrr_6": 1 / 2, "ndcg_6": 1 / np.log2(3)}[metric.name]
    for labels in (first, np.eye(7)[first]):
        assert metric.compute(multiclass(pair, labels)).value == pytest.approx(expected)


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_a_network_with_nan_is_never_right_among_the_first_classes(metric):
    counts = metric.reduce_positions(torch.full((2, 7, 3), torch.nan), torch.zeros(2, 3))
    assert counts.tolist() == [[0, 3], [0, 3]]


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_an_interval_is_that_of_the_metric_of_each_resample(metric):
    assert_interval_is_that_of_resamples(metric, multiclass())
    assert not lower_is_better(metric)


def test_options_and_labels_that_do_not_fit_are_refused():
    several = Predictions(labels=np.eye(7)[LABELS], outputs=LOGITS, classes=CLASSES)
    with pytest.raises(RecipeError, match="k must be an integer of at least 1; got 0"):
        TopKAccuracy(0)
    with pytest.raises(DataError, match="top_7_accuracy is 1 for every network with 7 classes; pass a smaller k"):
        TopKAccuracy(7).compute(multiclass())
    with pytest.raises(DataError, match="top_2_accuracy takes one class per sample"):
        TopKAccuracy(2).compute(several)
    with pytest.raises(DataError, match="mrr_10 takes one class per sample or position"):
        MRR().reduce_positions(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))
