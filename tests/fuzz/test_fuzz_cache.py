"""Values of damaged cached teacher outputs and stores of signals are right, recomputed, or refused.

    KDKIT_FUZZ_SECONDS=600 pytest -n0 tests/fuzz/test_fuzz_cache.py

Each test repeats its mutations for some seconds. A failure shows the number of the mutation, which is its seed.
"""

import os
import shutil
import time
import warnings

import numpy as np
import pytest

import kdkit
from kdkit import CacheSettings
from kdkit.teachers.cache import row_files
from tests.fuzz.fuzz_cache import FILES, fuzz_entries, fuzz_store, mutate, restore
from tests.fuzz.meter import Meter
from tests.helpers.stages import copied, epoch_terms, same
from tests.helpers.teacher_cache import make_recipe

SECONDS = float(os.environ.get("KDKIT_FUZZ_SECONDS", "4")) / 4  # of each test
LEAST = 10  # mutations, on a machine under load


def seeds():
    """Yield the seeds of mutations until the time is over."""
    end = time.monotonic() + SECONDS
    number = 0
    while number < LEAST or time.monotonic() < end:
        yield number
        number += 1


@pytest.mark.parametrize("memory", [2**28, 0], ids=["held in memory", "read by row"])
def test_a_hit_in_a_mutated_entry_has_the_value_that_was_written(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(row_files, "_MEMORY_BYTES", memory)
    meter = Meter()
    fuzz_entries(tmp_path, meter, seeds())
    assert meter.outcomes["computed again"]


def test_a_run_over_a_mutated_cache_ends_with_the_same_bits(tmp_path):
    def run(name):
        recipe = make_recipe(taps=True, epochs=2, teacher_cache=CacheSettings(audit=0))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* damaged and computed again")
            result = kdkit.run(recipe, out=tmp_path / name, device="cpu", progress=False)
        return copied(result.student.module), epoch_terms(result.history)

    weights, history = run("first")
    (meta,) = (tmp_path / "teacher_cache").glob("*/meta.json")
    shutil.copytree(meta.parent, tmp_path / "original")
    for seed in seeds():
        generator = np.random.default_rng(seed)
        for file in generator.choice(FILES, 2):
            if (meta.parent / file).is_file():
                # A range of zeros is a range of rows that were not written, and are computed in smaller batches.
                mutate(meta.parent / file, generator, kinds=4 if file == "checksums" else 10)
        repeated = run(f"run-{seed}")
        assert same(repeated[0], weights), seed
        assert repeated[1] == history, seed
        restore(meta.parent, tmp_path / "original")
        shutil.rmtree(tmp_path / f"run-{seed}")


def test_a_record_of_a_mutated_store_has_its_samples_or_is_refused(tmp_path):
    meter = Meter()
    fuzz_store(tmp_path, meter, seeds())
    assert all(meter.outcomes[outcome] for outcome in ("read", "refused"))
