"""The command `kdkit doctor`, which examines the installation."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from typing import Any, NamedTuple

import click

from kdkit import __version__
from kdkit.cli.options import PATH
from kdkit.errors import PluginWarning, first_line
from kdkit.utils.printable import echo
from kdkit.utils.processes import usable_cores
from kdkit.utils.reprs import format_bytes

_SLOW_FSYNC = 0.05  # s; a checkpoint calls fsync several times
_SLOW_IMPORT = 2.0  # s, to import what plugins register, without torch
_SLOW_PLUGIN = 0.5  # s, to import the module of a plugin, which delays even `kdkit --help`
_LITTLE_SPACE = 2 * 10**9  # bytes; enough for checkpoints and teacher outputs of a small study
_LITTLE_SHARED_MEMORY = 256 * 2**20  # bytes; containers often have 64 MB, and one batch of images takes much of it
_WRITTEN = 64 * 2**20  # bytes written to measure the disk
_NOT_FOR_USERS = ("test", "docs", "bench")  # extras for developers


@click.command(short_help="List problems with the installation, and their remedies.")
@click.option(
    "--runs",
    type=PATH,
    default="runs",
    show_default=True,
    metavar="FOLDER",
    help="Folder of runs; the speed of its disk is measured.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def doctor(runs: Path, as_json: bool) -> int:
    """Examine the installation: versions, devices, threads, plugins, extras, folders, and what is slow or broken.

        kdkit doctor
        kdkit doctor --runs /scratch/runs

    Each problem comes with a remedy. The exit code is 1 if something is broken, and 0 if something is only slow.
    """
    facts, findings = examine(runs)
    if as_json:
        echo(json.dumps(report(facts, findings), indent=1))
    else:
        show(facts, findings)
    return int(any(finding.broken for finding in findings))


class Finding(NamedTuple):
    """A problem and its remedy. broken: whether something does not work; if False, it is slow or may fail later."""

    broken: bool
    problem: str
    advice: str


class Findings(list[Finding]):
    """The findings of all sections, in their order."""

    def broken(self, problem: str, advice: str) -> None:
        """Add that something does not work."""
        self.append(Finding(True, problem, advice))

    def note(self, problem: str, advice: str) -> None:
        """Add that something is slow, or may fail later."""
        self.append(Finding(False, problem, advice))


def examine(runs: Path) -> tuple[dict[str, Any], Findings]:
    """Return the facts about this installation by section, and the findings.

    runs: the folder of runs. The speed of its disk is measured.
    """
    findings = Findings()
    facts: dict[str, Any] = {}
    # torch comes first, so that the time of the plugins does not include its import.
    sections: dict[str, Callable[[Findings], Any]] = {
        "versions": examine_versions,
        "devices": examine_devices,
        "threads": examine_threads,
        "plugins": examine_plugins,
        "extras": lambda _findings: examine_extras(),
        "folders": lambda findings: examine_folders(runs, findings),
    }
    for title, section in sections.items():
        try:
            facts[title] = section(findings)
        except Exception as error:  # any library may be broken, and the other sections must still be shown
            facts[title] = {}
            reason = f"{type(error).__name__}: {first_line(error)}"
            findings.broken(f"the {title} cannot be examined: {reason}", "see the error")
    return facts, findings


def examine_versions(findings: Findings) -> dict[str, str]:
    """Return the versions of kdkit, Python, torch and all required packages, and import torch."""
    versions = {"kdkit": __version__, "python": platform.python_version(), "platform": platform.platform()}
    began = time.perf_counter()
    try:
        import torch
    except Exception as error:  # a library is missing, or built for another platform
        findings.broken(f"torch cannot be imported: {first_line(error)}", "install torch again: see pytorch.org")
    else:
        versions["torch"] = str(torch.__version__)
        versions["import of torch"] = f"{time.perf_counter() - began:.1f} s"
    required = _required_versions("kdkit", findings)
    return versions | {name: version for name, version in required.items() if name != "torch"}


def _required_versions(package: str, findings: Findings) -> dict[str, str]:
    """Return the versions of the packages that a package requires. Missing, too old and too new ones are broken."""
    versions = {}
    for name, least, below in _requirements("", package):
        advice = f"pip install '{name}{','.join([f'>={least}', *([f'<{below}'] if below else [])])}'"
        try:
            # kdkit may be imported from a folder.
            versions[name] = version = __version__ if name == "kdkit" else importlib.metadata.version(name)
        except PackageNotFoundError:
            of_plugin = "" if package == "kdkit" else f", which {package} needs"
            findings.broken(f"{name} is not installed{of_plugin}", advice)
            continue
        if _numbers(version) < _numbers(least):
            problem = f"{name} {version} is too old; {package} needs {least} or newer"
            findings.broken(problem, advice)
        if below and _numbers(version) >= _numbers(below):
            problem = f"{name} {version} is too new; {package} needs a version below {below}"
            findings.broken(problem, f"update {package}, or {advice}")
    return versions


def examine_devices(findings: Findings) -> dict[str, str]:
    """Return the devices with their memory, after a small computation on each."""
    import torch

    devices = {"cpu": platform.processor() or platform.machine()}
    if hasattr(os, "sysconf"):  # Windows has none
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        devices["cpu"] += f", {format_bytes(memory, base=1024)} of memory"
    for index in range(torch.cuda.device_count()):
        name = f"cuda:{index}"
        try:
            free, total = torch.cuda.mem_get_info(index)
            torch.ones(2, device=name).sum().item()  # fails if the driver does not fit
        except Exception as error:  # CUDA raises errors of many classes
            devices[name] = "does not work"
            findings.broken(f"{name} does not work: {first_line(error)}", "pass --device cpu, or update the driver")
            continue
        texts = (format_bytes(value, base=1024) for value in (free, total))
        devices[name] = "{}, {} of {} free".format(torch.cuda.get_device_name(index), *texts)
    if torch.backends.mps.is_available():
        devices["mps"] = "available"
    if not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        built = torch.version.cuda
        problem = "there is an NVIDIA driver, but torch " + ("finds no GPU" if built else "is built without CUDA")
        findings.note(problem, "install a torch whose CUDA version fits the driver: see pytorch.org")
    return devices


def examine_threads(findings: Findings) -> dict[str, int | str]:
    """Return the number of torch threads, and of cores that this process may use."""
    import torch

    cores = usable_cores()
    if torch.get_num_threads() > cores:
        problem = f"torch uses {torch.get_num_threads()} threads on {cores} cores, which slows all of them down"
        findings.note(problem, f"set OMP_NUM_THREADS={cores}")
    return {
        "torch": torch.get_num_threads(),
        "usable cores": cores,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
    }


def examine_plugins(findings: Findings) -> dict[str, str]:
    """Load all plugins and everything that they register. A skipped plugin is reported as broken.

    So is one whose package requires another version of kdkit or of a package.
    """
    from kdkit.plugins.manager import GROUP, installed
    from kdkit.plugins.registry import REGISTRIES

    points = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PluginWarning)
        load_seconds = installed().load_seconds  # of the first load; later ones find the modules imported
        installed.cache_clear()  # load again to record the warnings
        plugins = installed()
        began = time.perf_counter()
        registries = {kind: plugins.registry(kind) for kind in REGISTRIES}
        seconds = time.perf_counter() - began
    for text in dict.fromkeys(str(item.message) for item in caught if issubclass(item.category, PluginWarning)):
        advice = "reinstall or update its package, or uninstall it; KDKIT_TRACEBACK=1 shows more"
        findings.broken(text, advice)
    for name, load in load_seconds.items():
        if load > _SLOW_PLUGIN:
            problem = f"plugin {name!r} takes {load:.1f} s to load, which delays every command, even `kdkit --help`"
            findings.note(problem, "import heavy packages inside its hooks")
    if seconds > _SLOW_IMPORT:
        slowest, most = max(plugins.register_seconds.items(), key=lambda item: item[1])
        problem = (
            f"plugins take {seconds:.1f} s to register, of which {slowest!r} takes {most:.1f} s, which delays `kdkit "
            "list` and every run"
        )
        findings.note(problem, "import heavy packages only when a registered object is called")
    described = {}
    for name in ("kdkit", *sorted(points)):
        entries = sum(registries[kind].plugin(entry) == name for kind in REGISTRIES for entry in registries[kind])
        distribution = points[name].dist if name in points else None
        package = "" if distribution is None else f" of {distribution.name} {distribution.version}"
        described[name] = f"{entries} entries{package}" if plugins.manager.has_plugin(name) else f"skipped{package}"
    for package in _packages_of_plugins():
        _required_versions(package, findings)
    return {**described, "time to register": f"{seconds:.1f} s"}


def examine_extras() -> dict[str, str]:
    """Return the extras of kdkit and of the packages of plugins, and which packages of each are missing."""
    try:
        extras = _extras_of("kdkit")
    except PackageNotFoundError:
        extras = {"unknown": "kdkit is not installed, but imported from a folder"}
    for package in _packages_of_plugins():
        extras |= {f"{package}[{extra}]": state for extra, state in _extras_of(package).items()}
    return extras


def _extras_of(package: str) -> dict[str, str]:
    """Return the extras of a package, and which packages of each are missing."""
    extras = {}
    for extra in importlib.metadata.metadata(package).get_all("Provides-Extra") or []:
        if extra in _NOT_FOR_USERS:
            continue
        names = [requirement.name for requirement in _requirements(extra, package)]
        missing = [name for name in names if not any(Distribution.discover(name=name))]
        hint = f"without {', '.join(missing)}: pip install '{package}[{extra}]'"
        extras[extra] = hint if missing else "installed"
    return extras


def _packages_of_plugins() -> list[str]:
    """Return the names of the packages that have plugins, without kdkit."""
    from kdkit.plugins.manager import GROUP

    distributions = [point.dist for point in importlib.metadata.entry_points(group=GROUP)]
    return sorted({distribution.name for distribution in distributions if distribution is not None} - {"kdkit"})


def examine_folders(runs: Path, findings: Findings) -> dict[str, str]:
    """Return the folders of runs and of the teacher cache, their sizes, and the speed of the disk."""
    from kdkit.engine.options import TEACHER_CACHE
    from kdkit.teachers.cache import CacheFolder

    cache = runs / TEACHER_CACHE
    entries = CacheFolder(cache).kept() if cache.is_dir() else []
    facts = {"runs": str(runs.resolve()), "teacher cache": str(cache.resolve())}
    facts["size of the teacher cache"] = (
        f"{format_bytes(sum(entry.bytes for entry in entries))}, {len(entries)} entries"
    )
    paths = (runs.absolute(), *runs.absolute().parents)
    blocking = next(path for path in paths if path.exists())
    if not blocking.is_dir():
        problem = f"run folders cannot be created in {runs}: {blocking} is a file"
        findings.broken(problem, "choose another folder: kdkit doctor --runs FOLDER")
    # Use the nearest existing folder, so that `doctor` does not create one.
    existing = next(folder for folder in paths if folder.is_dir())
    free = shutil.disk_usage(existing).free
    facts["free space"] = format_bytes(free)
    if free < _LITTLE_SPACE:
        problem = f"only {format_bytes(free)} are free for run folders in {existing}"
        findings.note(problem, "delete old runs and cached outputs (`kdkit cache --delete all`)")
    try:
        speed, fsync = _measure_disk(existing)
    except OSError as error:
        problem = f"run folders cannot be written in {existing}: {error.strerror or error}"
        findings.broken(problem, "choose another folder: kdkit run FILE --out FOLDER")
    else:
        facts["write speed"], facts["fsync"] = f"{format_bytes(speed)}/s", f"{fsync * 1000:.1f} ms"
        if fsync > _SLOW_FSYNC:
            problem = f"the disk of {existing} takes {fsync * 1000:.0f} ms for each fsync, which slows down checkpoints"
            findings.note(problem, "choose a folder on a local disk with --out")
    shared = Path("/dev/shm")
    if shared.is_dir() and (size := shutil.disk_usage(shared).total) < _LITTLE_SHARED_MEMORY:
        problem = f"worker processes pass batches in shared memory, which has only {format_bytes(size, base=1024)}"
        findings.note(problem, "start the container with --shm-size=2g, or set Training(workers=0)")
    return facts


def _measure_disk(folder: Path) -> tuple[float, float]:
    """Return the write speed of a large file in bytes per second, and the duration of a small fsync in seconds."""
    block = os.urandom(2**20)  # not zeros, which some file systems do not store
    with tempfile.TemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        for _ in range(_WRITTEN // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        seconds = time.perf_counter() - began
        durations = []
        for _ in range(5):
            file.write(b"x")
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            durations.append(time.perf_counter() - began)
    return _WRITTEN / seconds, sorted(durations)[2]


class Requirement(NamedTuple):
    """A package that another one requires, with its lowest version, and the version that is too new; "" for none."""

    name: str
    least: str
    below: str


def _requirements(extra: str, package: str) -> Iterator[Requirement]:
    """Yield what a package or one of its extras requires. Requirements of some platforms or Pythons are left out."""
    try:
        lines = importlib.metadata.requires(package) or []
    except PackageNotFoundError:
        return
    for line in lines:
        versions, _, marker = line.partition(";")
        name = re.match(r"[\w.-]+", versions)
        of_extra = re.fullmatch(r"""\s*extra\s*==\s*["']([\w.-]+)["']\s*""", marker)
        if name is not None and (of_extra[1] if of_extra else marker.strip()) == extra:
            least, below = re.search(r">=\s*([\w.]+)", versions), re.search(r"<\s*([\w.]+)", versions)
            yield Requirement(name[0], least[1] if least else "0", below[1] if below else "")


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers at the start of a version: (2, 7) for "2.7.0rc1+cpu" and "2.7", which are equal."""
    leading = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(number) for number in leading[0].split(".")] if leading else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def report(facts: dict[str, Any], findings: Findings) -> dict[str, Any]:
    """Return the facts and the findings as values for JSON."""
    return {
        "state": "broken" if any(finding.broken for finding in findings) else "working",
        **facts,
        "findings": [finding._asdict() for finding in findings],
        "executable": sys.executable,
    }


def show(facts: dict[str, Any], findings: Findings) -> None:
    """Print the sections, then the findings, broken ones first."""
    for title, values in facts.items():
        width = max(map(len, values), default=0)
        echo(f"{title}\n" + "".join(f"  {name:{width}}  {value}\n" for name, value in values.items()))
    for finding in sorted(findings, key=lambda finding: not finding.broken):
        echo(f"{'broken' if finding.broken else 'note'}: {finding.problem}\n  {finding.advice}")
    if not findings:
        echo("no problems found")
