"""Which teachers of a run are recorded, and where; why others are asked at every step."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdkit.data.batch import Batch
from kdkit.data.dataset import LoaderSplit, Split
from kdkit.engine.options import RunOptions
from kdkit.errors import CacheError, first_line
from kdkit.nets.net import Net
from kdkit.recipe.recipe import Recipe, Stage
from kdkit.teachers import TeacherSession
from kdkit.teachers.cache import (
    SAMPLES,
    Audit,
    CachedTeacher,
    CacheFolder,
    Codec,
    EntrySpec,
    Store,
    facts_of_data,
    compute_key,
    probe,
)
from kdkit.utils import collectives
from kdkit.utils.randomness import preserve_rng_state

_GIGABYTE = 10**9
_HALF = 0.03  # how far equal answers of half precision may lie apart, as a share of the largest figure
_ON_A_GPU, _WITH_TF32 = 1e-4, 1e-2  # the same where kernels are chosen by the size of a batch


class TeacherCaching:
    """The recorded answers of a run, taken up as its stages open. Close it at the end.

    stages: all of the run, since what one asks may be recorded for a later one.
    """

    def __init__(self, recipe: Recipe, stages: Sequence[Stage], options: RunOptions, device: torch.device) -> None:
        self.recipe, self.stages, self.options, self.device = recipe, stages, options, device
        self._temporary: Path | None = None

    def notices(self) -> Iterator[str]:
        """Say why nothing is recorded in this run, or for this run alone, where that lies in its data."""
        if self.options.teacher_cache == "off" or not any(_frozen(stage) for stage in self.stages):
            return
        try:
            self._facts()
        except CacheError as error:
            yield f"teachers are asked at every step: {error}"
            return
        if not self._whole() and (self.options.out is not None or self.options.teacher_cache != "auto"):
            yield "what teachers answer is recorded for this run alone, since kdkit cannot see all of the data"

    def begin(
        self, stage: Stage, sessions: MutableMapping[str, TeacherSession], lesson: nn.Module, batch: Batch
    ) -> list[str]:
        """Put recorded answers in the place of nets that answer, and say which of them are not recorded, and why.

        lesson: all that is trained. batch: a tiny one, on which everyone has been rehearsed.
        Raises CacheError where a teacher does not say what is recorded of it.
        """
        notices = []
        for net in _frozen(stage):
            asked = sessions[net.name]
            with self.options.autocast(self.device):
                try:
                    recorded = _together(self._recorded(net, stage, asked, lesson, batch))
                except CacheError as error:
                    notices.append(f"net {net.name!r} is asked at every step: {error}")
                    recorded = _together(None)
                sessions[net.name] = recorded or self._formed(net, asked, batch)
                if recorded is not None:
                    self._look_after(recorded)
        return notices

    def close(self, *, ended: bool) -> None:
        """Delete what was recorded for this run alone, unless it may be gone on with: then it ends in the same bits."""
        if self._temporary is not None and (ended or self.options.out is None):
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _recorded(
        self, net: Net[Any], stage: Stage, asked: TeacherSession, lesson: nn.Module, batch: Batch
    ) -> CachedTeacher | None:
        """Return the net's recorded answers, None where that has been said or goes without saying.

        Raises CacheError, whose text is the reason, where there can be none.
        """
        split = self._split()
        if split is None or not self._of_use(net, stage):
            return None
        _require_apart(net, lesson)
        trial = probe(asked, batch, autocast=self.options.precision != "fp32")
        form = Codec(self.recipe.teacher_cache, trial.answer)
        store = self._opened(net, stage, form, split)
        audit = self._audit(net, asked, form)
        audit.rounding = max(audit.rounding, 10 * trial.rounding, self._least_rounding())
        audit.remedy = (
            f"delete them (kdkit cache {store.path.parent} --delete {store.path.name[:12]}), or run without "
            "(--teacher-cache off)"
        )
        return CachedTeacher(asked, form, store, audit)

    def _opened(self, net: Net[Any], stage: Stage, form: Codec, split: Split) -> Store:
        facts, ids = self._facts(), torch.as_tensor(split.ids).to("cpu", torch.int64)
        how = {"precision": self.options.precision, "device": self.device.type, "form": self.recipe.teacher_cache.form}
        place = EntrySpec(
            net=net.name,
            key=compute_key(net, stage.teachers[net], data=facts, settings=how),
            parts=form.parts,
            ids=ids,
            draws=facts["draws"],
            asked=min(facts["draws"], stage.training.epochs) * len(ids),
        )
        return CacheFolder(self._folder(), int(self.options.teacher_cache_size * _GIGABYTE)).open(place)

    def _of_use(self, net: Net[Any], stage: Stage) -> bool:
        """Whether anybody may ask again for what is recorded. Raises CacheError where fewer draws would help."""
        draws, taps, chosen = self._facts()["draws"], stage.teachers[net], self.options.teacher_cache
        twice = stage.training.epochs > draws or sum(each.teachers.get(net) == taps for each in self.stages) > 1
        if twice or not (self._alone() or (taps and chosen == "auto")):
            return True
        if draws > 1:
            raise CacheError(
                f"in {stage.training.epochs} epochs of {draws} draws nothing is asked twice; fewer draws, or a folder "
                "that other runs share (--teacher-cache DIR), would change that"
            )
        return False

    def _formed(self, net: Net[Any], asked: TeacherSession, batch: Batch) -> TeacherSession:
        """Return answers in the form that the recipe wants also where they are not recorded."""
        if self.recipe.teacher_cache.form is None:
            return asked
        form = Codec(self.recipe.teacher_cache, asked(batch))
        return CachedTeacher(asked, form, None, self._audit(net, asked, form))

    def _audit(self, net: Net[Any], asked: TeacherSession, form: Codec) -> Audit:
        return Audit(f"net {net.name!r}", asked, form, self.recipe.teacher_cache.audit)

    def _look_after(self, recorded: CachedTeacher) -> None:
        """Ask again for a few samples of those that an earlier stage or run recorded."""
        store, split = recorded.store, self._split()
        if store is None or split is None or not recorded.audit.share:
            return
        known = store.known.nonzero()
        if not len(known):
            return
        chance = torch.Generator()
        chance.seed()  # others each time
        draw = int(known[torch.randint(len(known), (), generator=chance)][0])
        rows = store.known[draw].nonzero().flatten()
        ids = store.ids[rows[torch.randperm(len(rows), generator=chance)[:SAMPLES]]]
        with preserve_rng_state():
            batch = split.batch(torch.isin(torch.as_tensor(split.ids).cpu(), ids).nonzero().flatten(), draw)
        found = None if batch.ids is None else store.find(batch.ids, draw)
        if found is not None:
            recorded.audit.require_same(batch.to(self.device), store.read(found))

    def _facts(self) -> Mapping[str, Any]:
        """Return what answers depend on in the data. Raises CacheError where its samples cannot be told apart."""
        if isinstance(self._told, CacheError):
            raise self._told
        return self._told

    @cached_property
    def _told(self) -> Mapping[str, Any] | CacheError:
        try:
            return facts_of_data(self.recipe.data)
        except CacheError as error:
            return error
        except Exception as error:  # a stranger's data may raise anything when it is asked for its ids
            return CacheError(f"the data cannot be looked at ({type(error).__name__}: {first_line(error)})")

    def _split(self) -> Split | None:
        """Return the training split, None where no answers about it are recorded."""
        train = self.recipe.data.train
        off = (
            self.options.teacher_cache == "off" or isinstance(train, LoaderSplit) or isinstance(self._told, CacheError)
        )
        return None if off or isinstance(train, LoaderSplit) else train

    def _alone(self) -> bool:
        """Whether what is recorded is of use to this run alone."""
        return not self._whole() or (self.options.teacher_cache == "auto" and self.options.out is None)

    def _whole(self) -> bool:
        """Whether the key of recorded answers changes with every sample: see `Data`."""
        return isinstance(self._told, Mapping) and self._told["train_digest"] is not None

    def _folder(self) -> Path:
        if self._alone():
            if self._temporary is None:
                own = None if self.options.out is None else self.options.out / "teacher_cache"
                self._temporary = own or Path(tempfile.mkdtemp(prefix="kdkit-teacher-cache-"))
            return self._temporary
        return self.options.teacher_cache_folder()

    def _least_rounding(self) -> float:
        if self.options.precision != "fp32":
            return _HALF
        if self.device.type == "cpu":
            return 0.0
        exact = torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
        return _ON_A_GPU if exact else _WITH_TF32


def _frozen(stage: Stage) -> list[Net[Any]]:
    """Return the nets that teach in a stage and are not trained in it."""
    return [teacher for teacher in stage.teachers if isinstance(teacher, Net) and teacher not in stage.objectives]


def _together(recorded: CachedTeacher | None) -> CachedTeacher | None:
    """Return it where every process of the run has one too: what one was told, it hands to the others."""
    if all(collectives.all_gather_objects([recorded is not None])):
        return recorded
    if recorded is not None and recorded.store is not None:
        recorded.store.close()
    return None


def _require_apart(net: Net[Any], lesson: nn.Module) -> None:
    """Raise CacheError where a net shares a part with what is trained, and may change with it."""
    if not isinstance(net.module, nn.Module):
        return
    trained = {*map(id, lesson.modules()), *map(id, lesson.buffers())}
    parts: list[Any] = [*net.module.modules(), *net.module.buffers()]
    shared = next((each for each in parts if id(each) in trained), None)
    if shared is not None:
        raise CacheError(f"it shares a {type(shared).__name__} with what is trained")
