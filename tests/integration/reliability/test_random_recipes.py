"""Random recipes have the same results if they are resumed, reuse cached teacher outputs, or replay captured steps.

    KDKIT_RECIPES=200 pytest -n0 tests/integration/reliability/test_random_recipes.py

The recipes are the same each time, unless their number is given. If one fails, a reduced one is printed.
"""

import itertools
import os
import signal
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

import kdkit
from kdkit import Result
from tests.helpers.callbacks import Killed
from tests.helpers.random_recipes import NetPlan, RecipePlan, recipes
from tests.helpers.stages import assert_same_results

# Losses that are means over samples, each of which has a value of its own.
PER_SAMPLE = {
    "SoftTargets",
    "DKD",
    "NKD",
    "LogitMSE",
    "ReverseKL",
    "TTM",
    "PerLabelSoftTargets",
    "Hint",
    "FT",
    "CWD",
    "ICKD",
}
for_recipes = settings(
    max_examples=int(os.environ.get("KDKIT_RECIPES", "3")),
    derandomize="KDKIT_RECIPES" not in os.environ,
    database=None,
    deadline=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


@dataclass
class Stop:
    """Stops a run after some steps, by Ctrl-C or at once, as if the process was killed. steps: so far."""

    after: int | None = None
    at_once: bool = False
    steps: int = 0

    @kdkit.hookimpl
    def step_ended(self) -> None:
        self.steps += 1
        if self.steps == self.after:
            if self.at_once:
                raise Killed
            signal.raise_signal(signal.SIGINT)


def run(plan: RecipePlan, folder: Path, *, cache: Path | str, **options: Any) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of terms and schedules without effect, and of steps that are not captured
        options = {"device": "cpu", "seed": 1, "measure": False, "progress": False, **options}
        return kdkit.run(plan, out=folder, teacher_cache=cache, **options)


def assert_close_results(first: Result, second: Result, tolerance: float) -> None:
    for name, net in first.nets.items():
        weights = second.nets[name].network.state_dict()
        torch.testing.assert_close(net.network.state_dict(), weights, rtol=tolerance, atol=tolerance)


@for_recipes
@given(
    plan=recipes(),
    stops=st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=3),
    every=st.integers(1, 3),
)
def test_a_run_that_was_stopped_several_times_ends_with_the_same_bits(plan, stops, every):
    with tempfile.TemporaryDirectory() as folder:
        counter = Stop()
        whole = run(plan, Path(folder, "whole"), cache=Path(folder, "cache"), callbacks=[counter])
        for number, (fraction, at_once) in enumerate([*stops, (None, False)]):
            stop = Stop(None if fraction is None else 1 + int(fraction * counter.steps), at_once)
            options = {"callbacks": [stop], "checkpoint_every": every, "resume": number > 0}
            try:
                resumed = run(plan, Path(folder, "stopped"), cache=Path(folder, "other cache"), **options)
            except (Killed, KeyboardInterrupt):
                continue
            break
        assert_same_results(whole, resumed)


@for_recipes
@given(plan=recipes(), precision=st.sampled_from(["fp32", "bf16"]))
def test_cached_teacher_outputs_give_the_results_of_computed_ones(plan, precision):
    with tempfile.TemporaryDirectory() as folder:
        cold, warm, off = (
            run(plan, Path(folder, str(number)), cache=cache, precision=precision)
            for number, cache in enumerate([Path(folder, "cache"), Path(folder, "cache"), "off"])
        )
        assert_same_results(cold, warm)
        # The cache holds outputs of other batches, in which a sum may be rounded otherwise.
        assert_close_results(cold, off, 1e-4 if precision == "fp32" else 2e-3)


@for_recipes
@given(
    plan=recipes(
        losses=PER_SAMPLE,
        nets=st.just(NetPlan("none", dropout=0.0)),
        batch_size=st.just(12),
        optimizer=st.just("SGD"),
        accumulate_steps=st.just(1),
        balancing=st.none(),
        options=st.just({"max_grad_norm": 1.0}),
    )
)
def test_accumulated_batches_give_the_results_of_one_large_batch(plan):
    assume(plan.data.samples % 4 != 1)  # a last batch of one sample is left out
    plan = replace(plan, data=replace(plan.data, order="any", draws=1, noise="none"))
    small = tuple(replace(training, batch_size=4, accumulate_steps=3) for training in plan.trainings)
    with tempfile.TemporaryDirectory() as folder:
        results = [
            run(recipe, Path(folder, name), cache="off")
            for name, recipe in {"large": plan, "small": replace(plan, trainings=small)}.items()
        ]
        assert_close_results(*results, 1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@for_recipes
@given(
    plan=recipes(epochs=st.integers(3, 5), batch_size=st.just(5), accumulate_steps=st.just(1)),
    precision=st.sampled_from(["fp32", "bf16", "fp16"]),
)
def test_captured_steps_and_data_on_the_device_give_the_same_bits(plan, precision):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(kdkit.engine.training.capture, "_WORTHWHILE", 0)
        results = [
            run(
                plan,
                Path(folder, f"{capture} {device_data}"),
                cache=Path(folder, "cache"),
                device="cuda",
                deterministic=True,
                precision=precision,
                capture=capture,
                device_data=device_data,
            )
            for capture, device_data in itertools.product(["off", "auto"], [0, 0.25])
        ]
        for result in results[1:]:
            assert_same_results(results[0], result)
