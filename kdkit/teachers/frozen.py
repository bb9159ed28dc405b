"""Open a teacher for a stage; a network becomes a frozen teacher: in eval mode, and without gradients."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from kdkit.data.batch import Batch
from kdkit.errors import KdkitError, RecipeError, first_line
from kdkit.losses.base import BuildContext
from kdkit.nets.net import Net
from kdkit.nets.taps import OpenTaps, TapLike
from kdkit.teachers.base import Teacher, TeacherOutput, TeacherSession
from kdkit.utils.modules import drop_compiled_code, eval_mode


def open_teacher(teacher: Teacher, taps: Sequence[TapLike], context: BuildContext) -> TeacherSession:
    """Return the session of a teacher: a frozen network, or whatever its `open` returns.

    Raises RecipeError if it has no `open(taps, context)`, or if `open` fails or does not return a TeacherSession.
    """
    if isinstance(teacher, Net):
        return Frozen(teacher, taps)
    open_method = getattr(teacher, "open", None)
    if open_method is None:
        raise RecipeError(
            f"{teacher.name!r} is a {type(teacher).__name__}, which cannot be matched; expected a Net, or a teacher "
            "with open(taps, context) that returns a TeacherSession"
        )
    try:
        session = open_method(taps, context)
    except KdkitError:
        raise
    except Exception as error:  # a user-defined teacher may raise anything
        raise RecipeError(
            f"{teacher.name!r} cannot be opened: open(taps, context) of {type(teacher).__name__} raises "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(session, TeacherSession):
        raise RecipeError(
            f"{teacher.name!r} cannot be used: open(taps, context) of {type(teacher).__name__} must return a "
            f"TeacherSession; it returned {session!r}"
        )
    return session


class Frozen(TeacherSession):
    """A network in eval mode and without gradients. Closing it restores the mode of every submodule."""

    def __init__(self, net: Net[Any], taps: Sequence[TapLike]) -> None:
        self.net = net
        self._open_taps = OpenTaps(taps, [net])
        if taps:
            drop_compiled_code([net.module])
        self._resources = ExitStack()
        self._resources.enter_context(eval_mode(net.module))

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TeacherOutput:
        """Return the output and the features for this batch."""
        if not self._open_taps.taps:  # a step of a small network takes microseconds
            return TeacherOutput(self.net(batch))
        self._open_taps.clear()
        output, features = self.net(batch), self._open_taps.take()
        if self.net.device is not None:
            features = tuple(feature.to(batch.labels.device) for feature in features)
        return TeacherOutput(output, features)

    @torch.no_grad()
    def dry_run(self, batch: Batch) -> Sequence[TapLike]:
        """Run once, note which tapped tensors are modified in place, and return the taps that did not fire."""
        self._open_taps.clear()
        self.net.first_pass(batch)
        self._open_taps.copy_if_modified()
        return self._open_taps.unfired()

    def close(self) -> None:
        """Remove the taps and restore the mode of every submodule."""
        self._open_taps.close()
        self._resources.close()
