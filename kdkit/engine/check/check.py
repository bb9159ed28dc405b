"""Check a recipe without training it."""

from typing import Any

import torch
from torch import nn

from kdkit.engine.check.dry_run import Rehearsal, tried
from kdkit.engine.check.plan import Plan, TermSummary
from kdkit.engine.check.static import _across_stages, _answers, _before_rehearsal, _same_classes, _scores, _training
from kdkit.engine.open_stage import facts_of, tiny_batch
from kdkit.nets.net import Net
from kdkit.recipe.recipe import Recipe, nets_of
from kdkit.utils.devices import Precision


def check(recipe: Recipe, device: torch.device | str = "cpu", precision: Precision = "fp32") -> Plan:
    """Return the plan of a recipe, from a tiny forward pass a stage. Nothing is trained.

    Nets are moved to the device, and else left as they were; losses with weights are built.

    Raises only where the data cannot be read or the schedule gives no stages; all else stands in `problems`.
    """
    stages = recipe.stages
    facts = facts_of(recipe.data)
    problems = [*_same_classes(recipe.data), *_across_stages(recipe, stages), *_scores(recipe), *_answers(recipe)]
    comparisons = []
    foreign: set[Net[Any]] = set()
    for stage in stages:
        found = [*_before_rehearsal(stage, facts)] or [*_training(stage)]
        shown: tuple[TermSummary, ...] = ()
        if not found:
            batch = tiny_batch(recipe.data, stage.training.batch_size).to(torch.device(device))
            for net in nets_of([stage]):
                if isinstance(net.module, nn.Module):
                    net.module.to(batch.labels.device)
            rehearsal = Rehearsal(stage, facts, batch, precision)
            found, shown = rehearsal.problems, tuple(rehearsal.comparisons)
            if not found and rehearsal.lesson is not None:
                found = [*tried(stage.training, rehearsal.lesson, rehearsal.sessions, batch, precision)]
            rehearsal.close()
            foreign.update(rehearsal.foreign)
        problems += [f"stage {stage.name!r}: {problem}" for problem in found]
        comparisons.append(shown)
    return Plan(
        stages=stages,
        comparisons=tuple(comparisons),
        problems=tuple(dict.fromkeys(problems)),
        facts=facts,
        foreign=frozenset(foreign),
    )
