"""Open stages for tests, as a run does before its first step, and compute their terms."""

import torch

from kdkit import Batch, BuildContext, Stage, Tap, Training, check
from kdkit.data.dataset import Data
from kdkit.engine.check.dry_run import dry_run
from kdkit.engine.stage.open_stage import OpenStage, build_context
from tests.helpers.tiny import one_stage

CONTEXT = BuildContext(classes=("a", "b", "c"), task="multiclass", samples=8, ids=True)
TRAINING = Training(epochs=1)


def open_and_build(stage: Stage, data_or_context: Data | BuildContext, batch: Batch) -> OpenStage:
    """Open a stage, and build its losses in a dry run on `batch`. Fails if the dry run finds a problem.

    The caller closes it, such as by `with`.
    """
    is_context = isinstance(data_or_context, BuildContext)
    context = data_or_context if is_context else build_context(data_or_context)
    open_stage = OpenStage(stage, context, batch.labels.device)
    problems = dry_run(open_stage, batch).problems
    assert problems == []
    return open_stage


def batch_of(*ids, inputs=None):
    """Return a batch of the samples with these ids, 0 to 3 by default. The class of a sample is its id modulo 3."""
    ids = torch.tensor(ids or (0, 1, 2, 3))
    return Batch(torch.randn(len(ids), 4) if inputs is None else inputs, ids % 3, ids)


def open_objectives(objectives, batch=None, context=CONTEXT):
    """Open a stage of tiny nets with these objectives."""
    return open_and_build(Stage(objectives, TRAINING), context, batch or batch_of())


def term_values(open_stage, batch):
    """Return the values of the terms of a batch, by label."""
    return open_stage.module(batch, open_stage.teacher_outputs(batch))


def only_term(objectives, batch, context=CONTEXT):
    """Return the value of the only term of a stage in eval mode."""
    with open_objectives(objectives, batch, context) as open_stage:
        open_stage.module.eval()
        (value,) = term_values(open_stage, batch).values()
    return value


def hidden_taps(student, teacher):
    """Return taps on the hidden layers of two tiny nets."""
    return {"student": Tap(student.module.hidden), "target": Tap(teacher.module.hidden)}


def problems_of(net, objective, data=None):
    """Return what a check finds in a stage of one tiny net."""
    return check(one_stage(net, objective, data)).problems


def only_problem(recipe):
    """Return the problem of a recipe that has exactly one."""
    (problem,) = check(recipe).problems
    return problem
