"""Open a teacher for a stage. A network becomes a frozen teacher: in eval mode and without gradients."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch
from kdkit.errors import KdkitError, RecipeError, first_line
from kdkit.losses.base import BuildContext
from kdkit.nets.net import Net
from kdkit.nets.taps import OpenTaps, TapLike
from kdkit.teachers.base import Teacher, TeacherOutput, TeacherSession
from kdkit.utils.modules import drop_compiled_code, eval_mode
from kdkit.utils.overrides import Override


def open_teacher(teacher: Teacher, taps: Sequence[TapLike], context: BuildContext) -> TeacherSession:
    """Return the session of a teacher: a Frozen for a network, otherwise what its `open` returns.

    Raises RecipeError if the teacher has no `open(taps, context)`, or if `open` fails or does not return a
    TeacherSession.
    """
    if isinstance(teacher, Net):
        return Frozen(teacher, taps)
    open_method = getattr(teacher, "open", None)
    if open_method is None:
        raise RecipeError(
            f"{teacher.name!r} is a {type(teacher).__name__}, which cannot be matched; expected a Net, or a teacher "
            "whose open(taps, context) returns a TeacherSession"
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
    """A network in eval mode and without gradients. Closing it restores the mode of every submodule.

    It computes in eval mode even if its module is put into training mode in the meantime, by a module that contains it
    or because it is part of a network in training.
    """

    def __init__(self, net: Net[Any], taps: Sequence[TapLike]) -> None:
        self.net = net
        module = net.module if isinstance(net.module, nn.Module) else None
        self._parts = [] if module is None else [*module.modules()]
        self._open_taps = OpenTaps(taps, [net])
        self._modes: list[Override] = []
        try:
            if taps:
                drop_compiled_code([module])
            if module is not None:
                # Other stages may also have the network open, and may close it earlier or later.
                self._modes = [Override(part, "training", value=False) for part in self._parts]
                with suppress(NotImplementedError):  # raised by a torch.export program, which has one mode only
                    module.eval()  # in addition to the flags: a module may override `eval`
        except BaseException:
            self.close()
            raise

    def __call__(self, batch: Batch) -> TeacherOutput:
        """Return the output and the features for this batch."""
        for part in self._parts:
            if part.training:
                with eval_mode(self.net.module):
                    return self._run(batch)
        return self._run(batch)

    @torch.no_grad()
    def dry_run(self, batch: Batch) -> Sequence[TapLike]:
        """Run once, note which tapped tensors are modified in place, and return the taps that did not fire."""
        self._open_taps.begin_pass()
        self._open_taps.reset_fired()
        with eval_mode(self.net.module):
            self.net.first_pass(batch)
        self._open_taps.copy_if_modified()
        return self._open_taps.unfired()

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Move or convert the network, unless accelerate has spread it over devices. Its own device is kept."""
        module = self.net.module
        if isinstance(module, nn.Module) and not self.net.is_spread:
            module._apply(change)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            if self.net.device is not None:
                module.to(self.net.device)

    def close(self) -> None:
        """Remove the taps and restore the mode of every submodule."""
        self._open_taps.close()
        for mode in self._modes:
            mode.close()

    def _run(self, batch: Batch) -> TeacherOutput:
        output, features = self._open_taps.run(self.net, batch)
        if self.net.device is not None:
            features = tuple(feature.to(batch.labels.device) for feature in features)
        return TeacherOutput(_normal(output), tuple(map(_normal, features)))


def _normal(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd may save: a copy, if a teacher computed it in torch.inference_mode.

    It has no graph, even if the teacher computed it in torch.enable_grad, as for forces.
    """
    tensor = tensor.detach() if tensor.requires_grad else tensor
    # The compiler cannot trace `is_inference`, and computes no tensors of inference mode.
    return tensor if torch.compiler.is_compiling() or not tensor.is_inference() else tensor.clone()
