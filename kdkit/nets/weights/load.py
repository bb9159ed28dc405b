"""Load weights from a file into a module. The keys may have other names, as long as the match is unambiguous."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdkit.errors import RecipeError, did_you_mean
from kdkit.nets.weights.folders import find_weights, recorded_facts, recorded_training_names
from kdkit.nets.weights.state_dicts import Entries, read_state_dicts, select_entries
from kdkit.utils.modules import keys_by_tensor, plain_keys, pruning_masks, recompute_weights
from kdkit.utils.reprs import first_three

# Key segments that wrappers of torch add: DataParallel, torch.compile, FSDP, and activation checkpointing.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Attributes in which training programs hold a network next to other modules, such as a loss with parameters.
_HOLDERS = ("model", "net", "network", "base_model", "backbone", "encoder", "student", "teacher")
_DISTILLER = re.compile(r"(?:.*\.)?module\.nets\.\d+\.")  # the prefix of a student of a Distiller
_AVERAGES = {"ema", "swa", "average", "averaged"}  # words in the names of averaged weights, such as "state_dict_ema"
_LONGEST_HINT = 200  # characters of a hint with the keys of a net


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """note: the part of the file that was loaded, or "" for all of it. complete: whether every tensor was loaded.

    classes, preparation: of the outputs and of the inputs in the run that trained the weights; empty if unknown.
    training_names: digests of the names of its training samples, (samples,) int64; empty if unknown.
    """

    note: str
    complete: bool
    classes: tuple[str, ...] = ()
    preparation: Mapping[str, Any] = field(default_factory=dict)
    training_names: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


def load_weights(
    module: nn.Module, path: Path, name: str, *, key: str | None = None, strict: bool = True
) -> LoadedWeights:
    """Load the weights of a file or a folder into a module, and return what was loaded.

    The file may hold one or several state dicts under any keys. The keys in a state dict may have the prefixes of
    wrappers, of known names such as "student.", or a prefix that all keys share. Prefixes are removed if the file then
    has one value of the right shape for every tensor of the module.

    name: the name of the net, for messages. key: selects one of several weights, see `Net`. strict: False loads the
    tensors that fit.
    Raises RecipeError and loads nothing if the weights cannot be read, do not fit, or fit in several ways.
    """
    target = _Target(module, name)
    file = find_weights(path, name, key)
    entries = read_state_dicts(file.path, name)
    if file.key is not None:
        entries = select_entries(entries, file.key, file.path, name)
    matches = [_Match(candidate, target) for candidate in _candidates(entries)]
    match, averages = _choose(matches, file.path, strict=strict)
    target.load(match)
    facts = [*file.facts, *match.facts()]
    if averages:
        keys = " or ".join(f"weights_key={average!r}" for average in averages)
        facts.append(f"the file also has averaged weights, for {keys}")
    note = f"weights of net {name!r} from {file.path}: {'; '.join(facts)}" if facts else ""
    classes, preparation = (recorded_facts(file.path, key) for key in ("classes", "preparations"))
    return LoadedWeights(
        note,
        match.complete,
        tuple(map(str, classes)) if isinstance(classes, list) else (),
        preparation if isinstance(preparation, dict) else {},
        recorded_training_names(file.path),
    )


class _Target:
    """The tensors of a module by their plain keys. aliases: for each key, the keys that share its tensor.

    resized: the keys of ranges in observers of torch, which get the shapes that they have in a file.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module = module
        self.name = name
        self.keys = plain_keys(module)
        state = module.state_dict(keep_vars=True)  # the parameters themselves, so that tied ones are one object
        self.tensors: dict[str, Tensor] = {plain: state[key] for plain, key in self.keys.items()}
        for key, tensor in self.tensors.items():
            if is_lazy(tensor):
                raise RecipeError(
                    f"net {name!r} cannot load weights because its {key!r} has no shape yet; run its module once first"
                )
        self.aliases = {key: keys for keys in keys_by_tensor(self.tensors.items()) for key in keys}
        ranges = {
            f"{path}.{name}"
            for path, part in module.named_modules()
            if type(part).__module__.startswith("torch.ao.quantization.")
            for name in part._buffers
        }
        self.resized = {plain for plain, key in self.keys.items() if key in ranges}

    def load(self, match: "_Match") -> None:
        """Copy the fitting tensors of a match into the module."""
        values = {self.keys[key]: match.value(key) for key in self.tensors}
        state = {key: value for key, value in values.items() if value is not None}
        self.module.load_state_dict(state, strict=match.complete)
        recompute_weights(self.module)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Tensors in a file, with a common prefix, that may be the weights of a net.

    entry: the path of their state dict in the file. sources: maps keys without the prefix to keys in `state`.
    wrappers: the wrapper segments that were removed from the middle of keys.
    """

    entry: str
    state: Mapping[str, Tensor]
    prefix: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    wrappers: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The path in the file, as passed to `weights_key`."""
        return ".".join(filter(None, (self.entry, self.prefix.rstrip("."))))

    @property
    def averaged(self) -> bool:
        """Whether the path says that these are averaged weights."""
        return not _AVERAGES.isdisjoint(re.split(r"[._]", self.path.lower()))

    def tensor(self, key: str) -> Tensor:
        """Return the tensor with this key, which does not have the prefix."""
        return self.state[self.sources[key]]

    def under(self, prefix: str) -> "_Candidate":
        """Return a candidate with the tensors whose keys start with a prefix."""
        sources = {key.removeprefix(prefix): source for key, source in self.sources.items() if key.startswith(prefix)}
        return _Candidate(self.entry, self.state, prefix, sources, self.wrappers)

    def describe(self) -> list[str]:
        """Return the entry and the prefixes that were chosen, for messages."""
        removed = [f"{segment}." for segment in self.wrappers] + [self.prefix] * bool(self.prefix)
        facts = [f"the entry {self.entry!r}"] if self.entry else []
        return [*facts, f"the prefix {' and '.join(map(repr, removed))} is removed from keys"] if removed else facts


class _Match:
    """A comparison of a candidate with the tensors of a net, key by key."""

    def __init__(self, candidate: _Candidate, target: _Target) -> None:
        self.candidate = candidate
        self.target = target
        sources, tensors = candidate.sources, target.tensors
        shared = sources.keys() & tensors.keys()
        self.fitting = {key for key in shared if self._has_form(key)}
        self.mismatched = sorted(shared - self.fitting)
        self.unexpected = sorted(sources.keys() - tensors.keys())
        # safetensors saves tied weights under one of their keys.
        self.missing = sorted(key for key in tensors if not any(alias in sources for alias in target.aliases[key]))
        # Files from before torch 0.4.1 have no batch counters. torch loads them too.
        lacking = [key for key in self.missing if not key.endswith("num_batches_tracked")]
        self.complete = not lacking and not self.mismatched
        self.exact = self.complete and not self.unexpected

    def value(self, key: str) -> Tensor | None:
        """Return the value for a tensor of the net, or None if no value fits."""
        aliases = (key, *self.target.aliases[key])
        return next((self.candidate.tensor(alias) for alias in aliases if alias in self.fitting), None)

    def has_values_of(self, match: "_Match") -> bool:
        """Whether both matches have the same value for each tensor."""
        return all(_same_values(self.value(key), match.value(key)) for key in self.target.tensors)

    def conflict(self) -> tuple[str, str] | None:
        """Return two keys that share a tensor in the net but have different values in the file, or None."""
        pairs = ((self.target.aliases[key][0], key) for key in sorted(self.fitting))
        return next((pair for pair in pairs if not _same_values(self.value(pair[0]), self.value(pair[1]))), None)

    def facts(self) -> list[str]:
        """Return which tensors are loaded and which are left out, for a note."""
        facts = self.candidate.describe()
        if not self.complete:
            facts.append(f"{len(self.fitting)} of the {len(self.target.tensors)} tensors of the net are loaded")
        if self.missing:
            facts.append(f"the file lacks {first_three(self.missing)}, which keep their values in the net")
        facts += [f"not loaded: {mismatch}" for mismatch in self._mismatches(len(self.mismatched))]
        unused = self.candidate.state.keys() - {
            self.candidate.sources[key] for key in self.fitting | {*self.mismatched}
        }
        if unused:
            facts.append(f"not used: {first_three(sorted(unused))} of the file")
        return facts

    def problem(self) -> str:
        """Return the reasons why the file does not fit."""
        problems = []
        if self.missing:
            problems.append(f"lacks {first_three(self.missing)}")
        if self.unexpected:
            hint = f" ({did_you_mean(self.unexpected[0], self.target.tensors)})"
            hint = hint if len(hint) <= _LONGEST_HINT else ""  # such as all keys of a transformer
            problems.append(f"has {first_three(self.unexpected)}, which the net does not have{hint}")
        problems += [f"has {mismatch}" for mismatch in self._mismatches(3)]
        facts = ", ".join(self.candidate.describe())
        return f"the file{f' ({facts})' if facts else ''} {'; it '.join(problems)}"

    def _mismatches(self, count: int) -> Iterator[str]:
        for key in self.mismatched[:count]:
            tensor, expected = self.candidate.tensor(key), self.target.tensors[key]
            if not _is_copied(tensor, expected):
                kind = "nested" if tensor.is_nested else "meta" if tensor.is_meta else f"{tensor.layout} {tensor.dtype}"
                yield f"{key!r} as a tensor of the kind {kind}, not {expected.layout} {expected.dtype}"
            elif tensor.shape == expected.shape:
                yield f"{key!r} of {tensor.dtype}, not {expected.dtype}"
            else:
                yield f"{key!r} of shape {tuple(tensor.shape)}, not {tuple(expected.shape)}"

    def _has_form(self, key: str) -> bool:
        tensor, expected = self.candidate.tensor(key), self.target.tensors[key]
        if not _is_copied(tensor, expected):
            return False
        # Integers for real weights are quantized, and meaningless without a scale. Complex values would lose a part.
        quantized = expected.is_floating_point() and not tensor.is_floating_point()
        is_resized = key in self.target.resized and tensor.ndim == expected.ndim == 1  # a number for each channel
        return (tensor.shape == expected.shape or is_resized) and not quantized


def _candidates(entries: Entries) -> Iterator[_Candidate]:
    """Yield all weights in a file that may be those of a net, each once."""
    for entry, state in entries.items():
        variants = [_Candidate(entry, state, sources={key: key for key in state})]
        # Parts of a network may also be wrapped, which adds segments in the middle of keys.
        inner = {".".join(part for part in key.split(".") if part not in _WRAPPERS): key for key in state}
        if len(inner) == len(state) and inner.keys() != state.keys():
            wrappers = tuple(name for name in _WRAPPERS if any(name in key.split(".") for key in state))
            variants.append(_Candidate(entry, state, sources=inner, wrappers=wrappers))
        unique: dict[frozenset[tuple[str, str]], _Candidate] = {}
        for candidate in (variant.under(prefix) for variant in variants for prefix in _prefixes(variant.sources)):
            unique.setdefault(frozenset(candidate.sources.items()), candidate)
        yield from unique.values()


def _choose(matches: Sequence[_Match], path: Path, *, strict: bool) -> tuple[_Match, list[str]]:
    """Return the match to load, and the paths of averaged weights that also fit.

    Raises RecipeError if no weights fit, or if several different ones fit that are not averages.
    """
    name = matches[0].target.name
    chosen = [match for match in matches if match.exact]
    if not chosen and not strict:
        most = max(len(match.fitting) for match in matches)
        chosen = [match for match in matches if len(match.fitting) == most > 0]
    if not chosen:
        raise RecipeError(f"the weights in {path} do not fit net {name!r}: {_explain(matches, strict=strict)}")
    plain = [match for match in chosen if not match.candidate.averaged] or chosen
    best = next((match for match in plain if not match.candidate.path), plain[0])
    as_is = best.exact and not best.candidate.path
    # Equal weights are not ambiguous: a program may save an object twice, as self.model and self.student.
    if not as_is and not all(match.has_values_of(best) for match in plain):
        keys = ", ".join(f"weights_key={match.candidate.path!r}" for match in plain)
        raise RecipeError(f"several weights in {path} fit net {name!r}, but they differ; choose one: {keys}")
    conflict = best.conflict()
    if conflict is not None:
        raise RecipeError(
            f"the weights in {path} do not fit net {name!r}: {conflict[0]!r} and {conflict[1]!r} are one tensor in "
            "the net, but differ in the file; build a net that does not share it"
        )
    return best, [match.candidate.path for match in chosen if match not in plain]


def _explain(matches: Sequence[_Match], *, strict: bool) -> str:
    """Return the problems of the closest match, and a remedy."""
    nearest = max(matches, key=lambda match: (len(match.fitting), -len(match.unexpected)))
    tensors = nearest.target.tensors
    # At least one key for each tensor, and at most one for each of its names.
    possible = range(len(set(map(id, tensors.values()))), len(tensors) + 1)
    for match in matches:
        if match.candidate.prefix or match.candidate.wrappers:
            continue
        if path := _part_of(match):
            return (
                f"the file has the weights of its part {path!r} alone; load them into that, such as by "
                f"Net('part', module.get_submodule({path!r}), weights=...), and pass no weights for the whole"
            )
        # An unknown prefix is removed only if the caller names it: its tensors may belong to another network of the
        # same form.
        sizes = Counter(key[: dot.end()] for key in match.candidate.sources for dot in re.finditer(r"\.", key))
        for prefix in [prefix for prefix, size in sizes.items() if size in possible]:
            part = _Match(match.candidate.under(prefix), match.target)
            if part.exact:
                key = part.candidate.path
                return f"{nearest.problem()}; those under {prefix!r} fit: pass weights_key={key!r}"
    remedy = "; strict=False loads the tensors that fit" if strict and nearest.fitting else ""
    return nearest.problem() + (_pruning_advice(nearest) or remedy)


def _part_of(match: _Match) -> str:
    """Return the path of the part of the net of which most keys are, such as the net without its head; or ""."""
    candidate, tensors = match.candidate, match.target.tensors
    keys_of: dict[str, set[str]] = defaultdict(set)
    for key in tensors:
        for dot in re.finditer(r"\.", key):
            keys_of[key[: dot.start()]].add(key[dot.end() :])

    def fits(part: str, key: str) -> bool:
        tensor, expected = candidate.tensor(key), tensors[f"{part}.{key}"]
        return _is_copied(tensor, expected) and tensor.shape == expected.shape

    sources = candidate.sources
    large = [part for part, keys in keys_of.items() if keys <= sources.keys() and 2 * len(keys) > len(sources)]
    parts = [part for part in large if all(fits(part, key) for key in keys_of[part])]
    return max(parts, key=lambda part: len(keys_of[part]), default="")


def _pruning_advice(match: _Match) -> str:
    """Return what to do if only the weights, or only the net, are pruned by torch, which adds masks; otherwise ""."""
    if pruning_masks(match.unexpected):
        return (
            "; these weights are pruned: give the layers of the net masks with torch.nn.utils.prune.identity(layer, "
            "'weight') before the weights are loaded; prune.remove(layer, 'weight') then removes the masks"
        )
    return "; the net is pruned already: load the weights before it is pruned" if pruning_masks(match.missing) else ""


def _prefixes(keys: Mapping[str, str]) -> list[str]:
    """Return the prefixes that may be removed: known names, those of a Distiller, and those that all keys share."""
    parents = [key.split(".")[:-1] for key in keys]
    prefixes, shared = {"": None}, min(parents, key=len, default=[])
    for parts in parents:
        for depth, part in enumerate(parts, start=1):
            if part not in (*_WRAPPERS, *_HOLDERS) and _AVERAGES.isdisjoint(part.split("_")):
                break
            prefixes[".".join((*parts[:depth], ""))] = None
        shared = shared[: next((depth for depth, part in enumerate(shared) if parts[depth] != part), len(shared))]
    common = [".".join((*shared[:depth], "")) for depth in range(1, len(shared) + 1)]
    # The student of a Distiller, which has the losses next to it and may be inside a framework's module.
    students = [match[0] for match in map(_DISTILLER.match, keys) if match]
    return list(dict.fromkeys([*prefixes, *common, *students]))


def _is_copied(tensor: Tensor, expected: Tensor) -> bool:
    """Whether torch can copy a tensor into one of a net: it must have the same layout and plain elements."""
    packed = tensor.dtype is torch.float4_e2m1fn_x2  # two numbers in each element
    usual = not (tensor.is_nested or tensor.is_meta or packed)  # checked first: a nested tensor has no shape
    return usual and tensor.layout == expected.layout


def _same_values(tensor: Tensor | None, expected: Tensor | None) -> bool:
    if tensor is None or expected is None or tensor is expected:
        return tensor is expected
    return tensor.dtype == expected.dtype and torch.equal(tensor, expected)
