"""Cache the outputs of the frozen teachers of a run, and give the reasons for those that are not cached."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdkit.data.batch import Batch, content_of, nested_tensors
from kdkit.data.dataset import LoaderSplit, Split
from kdkit.engine.options import RunOptions
from kdkit.engine.stage.cache_location import CacheLocation
from kdkit.engine.stage.open_stage import OpenStage
from kdkit.engine.stage.training_batches import passes_over
from kdkit.errors import CacheError
from kdkit.nets.net import Net
from kdkit.recipe.recipe import Recipe, Stage
from kdkit.teachers.base import TeacherSession
from kdkit.teachers.cache import (
    Audit,
    CachedTeacher,
    CacheFolder,
    Codec,
    EntrySpec,
    Key,
    Probe,
    Store,
    UnusableFolderError,
    compute_key,
    probe,
)
from kdkit.utils import collectives
from kdkit.utils.devices import Precision, uses_tf32
from kdkit.utils.randomness import preserve_rng_state

_GIGABYTE = 10**9
_SIZES_READ = 16  # samples that are read to find some of different sizes
# The smallest tolerance of an audit, as a relative difference, because the choice of kernels depends on the batch size:
_TOLERANCE_HALF = 0.03  # with autocast to half precision
_TOLERANCE_TF32 = 1e-2  # on a GPU, with TF32 (10 bits of mantissa) in matrix products or convolutions
_TOLERANCE_GPU = 1e-4  # on a GPU, in float32


class TeacherCaching:
    """The cached teachers of a run, opened stage by stage. Close its location at the end of the run.

    entries: the cache entry of each net in the open stage: its name, its capacity in outputs, and the number of outputs
    it had when the stage began. Those may have been computed in other batches, so with other rounding errors.
    """

    def __init__(self, recipe: Recipe, options: RunOptions, device: torch.device) -> None:
        self.recipe, self.options, self.device = recipe, options, device
        self.location = CacheLocation(recipe.data, options)
        self.entries: dict[str, dict[str, str | int]] = {}

    def notices(self) -> Iterator[str]:
        """Yield the reason if the data prevents caching, or prevents other runs from reading the cache."""
        if self.options.teacher_cache != "off" and any(map(frozen_teachers, self.recipe.stages)):
            yield from self.location.notices()

    def cache_sessions(self, open_stage: OpenStage, batch: Batch) -> list[str]:
        """Replace the sessions of frozen teachers with cached ones, and return a notice for each that is not cached.

        Call this after the dry run of all sessions. batch: a tiny batch.
        Raises CacheError if cached outputs differ from what the teacher computes.
        """
        notices = []
        self.entries = {}
        known_problem = self.location.problem
        for net in frozen_teachers(open_stage.stage):
            with torch.no_grad(), open_stage.autocast():
                try:
                    opened = self._open(net, open_stage, batch)
                except CacheError as error:
                    opened = None
                    notices.append(f"net {net.name!r} is not cached: {error}")
                self._replace_session(net, open_stage, batch, _on_all_ranks(opened))
        if self.location.problem != known_problem:
            notices.insert(0, f"teacher outputs are cached for this run only: {self.location.problem}")
        return notices

    def cached_split(self, net: Net[Any], open_stage: OpenStage) -> Split | None:
        """Return the split whose outputs of a teacher are cached; None if the cache is off, or impossible or useless.

        Raises CacheError with a reason that lies in the teacher, or in the number of draws.
        """
        train = self.recipe.data.train
        if self.options.teacher_cache == "off" or isinstance(train, LoaderSplit):
            return None
        if self.location.identity.facts is None or not self._is_worthwhile(net, open_stage.stage):
            return None
        _require_cacheable(net, open_stage.module)
        return train

    def new_outputs(self, stage: Stage) -> int:
        """Return the most outputs of a teacher that a stage writes if nothing is cached yet."""
        split = self.recipe.data.train
        return min(self._draws, passes_over(split, stage.training)) * len(split)

    def key(self, net: Net[Any], stage: Stage) -> Key:
        """Return the key of the outputs of a teacher in a stage, which depends on all of its weights."""
        settings = {
            "precision": self.options.precision,
            "device": (net.device or self.device).type,
            "form": self.recipe.teacher_cache.form,
        }
        return compute_key(net, stage.teachers[net], data=self.location.identity.require(), settings=settings)

    @property
    def _draws(self) -> int:
        return int(self.location.identity.require()["draws"])

    def _is_worthwhile(self, net: Net[Any], stage: Stage) -> bool:
        """Return whether cached outputs may be read again. Raises CacheError if there are too many draws for that."""
        draws, taps = self._draws, stage.teachers[net]
        passes = passes_over(self.recipe.data.train, stage.training)
        # Outputs that are cached in one stage may be read in a later one.
        stages_alike = sum(other.teachers.get(net) == taps for other in self.recipe.stages)
        if passes > draws or stages_alike > 1:
            return True
        # Other runs may read them too. Features are large, so they are shared only if a folder was passed.
        if not self.location.is_private and not (taps and self.options.teacher_cache == "auto"):
            return True
        if draws > 1:
            raise CacheError(
                f"in {passes} epochs of {draws} draws no output is needed twice; use fewer draws, or "
                "a folder that other runs share (--teacher-cache DIR)"
            )
        return False

    def _replace_session(self, net: Net[Any], open_stage: OpenStage, batch: Batch, opened: "_Opened | None") -> None:
        """Replace the session of a teacher with a cached one, or if it is None, with one that only rounds outputs."""
        if opened is None:
            open_stage.sessions[net.name] = self._encoded_only(net, open_stage.sessions[net.name], batch)
            return
        open_stage.sessions[net.name] = opened.session
        written = opened.store.written
        self.entries[net.name] = {
            "entry": opened.store.path.name,
            "outputs": written.numel(),
            "cached_before": int(written.sum()),
        }
        opened.session.audit.check_earlier(opened.store, opened.split, self.device)

    def _open(self, net: Net[Any], open_stage: OpenStage, batch: Batch) -> "_Opened | None":
        """Return a cached session, or None if the cache is off or useless. Raises CacheError with another reason."""
        stage, session = open_stage.stage, open_stage.sessions[net.name]
        split = self.cached_split(net, open_stage)
        if split is None:
            return None
        probed = probe_samples(session, batch, split, autocast=open_stage.precision != "fp32")
        codec = Codec(self.recipe.teacher_cache, probed.output)
        spec = EntrySpec(
            net=net.name,
            key=self.key(net, stage),
            parts=codec.parts,
            ids=torch.as_tensor(split.ids).to("cpu", torch.int64),
            draws=self._draws,
            new_rows=self.new_outputs(stage),
        )
        try:
            store = CacheFolder(self.location.folder(), int(self.options.teacher_cache_size * _GIGABYTE)).open(spec)
        except UnusableFolderError as error:
            if self.location.is_private:
                raise
            # Without a cache, outputs would be computed in other batches, and might differ in their last bits.
            self.location.problem = str(error)
            return self._open(net, open_stage, batch)
        # Ten times the rounding error of the tiny batch, which has only a few samples.
        tolerance = max(10 * probed.rounding, _least_tolerance(open_stage.precision, net.device or self.device))
        audit = Audit(f"net {net.name!r}", session, codec, self.recipe.teacher_cache.audit, tolerance=tolerance)
        return _Opened(CachedTeacher(session, codec, store, audit), store, split)

    def _encoded_only(self, net: Net[Any], session: TeacherSession, batch: Batch) -> TeacherSession:
        """Return a session with outputs rounded as by the cache settings, so that losses do not depend on the cache."""
        settings = self.recipe.teacher_cache
        if settings.form is None:
            return session
        codec = Codec(settings, session(batch))
        return CachedTeacher(session, codec, None, Audit(f"net {net.name!r}", session, codec, settings.audit))


class _Opened(NamedTuple):
    """A cached session, its open store, and the split whose outputs are cached."""

    session: CachedTeacher
    store: Store
    split: Split


def frozen_teachers(stage: Stage) -> list[Net[Any]]:
    """Return the nets that teach in a stage and are not trained in it."""
    return [teacher for teacher in stage.teachers if isinstance(teacher, Net) and teacher not in stage.objectives]


def _on_all_ranks(opened: _Opened | None) -> _Opened | None:
    """Return the cached teacher if every rank has one, because ranks exchange new outputs; otherwise close it."""
    if all(collectives.all_gather_objects([opened is not None])):
        return opened
    if opened is not None:
        opened.store.close()
    return None


def _least_tolerance(precision: Precision, device: torch.device) -> float:
    if precision != "fp32":
        return _TOLERANCE_HALF
    if device.type == "cpu":
        return 0.0
    return _TOLERANCE_TF32 if any(uses_tf32().values()) else _TOLERANCE_GPU


def probe_samples(session: TeacherSession, batch: Batch, split: Split, *, autocast: bool) -> Probe:
    """Return the outputs of a teacher for a tiny batch of a split.

    Raises CacheError with the reason if they cannot be cached by sample, or if samples change when they are read again,
    and the outputs with them.
    """
    if batch.ids is None or batch.draw is None:
        return probe(session, batch, autocast=autocast)
    ids, draw = torch.as_tensor(split.ids).cpu(), batch.draw
    rows = torch.tensor([int((ids == sample).nonzero()[0]) for sample in batch.ids.tolist()])
    with preserve_rng_state():
        extremes = _smallest_and_largest(split, draw)
        others = [extremes, extremes[:2], extremes[2:]] if len(rows) > 1 else []  # a single sample has no padding
        again, *padded = (split.batch(read, draw).to(batch.labels.device) for read in (rows, *others))
        if [*content_of(again.inputs)] != [*content_of(batch.inputs)]:
            outputs = [session(batch), session(again)]
            first, second = ([output.output, *output.features] for output in outputs)
            if not all(map(torch.equal, first, second)):
                raise CacheError("its outputs for a sample differ, because the sample changes when it is read again")
    return probe(session, batch, autocast=autocast, padded=padded)


def _smallest_and_largest(split: Split, draw: int) -> Tensor:
    """Return the rows of the two samples with the smallest inputs, and of the two with the largest, among some rows."""
    rows = torch.linspace(0, len(split) - 1, _SIZES_READ).long()  # samples may be sorted by their lengths
    sizes = [sum(tensor.numel() for tensor in nested_tensors(split.batch(row[None], draw).inputs)) for row in rows]
    return rows[torch.tensor(sizes).argsort(stable=True)][[0, 1, -2, -1]]


def _require_cacheable(net: Net[Any], module: nn.Module) -> None:
    """Raise CacheError if all ranks must run a net, or if it shares a submodule or buffer with the trained module."""
    if not isinstance(net.module, nn.Module):
        return
    if net.is_sharded:  # a rank with all outputs of its batch in the cache would not run it
        raise CacheError("its weights are sharded among the processes, which must all run it for each batch")
    trained = {*map(id, module.modules()), *map(id, module.buffers())}
    parts: list[Any] = [*net.module.modules(), *net.module.buffers()]
    shared = next((part for part in parts if id(part) in trained), None)
    if shared is not None:
        raise CacheError(f"it shares a {type(shared).__name__} with a trained network or loss")
