"""Build a loss as a run does, once the shapes of its inputs are known."""

from kdkit import BuildContext

CONTEXT = BuildContext(classes=("a", "b", "c"), task="multiclass", samples=12, ids=True)


def build_loss(loss, student, target, teacher=None, context=CONTEXT):
    """Return the loss, built for the shapes of a student and a target: a tensor each, or a tuple of taps each."""
    student, target = (side if isinstance(side, tuple) else (side,) for side in (student, target))
    loss.build(tuple(tap.shape for tap in student), tuple(tap.shape for tap in target), context, teacher)
    return loss
