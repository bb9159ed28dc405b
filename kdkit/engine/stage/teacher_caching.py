"""Decide which teachers of a run are cached and in which folder, and why others are not."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from kdkit.data.batch import Batch
from kdkit.data.dataset import LoaderSplit, Split
from kdkit.engine.options import RunOptions
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
    DataIdentity,
    EntryInfo,
    EntrySpec,
    Key,
    Store,
    UnusableFolderError,
    compute_key,
    identify,
    probe,
    read_info,
)
from kdkit.utils import collectives
from kdkit.utils.devices import uses_tf32
from kdkit.utils.randomness import preserve_rng_state

_IN_RUN_FOLDER = "teacher_cache"  # the folder of a cache that no other run can read
_GIGABYTE = 10**9
# The smallest tolerance of an audit, as a relative difference, because the choice of kernels depends on the batch size:
_TOLERANCE_HALF = 0.03  # with autocast to half precision
_TOLERANCE_TF32 = 1e-2  # on a GPU, with TF32 (10 bits of mantissa) in matrix products or convolutions
_TOLERANCE_GPU = 1e-4  # on a GPU, in float32


class CacheForecast(NamedTuple):
    """Whether the outputs of a teacher will be cached.

    reason: why they will not; "" if they will, or if no output is needed twice. folder: the cache folder; None if only
    this run reads it. entry: the existing entry that will be reused; None if there is none, or if an earlier stage
    trains the teacher. bytes: the most that this stage will write if nothing is cached yet.
    """

    is_cached: bool
    reason: str = ""
    folder: Path | None = None
    entry: EntryInfo | None = None
    bytes: int | None = None


class TeacherCaching:
    """The cached teachers of a run, opened stage by stage. Close it at the end of the run.

    stages: all stages of the run, because outputs that are cached in one stage may be read in a later one.
    entries: the cache entry of each net in the open stage: its name, its capacity in outputs, and the number of outputs
    it had when the stage began. Those may have been computed in other batches, so with other rounding errors.
    """

    def __init__(self, recipe: Recipe, stages: Sequence[Stage], options: RunOptions, device: torch.device) -> None:
        self.recipe, self.stages, self.options, self.device = recipe, stages, options, device
        self.entries: dict[str, dict[str, str | int]] = {}
        self._private_folder: Path | None = None
        self._folder_problem = ""  # why the shared folder cannot be used

    def notices(self) -> Iterator[str]:
        """Yield the reason if the data prevents caching, or prevents other runs from reading the cache."""
        if self.options.teacher_cache == "off" or not any(_frozen_teachers(stage) for stage in self.stages):
            return
        if self._identity.facts is None:
            yield f"teacher outputs are not cached: {self._identity.reason}"
            return
        could_be_shared = self.options.out is not None or self.options.teacher_cache != "auto"
        if not self._identity.is_complete and could_be_shared:
            yield (
                "teacher outputs are cached for this run only, because the data has no digest of all its samples; to "
                "share them, set a text that changes with any sample: data.train_digest = '...'"
            )

    def cache_sessions(self, open_stage: OpenStage, batch: Batch) -> list[str]:
        """Replace the sessions of frozen teachers with cached ones, and return a notice for each that is not cached.

        Call this after the dry run of all sessions. batch: a tiny batch.
        Raises CacheError if cached outputs differ from what the teacher computes.
        """
        notices = []
        self.entries = {}
        known_problem = self._folder_problem
        for net in _frozen_teachers(open_stage.stage):
            with self.options.autocast(self.device):
                cached = None
                try:
                    cached = self._cached_teacher(net, open_stage, batch)
                except CacheError as error:
                    notices.append(f"net {net.name!r} is not cached: {error}")
                cached = _on_all_ranks(cached)
                session = open_stage.sessions[net.name]
                open_stage.sessions[net.name] = cached or self._encoded_only(net, session, batch)
                split = self._cacheable_split()
                if cached is not None and cached.store is not None and split is not None:
                    rows = cached.store.written
                    self.entries[net.name] = {
                        "entry": cached.store.path.name,
                        "outputs": rows.numel(),
                        "cached_before": int(rows.sum()),
                    }
                    cached.audit.check_earlier(cached.store, split, self.device)
        if self._folder_problem != known_problem:
            notices.insert(0, f"teacher outputs are cached for this run only: {self._folder_problem}")
        return notices

    def forecast(self, open_stage: OpenStage, batch: Batch) -> dict[str, CacheForecast]:
        """Return whether the outputs of each frozen teacher will be cached, by name. Nothing is written.

        Call this after the dry run of all sessions. batch: a tiny batch.
        """
        forecasts = {}
        stage = open_stage.stage
        before = self.stages[: self.stages.index(stage)]
        for net in _frozen_teachers(stage):
            try:
                will_change = any(net in earlier.objectives for earlier in before)
                with self.options.autocast(self.device):
                    forecasts[net.name] = self._forecast(net, open_stage, batch, will_change=will_change)
            except CacheError as error:
                forecasts[net.name] = CacheForecast(False, str(error))
        return forecasts

    def close(self, *, ended: bool) -> None:
        """Delete the private folder. A run that may be resumed keeps it, so that it resumes to the same bits.

        ended: whether the run is finished.
        """
        folder, out = self._private_folder, self.options.out
        if folder is None and ended and out is not None and (out / _IN_RUN_FOLDER).is_dir() and self._is_private():
            folder = out / _IN_RUN_FOLDER  # written before the run was resumed
        if folder is not None and (ended or out is None):
            shutil.rmtree(folder, ignore_errors=True)

    def _cached_teacher(self, net: Net[Any], open_stage: OpenStage, batch: Batch) -> CachedTeacher | None:
        """Return a cached session, or None if caching is off or useless. Raises CacheError with another reason."""
        stage, session = open_stage.stage, open_stage.sessions[net.name]
        split = self._cacheable_split()
        if split is None or not self._is_worthwhile(net, stage):
            return None
        _require_cacheable(net, open_stage.module)
        probed = probe(session, batch, autocast=self.options.precision != "fp32")
        codec = Codec(self.recipe.teacher_cache, probed.output)
        try:
            store = self._open_store(net, stage, codec, split)
        except UnusableFolderError as error:
            if self._is_private():
                raise
            # Without a cache, outputs would be computed in other batches, and might differ in their last bits.
            self._folder_problem = str(error)
            return self._cached_teacher(net, open_stage, batch)
        # Ten times the rounding error of the tiny batch, which has only a few samples.
        tolerance = max(10 * probed.rounding, self._least_tolerance(net))
        return CachedTeacher(session, codec, store, self._audit(net, session, codec, tolerance))

    def _forecast(self, net: Net[Any], open_stage: OpenStage, batch: Batch, *, will_change: bool) -> CacheForecast:
        """Return the forecast of one teacher. Raises CacheError with the reason if it is not cached.

        will_change: whether an earlier stage trains the teacher, so that its key is not known yet.
        """
        if self.options.teacher_cache == "off":
            return CacheForecast(False, "the cache is off")
        self._facts_of_data()  # raises if samples cannot be identified
        if self._cacheable_split() is None or not self._is_worthwhile(net, open_stage.stage):
            return CacheForecast(False)
        _require_cacheable(net, open_stage.module)
        with preserve_rng_state():
            codec = Codec(self.recipe.teacher_cache, open_stage.sessions[net.name](batch))
        split = self.recipe.data.train
        draws = min(self._facts_of_data()["draws"], passes_over(split, open_stage.stage.training))
        size = draws * len(split) * sum(part.bytes for part in codec.parts)
        if self._is_private():
            return CacheForecast(True, bytes=size)
        folder = self.options.teacher_cache_folder()
        entry = None
        # Computing the key reads all weights, so it is skipped if the cache is empty.
        with suppress(OSError):  # the run reports a folder that cannot be read
            if not will_change and folder.is_dir() and any(folder.iterdir()):
                entry = read_info(folder / self._key(net, open_stage.stage).digest)
        return CacheForecast(
            True, folder=folder, bytes=size, entry=entry if entry is not None and entry.readable else None
        )

    def _is_worthwhile(self, net: Net[Any], stage: Stage) -> bool:
        """Return whether cached outputs may be read again. Raises CacheError if they would be with fewer draws."""
        draws, taps, option = self._facts_of_data()["draws"], stage.teachers[net], self.options.teacher_cache
        passes = passes_over(self.recipe.data.train, stage.training)
        stages_alike = sum(later.teachers.get(net) == taps for later in self.stages)
        if passes > draws or stages_alike > 1:
            return True
        # Other runs may read them too. Features are large, so they are shared only if a folder was passed.
        if not self._is_private() and not (taps and option == "auto"):
            return True
        if draws > 1:
            raise CacheError(
                f"in {passes} epochs of {draws} draws no output is needed twice; use fewer draws, or "
                "a folder that other runs share (--teacher-cache DIR)"
            )
        return False

    def _open_store(self, net: Net[Any], stage: Stage, codec: Codec, split: Split) -> Store:
        facts, ids = self._facts_of_data(), torch.as_tensor(split.ids).to("cpu", torch.int64)
        spec = EntrySpec(
            net=net.name,
            key=self._key(net, stage),
            parts=codec.parts,
            ids=ids,
            draws=facts["draws"],
            new_rows=min(facts["draws"], passes_over(split, stage.training)) * len(ids),
        )
        return CacheFolder(self._folder(), int(self.options.teacher_cache_size * _GIGABYTE)).open(spec)

    def _key(self, net: Net[Any], stage: Stage) -> Key:
        settings = {
            "precision": self.options.precision,
            "device": (net.device or self.device).type,
            "form": self.recipe.teacher_cache.form,
        }
        return compute_key(net, stage.teachers[net], data=self._facts_of_data(), settings=settings)

    def _encoded_only(self, net: Net[Any], session: TeacherSession, batch: Batch) -> TeacherSession:
        """Return a session with outputs rounded as by the cache settings, so that losses do not depend on the cache."""
        if self.recipe.teacher_cache.form is None:
            return session
        codec = Codec(self.recipe.teacher_cache, session(batch))
        return CachedTeacher(session, codec, None, self._audit(net, session, codec))

    def _audit(self, net: Net[Any], session: TeacherSession, codec: Codec, tolerance: float = 0.0) -> Audit:
        return Audit(f"net {net.name!r}", session, codec, self.recipe.teacher_cache.audit, tolerance=tolerance)

    @cached_property
    def _identity(self) -> DataIdentity:
        return identify(self.recipe.data)

    def _facts_of_data(self) -> Mapping[str, Any]:
        """Return the properties of the data that outputs depend on. Raises CacheError if samples have no identity."""
        if self._identity.facts is None:
            raise CacheError(self._identity.reason)
        return self._identity.facts

    def _cacheable_split(self) -> Split | None:
        """Return the training split, or None if its outputs cannot be cached."""
        train = self.recipe.data.train
        if self.options.teacher_cache == "off" or isinstance(train, LoaderSplit):
            return None
        return None if self._identity.facts is None else train

    def _is_private(self) -> bool:
        """Whether the cache folder is read by this run only."""
        no_folder = self.options.teacher_cache == "auto" and self.options.out is None
        return not self._identity.is_complete or no_folder or bool(self._folder_problem)

    def _folder(self) -> Path:
        if not self._is_private():
            return self.options.teacher_cache_folder()
        if self._private_folder is None:
            in_run_folder = None if self.options.out is None else self.options.out / _IN_RUN_FOLDER
            self._private_folder = in_run_folder or Path(tempfile.mkdtemp(prefix="kdkit-teacher-cache-"))
        return self._private_folder

    def _least_tolerance(self, net: Net[Any]) -> float:
        if self.options.precision != "fp32":
            return _TOLERANCE_HALF
        if (net.device or self.device).type == "cpu":
            return 0.0
        return _TOLERANCE_TF32 if any(uses_tf32().values()) else _TOLERANCE_GPU


def _frozen_teachers(stage: Stage) -> list[Net[Any]]:
    """Return the nets that teach in a stage and are not trained in it."""
    return [teacher for teacher in stage.teachers if isinstance(teacher, Net) and teacher not in stage.objectives]


def _on_all_ranks(cached: CachedTeacher | None) -> CachedTeacher | None:
    """Return the cached teacher if every rank has one, because ranks exchange new outputs; otherwise close it."""
    if all(collectives.all_gather_objects([cached is not None])):
        return cached
    if cached is not None and cached.store is not None:
        cached.store.close()
    return None


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
