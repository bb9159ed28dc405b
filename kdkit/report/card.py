"""Write the model card of a run: Markdown with the metadata that the Hugging Face hub reads."""

import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import yaml

from kdkit import __version__
from kdkit.errors import KdkitError
from kdkit.export.card import FOLDER, read_cards, summary_rows
from kdkit.nets.weights import runs_hint, runs_in, stage_weights
from kdkit.report.formats import DASH, bounds, count, metric_title, plain, size
from kdkit.report.runs import ReportedRun, matched_teachers, nets_by_role, terms_of, weight_of
from kdkit.report.verdict import Verdict, verdicts_of
from kdkit.utils.files import exists, require_output, write_output
from kdkit.utils.markdown import as_code, as_text, table_lines
from kdkit.utils.paths import user_path
from kdkit.utils.printable import printable
from kdkit.utils.read_json import items, mapping
from kdkit.utils.reprs import distinct_notes

CARD = "README.md"  # as the hub expects it
_LICENSES = "https://huggingface.co/docs/hub/repositories-licenses"
_TASKS = {"multiclass": "multi-class classification", "multilabel": "multi-label classification"}
_UNKNOWN = "unknown"  # the data set; the hub requires a name
_HUB_NAME = re.compile(r"\w[\w.-]{,95}(/\w[\w.-]{,95})?", re.ASCII)


def write_card(folder: str | Path, out: str | Path) -> None:
    """Write the card of a finished run to a file.

    Raises RunFolderError if the folder holds no finished run, and KdkitError if the file exists or cannot be written.
    """
    folder, out = user_path(folder), user_path(out)
    if not (folder / "run.json").exists() and runs_in(folder):
        raise KdkitError(f"a card describes one run, but {folder} {runs_hint(folder)}")
    require_output(out)
    if exists(out):  # it may have been edited, for example to add a license
        raise KdkitError(f"{out} already exists; choose another file (--out FILE), or delete it")
    write_output(out, card_of(ReportedRun.read(folder, folder.name)))


def card_of(run: ReportedRun) -> str:
    """Return the card of a run's student."""
    verdict = verdicts_of([run])[0]
    metadata = yaml.safe_dump(metadata_of(run), sort_keys=False, allow_unicode=True, width=120)
    sections = {
        "Method": _method(run),
        "Results": _results(run, verdict),
        "Training": _training(run),
        "Use": _use(run),
        "Exports": _exports(run),
        "What is not known": (f"- {line}" for line in _unknown(run)),
    }
    teachers = " and ".join(map(as_code, matched_teachers(run.record, run.student)))
    origin = f"distilled from {teachers}" if teachers else "trained"
    lines = [
        # A YAML comment, because no license is better than a wrong one.
        "---",
        f"# license: choose one of {_LICENSES}",
        f"{metadata.rstrip()}\n---\n",
        f"# {as_text(run.name)}: {as_text(run.student)}\n",
        f"A network that was {origin} with kdkit. {as_text(f'{verdict.headline} {verdict.sentence}')}",
    ]
    for title, section in sections.items():
        content = [*section]
        lines += [f"\n## {title}\n", *content] if content else []
    return "\n".join(lines) + "\n"


def metadata_of(run: ReportedRun) -> dict[str, Any]:
    """Return the metadata of a card, as the hub reads it."""
    results = {name: result for name, result in run.metrics.results[run.student].items() if math.isfinite(result.value)}
    # Networks that were trained before the run are teachers, unless a student continues its training.
    excluded = {*run.students, *run.baselines.values()}
    names = [name for net, name in mapping(run.record, "hub_names").items() if net not in excluded]
    bases = [name for name in names if isinstance(name, str) and _HUB_NAME.fullmatch(name)]
    tags = ["knowledge-distillation"] if matched_teachers(run.record, run.student) else []
    metadata: dict[str, Any] = {"library_name": "kdkit", "tags": [*tags, "pytorch", "kdkit"]}
    if bases:
        metadata["base_model"] = bases[0] if len(bases) == 1 else bases
    # The hub searches these names, and shows the values in `model-index`.
    metadata["metrics"] = [printable(name) for name in results]
    metrics = [
        {
            "type": printable(name),
            "value": result.value,
            "name": printable(metric_title(name)),
            **({} if result.interval is None else {"args": {"interval": list(result.interval)}}),
        }
        for name, result in results.items()
    ]
    if metrics:
        entry = {
            "task": _task_of(run),
            "dataset": {"name": _UNKNOWN, "type": _UNKNOWN, "split": run.metrics.reported_on},
            "metrics": metrics,
        }
        metadata["model-index"] = [{"name": printable(f"{run.name}/{run.student}"), "results": [entry]}]
    return metadata


def _task_of(run: ReportedRun) -> dict[str, str]:
    """Return the task of the student, by the names of the hub."""
    task, split = str(run.record.get("task")), run.split(run.student)
    dims = {"multiclass": 3, "multilabel": 4}.get(task)  # of labels (samples, height, width), or with classes second
    if split is not None and split.test.per_position and split.test.labels.ndim == dims:
        return {"type": "image-segmentation", "name": "semantic segmentation"}
    kind = "regression" if task == "regression" else "classification"
    return {"type": kind, "name": printable(_TASKS.get(task, task))}


def _method(run: ReportedRun) -> Iterator[str]:
    """Yield a sentence for each stage, and a table of the terms."""
    for number, terms in enumerate(terms_of(run.record).values(), start=1):
        for net in dict.fromkeys(str(term.get("student_net")) for term in terms):
            of_net = [term for term in terms if str(term.get("student_net")) == net]
            teachers = dict.fromkeys(str(term["teacher"]) for term in of_net if term.get("teacher"))
            # A term without a teacher is about the labels.
            sources = ["the labels"] if any(not term.get("teacher") for term in of_net) else []
            sources += [as_code(name) for name in teachers]
            role = {"baseline": ", for comparison", "teacher": ", as a teacher"}.get(run.role(net), "")
            yield f"{number}. {as_code(net)} learns from {' and '.join(sources)}{role}."
    yield ""
    yield from table_lines(
        ("stage", "net", "term", "learns from", "loss", "weight"),
        [
            (
                as_code(stage),
                as_code(term.get("student_net")),
                as_code(term.get("label")),
                as_code(term["teacher"]) if term.get("teacher") else "labels",
                as_code(term.get("loss")),
                weight_of(term) or DASH,
            )
            for stage, terms in terms_of(run.record).items()
            for term in terms
        ],
    )


def _results(run: ReportedRun, verdict: Verdict) -> Iterator[str]:
    """Yield the metrics of all nets with their intervals, and the verdict with its basis."""
    names = list(dict.fromkeys(name for results in run.metrics.results.values() for name in results))
    yield f"On the {run.metrics.reported_on} split, with 95 % bootstrap intervals unless the notes say otherwise:"
    yield ""
    table = []
    for net in nets_by_role(run):
        cells = [as_code(net), run.role(net) or "other", count(run.parameters(net))]
        for name in names:
            result = run.metrics.results[net].get(name)
            interval = "" if result is None else bounds(result.interval)
            cells.append(DASH if result is None else plain(result.value) + (f" ({interval})" if interval else ""))
        table.append(cells)
    yield from table_lines(("net", "role", "parameters", *(as_text(metric_title(name)) for name in names)), table)
    if verdict.differences:
        first = verdict.differences[0]
        yield f"\n{as_code(first.student)} minus {as_code(first.baseline)}:\n"
        differences = [
            (
                as_text(metric_title(row.metric)) + (" (lower is better)" if row.lower_is_better else ""),
                f"{row.value:+.3g}",
                f"{row.interval[0]:+.3g} to {row.interval[1]:+.3g}" if bounds(row.interval) else DASH,
                as_text(row.verdict),
            )
            for row in verdict.differences
        ]
        yield from table_lines(("metric", "difference", f"{100 * first.level:.0f} % interval", "verdict"), differences)
    yield f"\n{as_text(verdict.caveat)}"
    notes = distinct_notes(result.note for results in run.metrics.results.values() for result in results.values())
    if notes:
        yield ""
    yield from (f"- {as_text(note)}" for note in notes)


def _training(run: ReportedRun) -> Iterator[str]:
    """Yield the settings and versions of a run."""
    arguments = items(mapping(run.record, "command"), "arguments")
    settings: list[tuple[str, Any]] = []
    if arguments:
        # The recipe file without its folder, which may name the user.
        words = [PurePath(str(arguments[0])).name, *map(str, arguments[1:])]
        settings.append(("command", shlex.join(["kdkit", "run", *words])))
    settings += [(f"option {name}", value) for name, value in mapping(run.record, "options").items()]
    keys = ("seed", "precision", "device", "processes", "deterministic", "task", "sampler")
    settings += [(key, run.record[key]) for key in keys if run.record.get(key) is not None]
    settings += [(f"version of {name}", value) for name, value in mapping(run.record, "versions").items()]
    settings.append(("platform", run.record.get("platform")))
    trainings = zip(items(run.record, "stages"), items(run.record, "trainings"), strict=False)
    settings += [(f"stage {stage}", training) for stage, training in trainings]
    settings += [
        (f"epochs of {stage.name}", f"{len(stage.epochs)}; epoch {stage.best_epoch + 1} is kept")
        for stage in run.stages
    ]
    yield from table_lines(("setting", "value"), [(as_text(name), as_code(value)) for name, value in settings])
    positives = mapping(run.record, "positives")
    if positives:
        counts = ", ".join(f"{as_text(name)} {as_text(value)}" for name, value in positives.items())
        yield f"\nTraining samples of each class: {counts}."
    if run.notices:
        yield ""
    yield from (f"- {as_text(notice)}" for notice in run.notices)


def _use(run: ReportedRun) -> Iterator[str]:
    """Yield how to load the weights of the student."""
    stages = [stage for stage in run.stages if stage_weights(stage.folder, run.student).is_file()]
    if not stages:
        yield "The run folder has no weights of this network."
        return
    # The last stage that trained the student has its final weights.
    file = stage_weights(stages[-1].folder, run.student)
    path = PurePath(stages[-1].folder.name, file.name).as_posix()
    yield f"The weights are in {as_code(path)} in the run folder ({size(run.weights_bytes(run.student))})."
    yield "The code of the network, `build()` here, is in the recipe of the run:\n"
    yield "```python"
    yield "import kdkit\n"
    yield f"student = kdkit.Net({run.student!r}, build(), weights={path!r})"
    yield "```"


def _exports(run: ReportedRun) -> Iterator[str]:
    """Yield the files of `kdkit export` in the folder of the run, if there are any."""
    cards = read_cards(run.folder / FOLDER)
    if cards:
        titles, *table = summary_rows(cards)
        yield "Files for deployment. Gates compare their outputs and metrics with the network:\n"
        yield from table_lines([*map(as_text, titles)], [[*map(as_text, row)] for row in table])
        notices = [
            f"- {as_text(card['file'])}: {as_text(notice)}"
            for card in cards
            for notice in card["metadata"]["notices"]
            if notice not in run.notices  # notices about the data are in another section
        ]
        yield from ("", *notices) if notices else ()


def _unknown(run: ReportedRun) -> Iterator[str]:
    """Yield what is unknown from the files of a run."""
    yield "The license of these weights and of the data: add `license` to the metadata of this card."
    yield "The data set: its name, origin and population. The metadata of this card has `unknown` in its place."
    yield "Intended uses, limits and biases; kdkit measured only the metrics above."
    teachers = matched_teachers(run.record, run.student)
    for net in teachers:
        is_trained_here = any(run.trains(stage.name, net) for stage in run.stages)
        if net in mapping(run.record, "nets") and net not in mapping(run.record, "hub_names") and not is_trained_here:
            yield f"The origin of the teacher {as_code(net)}: its network has no name on the Hugging Face hub."
    if teachers and not run.baselines:
        yield "Whether distillation helped: the same student was not trained without a teacher."
    yield f"The variation over seeds: this is one run, with seed {as_code(run.record.get('seed'))}."
    if run.metrics.reported_on != "test":
        yield "The metrics on samples that were not used to choose the epoch: there was no test split."
    yield from (as_text(problem) for problem in run.problems)
    yield f"This card was written by kdkit {__version__} from the files of the run."
