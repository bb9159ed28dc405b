"""Decide which teachers of a run are cached and in which folder, and give the reason for the others."""

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
from kdkit.engine.open_stage import OpenStage
from kdkit.engine.options import RunOptions
from kdkit.engine.training_batches import passes_over
from kdkit.errors import CacheError, first_line
from kdkit.nets.net import Net
from kdkit.recipe.recipe import Recipe, Stage
from kdkit.teachers.base import TeacherSession
from kdkit.teachers.cache.audit import AUDIT_SAMPLES, Audit
from kdkit.teachers.cache.cached import CachedTeacher
from kdkit.teachers.cache.codec import Codec
from kdkit.teachers.cache.entry import EntryInfo, EntrySpec, read_info
from kdkit.teachers.cache.folder import CacheFolder, UnusableFolderError
from kdkit.teachers.cache.key import Key, compute_key, facts_of_data
from kdkit.teachers.cache.probe import probe
from kdkit.teachers.cache.store import Store
from kdkit.utils import collectives
from kdkit.utils.devices import uses_tf32
from kdkit.utils.randomness import preserve_rng_state

_IN_RUN_FOLDER = "teacher_cache"  # if no other run can read it
_GIGABYTE = 10**9
# The least relative difference that an audit accepts, if kernels are chosen by the size of a batch:
_TOLERANCE_HALF = 0.03  # with autocast to half precision
_TOLERANCE_TF32 = 1e-2  # on a GPU, with TF32 (10 bits of mantissa) in matrix products or convolutions
_TOLERANCE_GPU = 1e-4  # on a GPU, in float32


class CacheForecast(NamedTuple):
    """Whether the outputs of a teacher will be cached.

    reason: why not, "" if they are, or if no output is needed twice. folder: of the cache, None if only this run reads
    it. entry: the entry in it that will be reused, None if there is none or a stage before this one trains the teacher.
    bytes: that this stage will write at most if nothing is cached yet.
    """

    is_cached: bool
    reason: str = ""
    folder: Path | None = None
    entry: EntryInfo | None = None
    bytes: int | None = None


class TeacherCaching:
    """The cached teachers of a run, opened stage by stage. Close it at the end of the run.

    stages: all stages of the run, since an output that is cached in one stage may be read in a later one.
    entries: of the stage that is open, by net: the name of the entry, how many outputs it has room for, and how many it
    had when the stage began. Those may have been computed in other batches, and so with other rounding errors.
    """

    def __init__(self, recipe: Recipe, stages: Sequence[Stage], options: RunOptions, device: torch.device) -> None:
        self.recipe, self.stages, self.options, self.device = recipe, stages, options, device
        self.entries: dict[str, dict[str, str | int]] = {}
        self._private_folder: Path | None = None
        self._folder_problem = ""  # why the shared folder cannot be used

    def notices(self) -> Iterator[str]:
        """Yield the reason if the data prevents that outputs are cached, or that other runs read them."""
        if self.options.teacher_cache == "off" or not any(_frozen_teachers(stage) for stage in self.stages):
            return
        try:
            self._facts_of_data()
        except CacheError as error:
            yield f"teacher outputs are not cached: {error}"
            return
        could_be_shared = self.options.out is not None or self.options.teacher_cache != "auto"
        if not self._has_data_digest() and could_be_shared:
            yield "teacher outputs are cached for this run only, since the data has no digest of all its samples"

    def cache_sessions(self, open_stage: OpenStage, batch: Batch) -> list[str]:
        """Replace the sessions of frozen teachers by cached ones, and return a notice for each that is not cached.

        batch: a tiny one, after the dry run of all sessions.
        Raises CacheError if cached outputs are not what their teacher computes.
        """
        notices = []
        self.entries = {}
        known_problem = self._folder_problem
        for net in _frozen_teachers(open_stage.stage):
            with self.options.autocast(self.device):
                try:
                    cached = _on_all_ranks(self._cached_teacher(net, open_stage, batch))
                except CacheError as error:
                    notices.append(f"net {net.name!r} is not cached: {error}")
                    cached = _on_all_ranks(None)  # the other ranks wait for this call
                session = open_stage.sessions[net.name]
                open_stage.sessions[net.name] = cached or self._encoded_only(net, session, batch)
                if cached is not None and cached.store is not None:
                    rows = cached.store.written
                    self.entries[net.name] = {
                        "entry": cached.store.path.name,
                        "outputs": rows.numel(),
                        "cached_before": int(rows.sum()),
                    }
                    self._audit_earlier_outputs(cached)
        if self._folder_problem != known_problem:
            notices.insert(0, f"teacher outputs are cached for this run only: {self._folder_problem}")
        return notices

    def forecast(self, open_stage: OpenStage, batch: Batch) -> dict[str, CacheForecast]:
        """Return whether the outputs of each frozen teacher will be cached, by name; nothing is written.

        batch: a tiny one, after the dry run of all sessions.
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
        """Delete the folder that no other run reads; a run that may be resumed keeps it, to end with the same bits."""
        folder, out = self._private_folder, self.options.out
        if folder is None and ended and out is not None and (out / _IN_RUN_FOLDER).is_dir() and self._is_private():
            folder = out / _IN_RUN_FOLDER  # of the run before it was resumed
        if folder is not None and (ended or out is None):
            shutil.rmtree(folder, ignore_errors=True)

    def _cached_teacher(self, net: Net[Any], open_stage: OpenStage, batch: Batch) -> CachedTeacher | None:
        """Return a cached session, or None if no notice is needed. Raises CacheError, whose text is the reason."""
        stage, session = open_stage.stage, open_stage.sessions[net.name]
        split = self._cacheable_split()
        if split is None or not self._is_worthwhile(net, stage):
            return None
        _require_separate(net, open_stage.module)
        probed = probe(session, batch, autocast=self.options.precision != "fp32")
        codec = Codec(self.recipe.teacher_cache, probed.output)
        try:
            store = self._open_store(net, stage, codec, split)
        except UnusableFolderError as error:
            if self._is_private():
                raise
            # Without any cache, outputs would be computed in other batches, and could differ in their last bits.
            self._folder_problem = str(error)
            return self._cached_teacher(net, open_stage, batch)
        audit = self._audit(net, session, codec)
        # Ten times the rounding of the tiny batch, which has only few samples to show it.
        audit.tolerance = max(audit.tolerance, 10 * probed.rounding, self._least_tolerance(net))
        audit.remedy = (
            f"delete them (kdkit cache {store.path.parent} --delete {store.path.name[:12]}), or run without a cache "
            "(--teacher-cache off)"
        )
        return CachedTeacher(session, codec, store, audit)

    def _forecast(self, net: Net[Any], open_stage: OpenStage, batch: Batch, *, will_change: bool) -> CacheForecast:
        """Return the forecast of one teacher. Raises CacheError, whose text is the reason that it is not cached.

        will_change: whether the teacher is trained before this stage, so that its key is not known yet.
        """
        if self.options.teacher_cache == "off":
            return CacheForecast(False, "the cache is off")
        self._facts_of_data()  # raises if samples cannot be identified
        if self._cacheable_split() is None or not self._is_worthwhile(net, open_stage.stage):
            return CacheForecast(False)
        _require_separate(net, open_stage.module)
        with preserve_rng_state():
            codec = Codec(self.recipe.teacher_cache, open_stage.sessions[net.name](batch))
        split = self.recipe.data.train
        draws = min(self._facts_of_data()["draws"], passes_over(split, open_stage.stage.training))
        size = draws * len(split) * sum(part.bytes for part in codec.parts)
        if self._is_private():
            return CacheForecast(True, bytes=size)
        folder = self.options.teacher_cache_folder()
        entry = None
        # To compute the key, all weights are read, which is left out if there is nothing to be found.
        with suppress(OSError):  # a folder that cannot be read is reported by the run
            if not will_change and folder.is_dir() and any(folder.iterdir()):
                entry = read_info(folder / self._key(net, open_stage.stage).digest)
        return CacheForecast(
            True, folder=folder, bytes=size, entry=entry if entry is not None and entry.readable else None
        )

    def _is_worthwhile(self, net: Net[Any], stage: Stage) -> bool:
        """Return whether a cached output may be read again. Raises CacheError if fewer draws would make it so."""
        draws, taps, option = self._facts_of_data()["draws"], stage.teachers[net], self.options.teacher_cache
        passes = passes_over(self.recipe.data.train, stage.training)
        stages_alike = sum(later.teachers.get(net) == taps for later in self.stages)
        if passes > draws or stages_alike > 1:
            return True
        # Other runs may read them too; features are large, so these are shared only if a folder was named.
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
        """Return a session whose outputs are rounded as the recipe wants, so that losses do not depend on the cache."""
        if self.recipe.teacher_cache.form is None:
            return session
        codec = Codec(self.recipe.teacher_cache, session(batch))
        return CachedTeacher(session, codec, None, self._audit(net, session, codec))

    def _audit(self, net: Net[Any], session: TeacherSession, codec: Codec) -> Audit:
        return Audit(f"net {net.name!r}", session, codec, self.recipe.teacher_cache.audit)

    def _audit_earlier_outputs(self, cached: CachedTeacher) -> None:
        """Check a few outputs that an earlier stage or run cached, before the first step."""
        store, split = cached.store, self._cacheable_split()
        if store is None or split is None or not cached.audit.share:
            return
        written = store.written.nonzero()  # (rows, 2): draw and row
        if not len(written):
            return
        generator = torch.Generator()
        generator.seed()  # not the seed of the run: each run checks other samples
        draw = int(written[torch.randint(len(written), (), generator=generator)][0])
        rows = store.written[draw].nonzero().flatten()
        ids = store.ids[rows[torch.randperm(len(rows), generator=generator)[:AUDIT_SAMPLES]]]
        with preserve_rng_state():
            batch = split.batch(torch.isin(torch.as_tensor(split.ids).cpu(), ids).nonzero().flatten(), draw)
        try:
            lookup = None if batch.ids is None else store.lookup(batch.ids, draw)
            if lookup is None or (lookup.hits is not None and not lookup.hits.any()):
                return
            parts = store.read(lookup)
        except OSError:  # the first step that reads them gives the reason
            return
        if lookup.hits is not None:  # damaged outputs are computed again when they are read
            intact = lookup.hits.nonzero().flatten()
            batch, parts = batch.rows(intact), tuple(part[intact] for part in parts)
        cached.audit.check(batch.to(self.device), parts)

    def _facts_of_data(self) -> Mapping[str, Any]:
        """Return the facts of the data that outputs depend on. Raises CacheError if samples cannot be identified."""
        if isinstance(self._facts_or_error, CacheError):
            raise self._facts_or_error
        return self._facts_or_error

    @cached_property
    def _facts_or_error(self) -> Mapping[str, Any] | CacheError:
        try:
            return facts_of_data(self.recipe.data)
        except CacheError as error:
            return error
        except Exception as error:  # user-defined data may raise anything from its attributes
            return CacheError(f"the data cannot be identified ({type(error).__name__}: {first_line(error)})")

    def _cacheable_split(self) -> Split | None:
        """Return the training split, or None if no outputs for it are cached."""
        train = self.recipe.data.train
        if self.options.teacher_cache == "off" or isinstance(self._facts_or_error, CacheError):
            return None
        return None if isinstance(train, LoaderSplit) else train

    def _has_data_digest(self) -> bool:
        """Whether the key changes with every training sample: see `Data`."""
        return isinstance(self._facts_or_error, Mapping) and self._facts_or_error["train_digest"] is not None

    def _is_private(self) -> bool:
        """Whether no other run reads the folder."""
        no_folder = self.options.teacher_cache == "auto" and self.options.out is None
        return not self._has_data_digest() or no_folder or bool(self._folder_problem)

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
    """Return the cached teacher if every rank has one, since ranks exchange new outputs; else close it."""
    if all(collectives.all_gather_objects([cached is not None])):
        return cached
    if cached is not None and cached.store is not None:
        cached.store.close()
    return None


def _require_separate(net: Net[Any], module: nn.Module) -> None:
    """Raise CacheError if a net shares a submodule or buffer with what is trained, and may change with it."""
    if not isinstance(net.module, nn.Module):
        return
    trained = {*map(id, module.modules()), *map(id, module.buffers())}
    parts: list[Any] = [*net.module.modules(), *net.module.buffers()]
    shared = next((part for part in parts if id(part) in trained), None)
    if shared is not None:
        raise CacheError(f"it shares a {type(shared).__name__} with what is trained")
