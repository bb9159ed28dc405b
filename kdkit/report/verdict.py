"""The verdict of a report: whether distillation helped, by how much, and how sure that is."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

from kdkit.errors import DataError
from kdkit.metrics.paired import paired_t_interval
from kdkit.plugins.events import BaselineDifference
from kdkit.report.formats import bounds, is_share, metric_title, plain, signed
from kdkit.report.runs import ReportedRun, settings_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number of the verdict. role: "student", "baseline" or "teacher"."""

    role: str
    name: str
    text: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The verdict on the runs of one recipe with the same options, which may differ in their seeds.

    tone: "better", "worse" or "open". differences: of each metric, the first one decides.
    """

    runs: tuple[ReportedRun, ...]
    headline: str
    sentence: str
    caveat: str
    tone: str
    figures: tuple[Figure, ...]
    differences: tuple[BaselineDifference, ...]
    has_baseline: bool

    @property
    def label(self) -> str:
        """The name of the runs."""
        return self.runs[0].label if len(self.runs) == 1 else f"{self.runs[0].name}, {len(self.runs)} seeds"


def verdicts_of(runs: Sequence[ReportedRun]) -> tuple[Verdict, ...]:
    """Return a verdict for each group of runs that differ in their seeds only."""
    groups: dict[str, list[ReportedRun]] = {}
    for run in runs:
        groups.setdefault(settings_digest(run), []).append(run)
    return tuple(verdict for group in groups.values() for verdict in _verdicts_of_group(group))


def headline_of(verdicts: Sequence[Verdict]) -> str:
    """Return the verdict on all groups in a sentence."""
    if len(verdicts) == 1:
        return verdicts[0].headline
    compared = [verdict for verdict in verdicts if verdict.has_baseline]
    if not compared:
        return f"{len(verdicts)} recipes side by side."
    helped = sum(verdict.tone == "better" for verdict in compared)
    if helped == len(compared):
        return f"Distillation helped in all {helped} settings."
    return f"Distillation helped in {helped or 'none'} of {len(compared)} settings."


def _verdicts_of_group(group: list[ReportedRun]) -> Iterator[Verdict]:
    seeds = [run.record.get("seed") for run in group]
    if len(group) > 1 and len({repr(seed) for seed in seeds}) == len(group):
        yield _verdict(group)
    else:  # repetitions of one seed are no sample of seeds
        yield from (_verdict([run]) for run in group)


def _verdict(group: list[ReportedRun]) -> Verdict:
    run = group[0]
    student = run.student
    baseline = run.baselines.get(student)
    teachers = run.teachers_of(student)
    reference = baseline if baseline is not None else next(iter(teachers), None)
    differences = _over_seeds(group, student, reference) if reference is not None else ()
    metric = next(iter(run.metrics.results[student]))
    figures = tuple(
        Figure(role=role, name=net, text=plain(_mean(group, net, metric)), detail=_detail(group, net, metric))
        for role, net in (("student", student), ("baseline", baseline), *(("teacher", net) for net in teachers[:2]))
        if net is not None and metric in run.metrics.results[net]
    )
    split = run.metrics.reported_on
    if reference is None or not differences or differences[0].metric != metric:
        value = plain(_mean(group, student, metric))
        sentence = f"The {metric_title(metric)} of {student} is {value} on the {split} split."
        if reference is not None and metric in run.metrics.results[reference]:
            sentence = f"{sentence[:-1]}, that of {reference} {plain(_mean(group, reference, metric))}."
        headline = "There is nothing to compare the student with." if reference is None else "No paired comparison."
        return Verdict(
            runs=tuple(group),
            headline=headline,
            sentence=sentence,
            caveat=_ADVICE if baseline is None else "kdkit cannot compute an interval of this difference.",
            tone="open",
            figures=figures,
            differences=differences,
            has_baseline=False,
        )
    first = differences[0]
    tone = {"better": "better", "worse": "worse"}.get(first.verdict, "open")
    return Verdict(
        runs=tuple(group),
        headline=_headline(first, student, reference, has_baseline=baseline is not None),
        sentence=_sentence(group, first, has_baseline=baseline is not None),
        caveat=_caveat(group, has_baseline=baseline is not None),
        tone=tone,
        figures=figures,
        differences=differences,
        has_baseline=baseline is not None,
    )


_ADVICE = "Whether distillation helped needs the same student without it: run with --baseline."


def _headline(difference: BaselineDifference, student: str, reference: str, *, has_baseline: bool) -> str:
    if has_baseline:
        return {"better": "Distillation helped.", "worse": "Distillation hurt."}.get(
            difference.verdict, "No effect of distillation can be distinguished."
        )
    if difference.verdict not in ("better", "worse"):
        return f"{student} cannot be distinguished from {reference}."
    return f"{student} is {difference.verdict} than {reference}."


def _sentence(group: list[ReportedRun], difference: BaselineDifference, *, has_baseline: bool) -> str:
    run, metric = group[0], difference.metric
    value, other = (_mean(group, net, metric) for net in (difference.student, difference.baseline))
    points = is_share(value, other, difference.value)
    low, high = (signed(bound, points=points) for bound in difference.interval)
    who = "for the same student without a teacher" if has_baseline else f"for its teacher {difference.baseline}"
    split = run.metrics.reported_on
    over = f", on average over {len(group)} seeds," if len(group) > 1 else ""
    unit = " points" if points else ""
    return (
        f"{metric_title(metric)} on the {split} split{over} "
        f"is {plain(value)} against {plain(other)} {who}: {signed(difference.value, points=points)}{unit}, "
        f"{100 * difference.level:.0f} % interval {low} to {high}."
    )


def _caveat(group: list[ReportedRun], *, has_baseline: bool) -> str:
    if len(group) > 1:
        basis = f"Student's t interval over {len(group)} seeds, paired by seed."
    else:
        split = group[0].split(group[0].student)
        test = None if split is None else split.test
        if test is not None and test.groups is not None:
            count = f"{len(set(test.groups.tolist())):,} groups of dependent samples"
        else:
            count = "the samples" if test is None else f"{len(test):,} samples"
        basis = (
            f"Paired bootstrap over {count}. It reflects the choice of the samples, not of the seed: repeat the run "
            "with other seeds to include that."
        )
    if group[0].metrics.reported_on == "validation":
        basis += " There is no test split: the epochs were chosen on these samples, so all values are too high."
    return basis if has_baseline else f"{_ADVICE} {basis}"


def _over_seeds(group: list[ReportedRun], student: str, reference: str) -> tuple[BaselineDifference, ...]:
    """Return the differences of one run over its samples, or of several runs over their seeds."""
    if len(group) == 1:
        return group[0].differences(student, reference)
    by_metric: dict[str, BaselineDifference] = {row.metric: row for row in group[0].differences(student, reference)}
    combined = []
    for metric, row in by_metric.items():
        values: list[dict[Hashable, float]] = [
            {run.label: run.metrics.results[net][metric].value for run in group} for net in (student, reference)
        ]
        try:
            difference = paired_t_interval(values[0], values[1], lower_is_better=row.lower_is_better)
        except DataError:  # a run without a value
            continue
        combined.append(replace(row, value=difference.value, interval=difference.interval, verdict=difference.verdict))
    return tuple(combined)


def _mean(group: list[ReportedRun], net: str, metric: str) -> float:
    values = [run.metrics.results[net][metric].value for run in group]
    return sum(values) / len(values)


def _detail(group: list[ReportedRun], net: str, metric: str) -> str:
    """Return the interval of a value, or the range over the seeds."""
    if len(group) > 1:
        values = [run.metrics.results[net][metric].value for run in group]
        return f"{plain(min(values))} to {plain(max(values))} over seeds"
    return bounds(group[0].metrics.results[net][metric].interval)
