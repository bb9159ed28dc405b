"""A frozen teacher, and how a teacher is opened."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from kdkit.data.batch import Batch
from kdkit.errors import KdkitError, RecipeError, first_line
from kdkit.losses import BuildContext
from kdkit.nets.net import Net
from kdkit.nets.taps import OpenTaps, TapLike
from kdkit.teachers.base import Teacher, TeacherOutput, TeacherSession
from kdkit.utils.modules import eval_mode


def open_teacher(teacher: Teacher, taps: Sequence[TapLike], facts: BuildContext) -> TeacherSession:
    """Return who answers for a source: a Net is frozen, and any other opens itself.

    Raises RecipeError for one that has no `open(taps, facts)`, or whose `open` does not return a Respondent.
    """
    if isinstance(teacher, Net):
        return Frozen(teacher, taps)
    open_itself = getattr(teacher, "open", None)
    if open_itself is None:
        raise RecipeError(
            f"{teacher.name!r} is a {type(teacher).__name__}, which cannot be matched; expected a Net, or a source with "
            "open(taps, facts) that returns a Respondent"
        )
    try:
        session = open_itself(taps, facts)
    except KdkitError:
        raise
    except Exception as error:  # a stranger's source may raise anything
        raise RecipeError(
            f"{teacher.name!r} cannot be opened: open(taps, facts) of {type(teacher).__name__} raises "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(session, TeacherSession):
        raise RecipeError(
            f"{teacher.name!r} cannot be asked: open(taps, facts) returns a Respondent, and that of "
            f"{type(teacher).__name__} returned {session!r}"
        )
    return session


class Frozen(TeacherSession):
    """A net that answers in eval mode and without gradients, and is left in the mode it was in."""

    def __init__(self, net: Net[Any], taps: Sequence[TapLike]) -> None:
        self.net = net
        self._listening = OpenTaps(taps)
        self._open = ExitStack()
        self._open.enter_context(eval_mode(net.module))

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TeacherOutput:
        """Return what it says of this batch."""
        self._listening.clear()
        output = self.net(batch)
        return TeacherOutput(output, self._listening.take())

    @torch.no_grad()
    def dry_run(self, batch: Batch) -> Sequence[TapLike]:
        """Answer once, note which tapped tensors are changed in place, and return the taps that did not fire."""
        self._listening.clear()
        self.net(batch)
        self._listening.copy_if_modified()
        return self._listening.unfired()

    def close(self) -> None:
        """Take the taps away and give every module its mode back."""
        self._listening.close()
        self._open.close()
