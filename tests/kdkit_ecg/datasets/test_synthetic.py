"""Synthetic simulates the same records for the same options, with plausible classes and leads."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch

from kdkit import KdkitError
from kdkit_ecg.datasets import synthetic
from kdkit_ecg.datasets.synthetic import VERSION, Synthetic
from kdkit_ecg.labels import scored_classes
from kdkit_ecg.simulator import Simulator
from kdkit_ecg.utils.processes import run_in_processes

SMALL = {"train": 6, "validation": 4, "test": 5, "length": 300}


@pytest.fixture(scope="module")
def data():
    return Synthetic(**SMALL)


def all_batches(data):
    return [split.batch(range(len(split)), 0) for split in (data.train, data.validation, data.test)]


def test_it_has_the_interface_of_a_kdkit_data_set(data):
    assert (data.task, data.draws) == ("multilabel", 1)
    assert "simulated" in data.notices[0]
    assert data.classes == scored_classes(2020).names
    batch = data.train.batch([0, 3], 0)
    assert batch.inputs.signal.shape == (2, 12, 300)
    assert batch.inputs.signal.dtype == batch.inputs.person.dtype == batch.labels.dtype == torch.float32
    assert batch.inputs.person.shape == (2, 5)
    assert batch.labels.shape == (2, 24)


def test_ids_are_unique_over_the_splits(data):
    ids = torch.cat([data.train.ids, data.validation.ids, data.test.ids])
    assert ids.dtype == torch.int64
    assert len(ids.unique()) == 15


def test_default_splits_have_positives_of_every_class():
    patient = Synthetic().simulator.patient
    # The first ids and default sizes of train, validation and test.
    for first, size in ((0, 1280), (1_000_000_000, 256), (2_000_000_000, 512)):
        findings = [patient(first + row).findings for row in range(size)]
        shares = [np.mean([name in record for record in findings]) for name in scored_classes(2020).names]
        assert min(shares) > 0.02
        assert 0.05 < np.mean(shares) < 0.15


def test_person_vector_is_valid():
    person = Synthetic(train=300, validation=1, test=1, length=10).train.person
    age, age_known, female, male, sex_known = person.T
    assert set(person[:, 1:].unique().tolist()) == {0, 1}
    assert (age[age_known == 0] == 0).all()
    assert ((age[age_known == 1] >= 0.18) & (age[age_known == 1] <= 0.95)).all()
    assert torch.equal(female + male, sex_known)


def test_a_record_depends_on_seed_and_id_alone(data):
    larger = Synthetic(**SMALL | {"train": 9, "test": 7})
    ids = larger.train.ids.tolist()
    row = ids.index(int(data.train.ids[4]))
    assert torch.equal(larger.train.batch([row], 0).inputs.signal, data.train.batch([4], 0).inputs.signal)
    assert torch.equal(larger.test.batch([2, 0], 0).inputs.signal, data.test.batch([2, 0], 0).inputs.signal)
    assert not torch.equal(Synthetic(**SMALL, seed=1).train.labels, data.train.labels)


@pytest.mark.parametrize("scaling", ["raw", "zscore"])
def test_several_processes_make_the_same_records_in_the_same_order(scaling, monkeypatch):
    options = SMALL | {"train": 7, "scaling": scaling}
    alone = Synthetic(**options)
    started = []

    def count_processes(function, items, processes):
        started.append(processes)
        return run_in_processes(function, items, processes)

    monkeypatch.setattr(synthetic, "run_in_processes", count_processes)
    monkeypatch.setattr(synthetic, "usable_cores", lambda: 2)
    monkeypatch.setattr(synthetic, "CHUNK", 2)
    monkeypatch.setattr(synthetic, "RECORDS_PER_PROCESS", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        shared = Synthetic(**options)
        batches = all_batches(shared)
    finally:
        torch.set_num_threads(threads)
    assert started == [2]  # for all splits at once
    for expected, batch in zip(all_batches(alone), batches, strict=True):
        assert torch.equal(batch.inputs.signal, expected.inputs.signal)
        assert torch.equal(batch.inputs.person, expected.inputs.person)
        assert torch.equal(batch.labels, expected.labels)
        assert torch.equal(batch.ids, expected.ids)


def test_only_the_splits_that_are_used_are_simulated(monkeypatch):
    simulated = []
    record = Simulator.record
    monkeypatch.setattr(Simulator, "record", lambda self, id: simulated.append(id) or record(self, id))
    data = Synthetic(**SMALL)
    assert simulated == []
    _ = data.test
    assert simulated == data.test.ids.tolist()
    _ = data.train, data.validation, data.test
    assert sorted(simulated) == sorted(
        torch.cat([split.ids for split in (data.train, data.validation, data.test)]).tolist()
    )


def test_a_changed_copy_has_its_own_records():
    data = Synthetic(**SMALL)
    scaled = copy.copy(data)
    scaled.scaling = "zscore"
    _ = data.train
    expected = Synthetic(**SMALL, scaling="zscore").validation.batch([0], 0)
    assert torch.equal(scaled.validation.batch([0], 0).inputs.signal, expected.inputs.signal)


def test_processes_that_simulate_do_not_import_torch():
    program = "import sys; from kdkit_ecg.simulator.simulator import simulate; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_float32_leads_satisfy_einthovens_law_up_to_rounding(data):
    for batch in all_batches(data):
        first, second, third, avr, avl, avf = batch.inputs.signal[:, :6].unbind(1)
        assert torch.allclose(third, second - first, atol=1e-6)
        assert torch.allclose(avr, -(first + second) / 2, atol=1e-6)
        assert torch.allclose(avl, first - second / 2, atol=1e-6)
        assert torch.allclose(avf, second - first / 2, atol=1e-6)


def test_zscore_scaling_gives_each_lead_mean_0_and_deviation_1():
    signal = Synthetic(**SMALL, scaling="zscore").train.batch([0, 1], 0).inputs.signal
    assert torch.allclose(signal.mean(dim=2), torch.zeros(2, 12), atol=1e-5)
    assert torch.allclose(signal.std(dim=2, correction=0), torch.ones(2, 12), atol=1e-4)


def test_draws_move_the_window_of_train_records_only():
    data = Synthetic(**SMALL, draws=3)
    first, repeated, second = (data.train.batch([0, 1], draw).inputs.signal for draw in (0, 0, 1))
    assert first.shape == (2, 12, 300)
    assert torch.equal(first, repeated)
    assert not torch.equal(first, second)
    assert torch.equal(data.test.batch([0], 0).inputs.signal, data.test.batch([0], 1).inputs.signal)


def test_classes_select_columns_in_their_order(data):
    chosen = Synthetic(**SMALL, classes=("SB", "AF"))
    columns = [data.classes.index(name) for name in ("SB", "AF")]
    assert chosen.classes == ("SB", "AF")
    assert torch.equal(chosen.test.labels, data.test.labels[:, columns])


def test_fingerprint_changes_with_every_option_that_changes_a_sample():
    changed = ({"seed": 1}, {"rate": 200}, {"length": 400}, {"difficulty": 0.1}, {"scaling": "zscore"}, {"train": 7})
    changed += ({"draws": 2}, {"classes": ("AF",)})
    prints = [Synthetic(**SMALL | change).fingerprint for change in ({}, *changed)]
    assert len(set(prints)) == len(prints)
    assert Synthetic(**SMALL).fingerprint == prints[0]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"train": 0}, "train must be an integer of at least 1; got 0"),
        ({"validation": -1}, "validation must be an integer of at least 1"),
        ({"test": 1.5}, "test must be an integer of at least 1"),
        ({"length": 0}, "length must be an integer of at least 1"),
        ({"draws": 0}, "draws must be an integer of at least 1"),
        ({"seed": 0.5}, "seed must be an integer of at least 0"),
        ({"rate": 0}, "rate must be a finite number above 0"),
        ({"rate": float("nan")}, "rate must be a finite number above 0"),
        ({"rate": "100"}, "rate must be a finite number above 0"),
        ({"difficulty": 2}, "difficulty must be a number in"),
        ({"difficulty": float("nan")}, "difficulty must be a number in"),
        ({"scaling": "zscores"}, "scaling must be 'zscore' or 'raw'; got 'zscores'"),
        ({"classes": ("AFIB",)}, "'AFIB' is not a class"),
        ({"classes": ("AF", "AF")}, "classes must be one or more different names"),
        ({"classes": ()}, "classes must be one or more different names"),
    ],
)
def test_a_wrong_option_is_refused_with_the_expected_value(option, message):
    with pytest.raises(KdkitError, match=message):
        Synthetic(**option)


def test_signals_have_not_changed_since_this_version():
    # If this fails, VERSION must be increased: cached teacher outputs belong to other signals.
    assert VERSION == 1
    record = Synthetic().simulator.record(7)
    assert record.patient.findings == {"LPR", "NSR", "PVC"}
    expected = [-1.13088111, -1.24149802, 1.94136451, -1.17729506]
    np.testing.assert_allclose(record.signal[[0, 1, 6, 11], 500], expected, atol=1e-6)
