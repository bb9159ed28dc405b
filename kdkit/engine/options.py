"""Options of a run that are not part of the recipe: folder, device, precision, seed, and the teacher cache."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, get_args

import torch

from kdkit.errors import RecipeError, describe, did_you_mean
from kdkit.recipe.training import Training
from kdkit.utils.devices import Precision, find_device
from kdkit.utils.paths import user_path
from kdkit.utils.signatures import parameters_by_name
from kdkit.utils.validation import (
    is_number,
    parse_interval,
    validate_choice,
    validate_counts,
    validate_share,
    validate_switches,
)

Capture = Literal["auto", "off", "require"]

TEACHER_CACHE = "teacher_cache"  # the folder for cached teacher outputs, next to run folders


class RunFields(TypedDict, total=False):
    """The fields of `RunOptions` as keyword arguments, so that editors complete and check them."""

    out: str | Path | None
    device: str
    precision: Precision
    seed: int
    compile: bool
    capture: Capture
    device_data: float
    gradients: int
    teacher_cache: Literal["auto", "off"] | str | Path
    teacher_cache_size: float
    resume: bool
    force: bool
    deterministic: bool
    keep_checkpoints: int
    checkpoint_every: int | str
    baseline: bool
    measure: bool
    progress: bool | None
    verbose: bool
    only: tuple[str, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options of a run.

    out: the run folder; None to keep nothing on disk. resume: resume the run in that folder from its last checkpoint.
    force: resume a run even if its recipe, options, data or versions have changed; `run.json` then records the changes.
    checkpoint_every: write a checkpoint after this many updates of an epoch, or after a time such as "30s", "10min" or
    "2h", in addition to the end of each epoch; 0 for the ends of epochs only. A signal (Ctrl-C or SIGTERM) also writes
    one.
    device: "cpu", "cuda", "cuda:1", "mps", or "auto" for the best one available.
    precision: "fp32", or "bf16" or "fp16" for autocast (fp16 with a gradient scaler).
    seed: seeds all random numbers. compile: compile the module of each stage with torch.compile.
    capture: on CUDA, capture the training step of a stage as a CUDA graph, which is launched at once instead of kernel
    by kernel: "auto" if possible, "require" to raise RecipeError if it is not possible, or "off".
    device_data: on CUDA, the fraction of the free device memory in which samples are kept, so that they are copied only
    once; 0 copies every batch.
    deterministic: on CUDA, use kernels that give the same bits in each run (`torch.use_deterministic_algorithms`),
    which is slower, and let torch raise an error for operations without one. On a CPU, all kernels are deterministic.
    gradients: record the norms of the terms' gradients and the cosines between them at every n-th update, as means over
    each epoch; 0 disables it. Such an update needs one backward pass per term.
    teacher_cache: a folder for the outputs of frozen teachers, "off", or "auto" for the folder `teacher_cache` next to
    the run folder, which runs share (a temporary folder if `out` is None).
    teacher_cache_size: the maximum size of that folder in GB; the least recently used entries are deleted.
    keep_checkpoints: the number of last epochs of each stage whose weights are kept, in addition to the best epoch. For
    use in Net(weights=...), they are in the folder of the stage, as `epoch-<n>.safetensors` with n as in
    `history.jsonl`, or as `epoch-<n>-<net>.safetensors` if the stage has several networks.
    baseline: also train each distilled student of the last stage without its teachers, from the same initial weights
    and with the same order of the data, as a net "<student>-alone", and compute the differences of their metrics. In
    it, the labels have a weight of 1 if they have a smaller one in the student's objective.
    measure: at the end of a run with a folder, measure the multiply-adds and latency of each network, and the
    similarity of student and teacher layers, for `kdkit report`. This takes about a second per network at most, and
    does not change results.
    progress: print the progress: a line per epoch and the metrics, and on a terminal a live view of the run. None
    prints to a terminal or a notebook. If the output is captured or goes to a file or a pipe, it only logs the notices,
    as warnings of the logger "kdkit", which Python writes to stderr. A Study only prints if this is True.
    verbose: with the progress, also print versions and settings at the start, and after each epoch the weights of the
    terms, the learning rate, the speed, and gradient statistics if they are recorded.
    only: names of stages to train, without computing metrics, if the stages that they need are finished in `out`; None
    for all.
    """

    out: Path | None = None
    device: str = "auto"
    precision: Precision = "fp32"
    seed: int = 0
    compile: bool = False
    capture: Capture = "auto"
    device_data: float = 0.25
    gradients: int = 0
    teacher_cache: Literal["auto", "off"] | Path = "auto"
    teacher_cache_size: float = 20.0
    resume: bool = False
    force: bool = False
    deterministic: bool = False
    keep_checkpoints: int = 0
    checkpoint_every: int | str = "10min"
    baseline: bool = False
    measure: bool = True
    progress: bool | None = None
    verbose: bool = False
    only: tuple[str, ...] | None = None

    if TYPE_CHECKING:  # a folder may be a string, which becomes a Path

        def __init__(self, **fields: Unpack[RunFields]) -> None: ...

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise RecipeError(
                f"{self.precision!r} is not a precision; {did_you_mean(str(self.precision), get_args(Precision))}"
            )
        if not isinstance(self.out, str | Path | None):
            raise RecipeError(f"out must be the path of a folder, or None; got {self.out!r}")
        if self.out is not None:
            object.__setattr__(self, "out", user_path(self.out))
        self._validate_teacher_cache()
        validate_counts(self, "seed", "gradients", "keep_checkpoints", least=0)
        if self.seed >= 2**63:
            raise RecipeError(f"seed must be below 2 ** 63, which torch takes; got {self.seed}")
        validate_choice("capture", self.capture, Capture)
        parse_interval(self.checkpoint_every)
        validate_switches(**{field.name: getattr(self, field.name) for field in fields(self) if field.type is bool})
        if self.progress is not None:
            validate_switches(progress=self.progress)
        validate_share("device_data", self.device_data)
        if self.gradients and self.compile:
            raise RecipeError(
                "a compiled module does not provide the gradient of each term; leave out compile or gradients"
            )
        if self.only is not None and not isinstance(self.only, tuple):  # a string would match any part of it
            raise RecipeError(f"only must be a tuple of names of stages, or None; got {self.only!r}")
        if self.only is not None and self.out is None:
            raise RecipeError("to train some stages only, pass their run folder: out=FOLDER")
        if self.resume and self.out is None:
            raise RecipeError("to resume, pass the run folder: --out FOLDER, or out=FOLDER in Python")

    def teacher_cache_folder(self) -> Path:
        """Return the folder of the teacher cache. Raises RecipeError if it would be a temporary one."""
        if isinstance(self.teacher_cache, Path):
            return self.teacher_cache
        if self.out is None or self.teacher_cache == "off":
            raise RecipeError("teacher outputs are not cached in a permanent folder; pass one: teacher_cache=FOLDER")
        # The run folder may itself have the name of the cache.
        name = TEACHER_CACHE if self.out.name != TEACHER_CACHE else f"shared-{TEACHER_CACHE}"
        return self.out.parent / name

    def torch_device(self) -> torch.device:
        """Return the device. Raises RecipeError if it is not available."""
        return find_device(self.device)

    def _validate_teacher_cache(self) -> None:
        if self.teacher_cache not in ("auto", "off"):
            if not self.teacher_cache or not isinstance(self.teacher_cache, str | Path):
                raise RecipeError(f"teacher_cache must be 'auto', 'off' or a folder; got {self.teacher_cache!r}")
            object.__setattr__(self, "teacher_cache", user_path(self.teacher_cache))
        size = self.teacher_cache_size
        if not is_number(size) or size <= 0:
            raise RecipeError(f"teacher_cache_size must be a number of gigabytes above 0; got {size!r}")


def require_options(options: object) -> None:
    """Raise RecipeError if the options of a run are no RunOptions."""
    if not isinstance(options, RunOptions | None):
        raise RecipeError(
            f"the options of a run must be RunOptions, such as RunOptions(out='runs/first'); got {describe(options)}; "
            "to run a recipe function with arguments, pass lambda: recipe(...)"
        )


def require_fields(function: Callable[..., Any], fields: Mapping[str, object], options: type) -> None:
    """Raise RecipeError if a keyword argument in `fields` of a function is not a key of the TypedDict `options`."""
    unknown = [name for name in fields if name not in options.__annotations__]
    if unknown:
        parameters = parameters_by_name(function).values()
        names = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
        training = {name: f"{name}=..." for name in parameters_by_name(Training)}
        training["lr"] = "optimizer=Optimizer(torch.optim.Adam, lr=...)"
        if unknown[0] in training:
            arguments = dict.fromkeys(["epochs=...", training[unknown[0]]])
            raise RecipeError(
                f"{function.__name__} has no option {unknown[0]!r}, which belongs to Training({', '.join(arguments)})"
            )
        raise RecipeError(
            f"{function.__name__} has no option {unknown[0]!r}; "
            f"{did_you_mean(unknown[0], names | {*options.__annotations__})}"
        )
