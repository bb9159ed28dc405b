"""Measure the networks at the end of a run for its report: their cost, and the similarity of their layers.

Measurements do not change results, take about a second per network at most, and do not fail the run.
"""

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from kdkit.data.batch import Batch
from kdkit.data.dataset import Data, reported_split
from kdkit.engine.measurement.layer_similarity import (
    SAMPLES,
    compared_layers,
    matched_nets,
    similarities,
    spread_batches,
)
from kdkit.engine.measurement.multiply_adds import multiply_adds
from kdkit.engine.storage.measurements import Latency, LayerSimilarity, Measurements, NetCost
from kdkit.errors import first_line
from kdkit.nets.net import Net
from kdkit.recipe.baseline import baselines_of
from kdkit.recipe.recipe import Stage, nets_of
from kdkit.utils.devices import Precision, autocast, elapsed
from kdkit.utils.modules import eval_mode, preserve_buffers, uncompiled, weights_bytes
from kdkit.utils.randomness import preserve_rng_state

_LATENCY_SECONDS = 0.5  # for the timed passes of a network
_MOST_PASSES = 20
_SIMILARITY_SECONDS = 1.0  # for all networks together, or _SHARE of the time of the run if that is more
_SHARE = 0.01
_TOO_SLOW = 5  # layers are not compared if a batch takes longer than this multiple of the allowed time
_MOST_LAYERS = 24  # per network, as many as are legible on a page
_MOST_PAIRS = 8  # of networks


def measure_nets(
    stages: Sequence[Stage], data: Data, precision: Precision, device: torch.device, *, seconds: float
) -> Measurements:
    """Return the measurements of the networks of a run's stages. seconds: the time that the run has taken."""
    nets = nets_of(stages)
    # The evaluation has already shown the warnings of user code.
    with preserve_rng_state(cuda=device.type == "cuda" or None), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # At most the batch size of a step, which fits into memory, and at least 8 samples for the similarity.
            size = max(8, min(SAMPLES, *(stage.training.batch_size for stage in stages)))
            samples = [batch.to(device) for batch in spread_batches(reported_split(data)[1], size)]
            single, pair = (samples[0].rows(torch.arange(min(count, len(samples[0])))) for count in (1, 2))
        except Exception as error:  # user-defined data may raise anything
            note = f"the samples could not be read: {_reason(error)}"
            return Measurements(costs={net.name: NetCost(note=note) for net in nets}, note=note)
        costs = {net.name: _net_cost(net, single, pair, precision, device) for net in nets}
        compared: tuple[LayerSimilarity, ...] = ()
        note = ""
        try:
            allowed = max(_SIMILARITY_SECONDS, _SHARE * seconds)
            # An estimate of the time of a batch. The latencies on one thread are an upper bound.
            expected = len(samples[0]) * sum(cost.latency.p50 for cost in costs.values() if cost.latency is not None)
            if expected / torch.get_num_threads() > _TOO_SLOW * allowed:
                note = f"layers were not compared: a batch of {len(samples[0])} samples would take {expected:.0f} s"
            else:
                with autocast(precision, device):
                    compared = tuple(_similarities(stages, samples, time.perf_counter() + allowed))
        except Exception as error:  # user-defined networks may raise anything
            note = f"layers could not be compared: {_reason(error)}"
    return Measurements(
        costs=costs, similarities=compared, samples=sum(map(len, samples)) if compared else 0, note=note
    )


def _net_cost(net: Net[Any], single: Batch, pair: Batch, precision: Precision, device: torch.device) -> NetCost:
    """Return the cost of a network, as far as it can be measured.

    single, pair: batches of one and of two samples, for the latency and for the multiply-adds.
    """
    if not isinstance(net.module, nn.Module):
        return NetCost(note="it is not an nn.Module")
    latency, note = None, ""
    try:
        latency = _net_latency(net, single, precision, net.device or device)
    except Exception as error:  # for example if a network does not take a batch of one sample
        note = f"a pass for one sample fails: {_reason(error)}"
    return NetCost(
        weights_bytes=weights_bytes(net.network), multiply_adds=multiply_adds(net, pair), latency=latency, note=note
    )


def _net_latency(net: Net[Any], single: Batch, precision: Precision, device: torch.device) -> Latency:
    """Return the latency of a network for a batch of one sample; on a CPU, with one thread."""
    threads = torch.get_num_threads()
    times: list[float] = []
    with (
        eval_mode(net.network),
        preserve_buffers([net.network]),
        uncompiled(),  # compiling for one sample would take longer than the passes
        torch.no_grad(),
        autocast(precision, single.labels.device),
    ):
        try:
            if device.type == "cpu":
                torch.set_num_threads(1)
            net(single)  # the first pass is not measured: it chooses kernels and fills caches
            until = time.perf_counter() + _LATENCY_SECONDS
            # Slow networks are timed at least twice.
            while len(times) < 2 or (len(times) < _MOST_PASSES and time.perf_counter() < until):
                began = time.perf_counter()
                net(single)
                times.append(elapsed(began, single.labels.device))
        finally:
            torch.set_num_threads(threads)
    p50, p95 = np.percentile(times, (50, 95)).tolist()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Latency(
        p50=p50, p95=p95, passes=len(times), device=name, threads=1 if device.type == "cpu" else threads,
        precision=precision,
    )  # fmt: skip


def _similarities(stages: Sequence[Stage], samples: list[Batch], until: float) -> Iterator[LayerSimilarity]:
    """Yield the layer similarities of each student and of its baseline with each network that the student matches."""
    by_name = {net.name: net for net in nets_of(stages)}
    baselines: Mapping[str, str] = baselines_of(stages)
    pairs: dict[tuple[Net[Any], Net[Any]], None] = {}
    # In reverse order, because a report is about the last students.
    for student, teacher in reversed(matched_nets(stages)):
        followers = [student, *(by_name[baselines[name]] for name in [student.name] if name in baselines)]
        pairs.update(dict.fromkeys((follower, teacher) for follower in followers))
    chosen = list(pairs)[:_MOST_PAIRS]
    if not chosen:
        return
    measured = compared_layers(
        tuple(dict.fromkeys(net for pair in chosen for net in pair)), samples, most=_MOST_LAYERS, until=until
    )
    for student, teacher in chosen:
        rows, columns = measured[student], measured[teacher]
        if rows and columns:
            yield LayerSimilarity(
                student=student.name,
                teacher=teacher.name,
                student_layers=tuple(layer.path for layer in rows),
                teacher_layers=tuple(layer.path for layer in columns),
                values=tuple(map(tuple, similarities(rows, columns))),
            )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
