"""The verdict of a report: whether distillation helped, by how much, and how certain that is."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean

import numpy as np

from kdkit.errors import DataError, RecipeError, did_you_mean
from kdkit.metrics.base import is_share
from kdkit.metrics.comparison import Comparison, PairsOfRuns, compare_over_seeds
from kdkit.metrics.paired import Difference, paired_t_interval
from kdkit.plugins.events import BaselineDifference
from kdkit.report.analysis import same_metric
from kdkit.report.formats import bounds, metric_title, plain, signed, signed_bounds
from kdkit.report.runs import ReportedRun, settings_digest
from kdkit.utils.read_json import mapping, whole_number
from kdkit.utils.reprs import describe_count, describe_names

_TONES = ("better", "worse")
_FEW = 3  # with at most this many settings without an effect, one rarely differs by chance
_ADVICE = "To tell whether distillation helped, also train the same student without it: run with --baseline."
_ONE_SEED = "One seed cannot tell whether distillation helps: repeat the run with others, for example with --seeds 5."


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

    label: the name of the runs. tone: "better" or "worse" if several seeds decide, otherwise "open".
    differences: of each metric; the first one decides. With several seeds, intervals include the choice of the seeds
    and of the test samples.
    """

    runs: tuple[ReportedRun, ...]
    label: str
    headline: str
    sentence: str
    caveat: str
    tone: str
    figures: tuple[Figure, ...]
    differences: tuple[BaselineDifference, ...]
    has_baseline: bool


def verdicts_of(runs: Sequence[ReportedRun], average_over: Sequence[str] = ()) -> tuple[Verdict, ...]:
    """Return a verdict for each group of runs that differ only in their seeds.

    average_over: options of recipes in which the runs of a group may also differ, such as the fold. Raises RecipeError
    if no run has an option with this name.
    """
    options = dict.fromkeys(name for run in runs for name in mapping(run.record, "options"))
    for name in average_over:
        if name not in options:
            raise RecipeError(f"no run has an option {name!r} to average over; {did_you_mean(name, options)}")
    groups: dict[tuple[str, int], list[ReportedRun]] = {}
    repetitions: Counter[tuple[str, str]] = Counter()
    for run in runs:
        settings, values = settings_digest(run, average_over), mapping(run.record, "options")
        seed = settings, repr([run.record.get("seed"), *(values.get(name) for name in average_over)])
        # Runs with the same seed, such as those of `kdkit rerun`, are not a sample of seeds, so they are in
        # different groups.
        groups.setdefault((settings, repetitions[seed]), []).append(run)
        repetitions[seed] += 1
    labels = [_label(group, runs, average_over) for group in groups.values()]
    verdicts = []
    for label, group in zip(labels, groups.values(), strict=True):
        if labels.count(label) > 1:
            # Settings from Python may differ in what has no name, so the names of their runs distinguish them.
            label = f"{label} ({describe_names(run.label for run in group)})"
        verdicts.append(_Group(group, label, average_over).verdict())
    return tuple(verdicts)


def headline_of(verdicts: Sequence[Verdict]) -> str:
    """Return one headline for all groups."""
    if len(verdicts) == 1:
        return verdicts[0].headline
    # Without a baseline, a setting tells nothing about distillation.
    compared = [verdict for verdict in verdicts if verdict.has_baseline]
    if not compared:
        return f"{len(verdicts)} settings side by side."
    several = [verdict for verdict in compared if len(verdict.runs) > 1]
    if not several:
        better, worse = (sum(verdict.differences[0].verdict == word for verdict in compared) for word in _TONES)
        settings = describe_count(len(compared), "setting")
        return (
            f"In these runs, the distilled student is better in {better or 'none'} of {settings}"
            f"{f', and worse in {worse}' if worse else ''}. "
            "One seed of each cannot tell whether distillation helps."
        )
    helped, hurt = (sum(verdict.tone == word for verdict in several) for word in _TONES)
    settings = describe_count(len(several), "setting") + (" with several seeds" if len(several) < len(compared) else "")
    if helped == len(several) > 1:
        return f"Distillation helped in all {settings}."
    headline = f"Distillation helped in {helped or 'none'} of {settings}{f', and hurt in {hurt}' if hurt else ''}."
    if (helped or hurt) and len(several) > _FEW:
        headline += (
            " The intervals are not corrected for multiple comparisons: of settings without an effect, about 1 in 20 "
            "differs by chance."
        )
    return headline


def in_points(runs: Sequence[ReportedRun], difference: BaselineDifference) -> bool:
    """Whether a difference is given in points of 0.01: the metric of both nets is a share in all runs."""
    values = [
        run.metrics.results[net][difference.metric].value
        for run in runs
        for net in (difference.student, difference.baseline)
    ]
    lower = difference.lower_is_better
    return is_share(difference.metric, *values, difference.value, lower_is_better=lower)


def _label(group: Sequence[ReportedRun], runs: Sequence[ReportedRun], average_over: Sequence[str]) -> str:
    """Return the name of a group among all runs; for several seeds, with the options that differ between runs."""
    first = group[0]
    if len(group) == 1:
        return first.label
    options = [mapping(run.record, "options") for run in runs]
    names = dict.fromkeys(name for of_run in options for name in of_run if name not in average_over)
    varied = [name for name in names if len({str(of_run.get(name)) for of_run in options}) > 1]
    options_of_first = mapping(first.record, "options")
    parts = [f"{name}={options_of_first[name]}" for name in varied if name in options_of_first]
    if not parts or len({run.name for run in runs}) > 1:
        parts.insert(0, first.name)
    return ", ".join([*parts, f"{len(group)} {'runs' if average_over else 'seeds'}"])


class _Group:
    """Runs that differ in their seeds and in the options of `average_over`, and the two compared nets.

    student: by default, the one that the verdict is about.
    """

    def __init__(self, runs: list[ReportedRun], label: str, average_over: Sequence[str], student: str = "") -> None:
        self.runs, self.label, self.average_over = runs, label, average_over
        self.unit = "run" if average_over else "seed"
        self.comparisons: dict[str, Comparison] = {}  # over several seeds, by metric
        # The other runs have the same settings, so they have the same nets and metrics.
        first = runs[0]
        self.student = student or first.student
        self.baseline = first.baselines.get(self.student)
        self.teachers = first.teachers_of(self.student)
        # A teacher can be the reference: a student may be as good as a much larger teacher.
        self.reference = self.baseline or next(iter(self.teachers), None)
        self.metric = first.monitored_metric(self.student)
        self.split = first.metrics.reported_on

    def verdict(self) -> Verdict:
        """Return the verdict."""
        differences = self._differences()
        # If the metric that decides has no interval, others must not decide in its place.
        deciding = differences[0] if differences and differences[0].metric == self.metric else None
        if deciding is None:
            tone = "open"
            headline, sentence, caveat = self._without_difference()
        else:
            tone = deciding.verdict if deciding.verdict in _TONES and len(self.runs) > 1 else "open"
            headline, sentence = self._headline(deciding), self._sentence(deciding)
            caveat = f"{self._other_metrics(differences)}{self._other_students()}{self._caveat(deciding)}"
        roles = {self.student: "student"}
        if self.baseline is not None:
            roles[self.baseline] = "baseline"
        roles |= dict.fromkeys(self.teachers[:2], "teacher")
        return Verdict(
            runs=tuple(self.runs),
            label=self.label,
            headline=headline,
            sentence=sentence,
            caveat=caveat,
            tone=tone,
            figures=tuple(
                Figure(role=role, name=net, text=plain(self._mean(net)), detail=self._detail(net))
                for net, role in roles.items()
                if self.metric in self.runs[0].metrics.results[net]
            ),
            differences=differences,
            has_baseline=deciding is not None and self.baseline is not None,
        )

    def _differences(self) -> tuple[BaselineDifference, ...]:
        """Return the differences over the samples of one run, or over the seeds and samples of several runs."""
        if self.reference is None:
            return ()
        over_samples = self.runs[0].differences(self.student, self.reference)
        if len(self.runs) == 1:
            return tuple(row for row in over_samples if math.isfinite(row.value))  # NaN: a metric that is undefined
        combined = []
        for row in over_samples:
            comparison = self._compare(row, self.reference)
            total = comparison.total
            if total is None or comparison.seeds is None:  # a run without a value
                continue
            self.comparisons[row.metric] = comparison
            combined.append(replace(row, value=total.value, interval=total.interval, verdict=comparison.verdict))
        return tuple(combined)

    def _compare(self, row: BaselineDifference, reference: str) -> Comparison:
        """Compare the student with its reference over the runs."""
        nets = (self.student, reference)
        candidate, baseline = (
            dict[Hashable, float]({run.label: run.metrics.results[net][row.metric].value for run in self.runs})
            for net in nets
        )
        split = self.runs[0].split(self.student)
        stored = self.runs[0].metrics.results[self.student][row.metric]
        metric = None if split is None else same_metric(row.metric, stored, split)
        if metric is not None:
            comparison = compare_over_seeds(metric, candidate, baseline, lambda: self._predictions(reference))
            return comparison.with_overlap(self._overlap()) if self.unit == "run" else comparison
        # For a user-defined metric, only the intervals of single runs are stored.
        try:
            seeds = paired_t_interval(candidate, baseline, lower_is_better=row.lower_is_better)
        except DataError:
            return Comparison(seeds=None, samples=None)
        rows = [item for run in self.runs for item in run.differences(*nets) if item.metric == row.metric]
        if len(rows) < len(self.runs):
            return Comparison(seeds=seeds, samples=None, note="not all runs have an interval over their samples")
        # Not narrower than the interval of the mean: over the same samples, its standard error is at most the average.
        low, high = (fmean(item.interval[side] for item in rows) for side in (0, 1))
        error = (high - low) / 2 / NormalDist().inv_cdf((1 + row.level) / 2)
        samples = Difference(value=seeds.value, interval=(low, high), level=row.level, pairs=len(rows), error=error)
        return Comparison(seeds=seeds, samples=samples)

    def _predictions(self, reference: str) -> PairsOfRuns:
        splits = [[run.split(net) for run in self.runs] for net in (self.student, reference)]
        candidates, baselines = ([split for split in of_net if split is not None] for of_net in splits)
        return candidates, baselines  # if some could not be read, the lengths differ, which raises

    def _overlap(self) -> float:
        """Return the number of reported samples for each training sample; NaN if it is unknown."""
        splits = [(run.split(self.student), whole_number(run.record, "training_size")) for run in self.runs]
        return float(
            np.max([math.nan if not size or split is None else len(split.test) / size for split, size in splits])
        )

    def _headline(self, difference: BaselineDifference) -> str:
        is_open = difference.verdict not in _TONES
        is_one = len(self.runs) == 1
        if self.baseline is None:
            relation = "cannot be distinguished from" if is_open else f"is {difference.verdict} than"
            return f"{'In this run, ' if is_one else ''}{self.student} {relation} {self.reference}."
        if is_one:
            if is_open:
                return "In this run, student and baseline cannot be distinguished."
            points = in_points(self.runs, difference)
            size = signed(abs(difference.value), points=points).removeprefix("+")
            unit = " points" if points else ""
            return f"In this run, the distilled student is {difference.verdict} by {size}{unit}."
        if is_open:
            return "No effect of distillation can be distinguished."
        return "Distillation helped." if difference.verdict == "better" else "Distillation hurt."

    def _sentence(self, difference: BaselineDifference) -> str:
        value, reference = (self._mean(net) for net in (difference.student, difference.baseline))
        points = in_points(self.runs, difference)
        level, span = f"{100 * difference.level:.0f} % interval", signed_bounds(difference.interval, points=points)
        interval = f"{level} {span}" if bounds(difference.interval) else "no interval"
        name = "" if self.reference == "teacher" else f" {self.reference}"
        who = f"for its teacher{name}" if self.baseline is None else "for the same student without a teacher"
        seeds = f", on average over {len(self.runs)} {self.unit}s," if len(self.runs) > 1 else ""
        of_student = f" of {self.student}" if len(self.runs[0].students) > 1 else ""
        return (
            f"{metric_title(self.metric)}{of_student} on the {self.split} split{seeds} is {plain(value)} against "
            f"{plain(reference)} {who}: {signed(difference.value, points=points)}{' points' if points else ''}, "
            f"{interval}."
        )

    def _other_metrics(self, differences: Sequence[BaselineDifference]) -> str:
        """Return the metrics with another verdict, which must not be hidden; "" if there are none."""
        others = [row for row in differences[1:] if row.verdict != differences[0].verdict]
        listed = ", ".join(f"{metric_title(row.metric)} {row.verdict}" for row in others)
        return f"Other metrics: {listed}. " if others else ""

    def _other_students(self) -> str:
        """Return the verdicts on the other students with a baseline, as in mutual learning; "" if there are none."""
        listed = []
        for student in self.runs[0].baselines:
            if student != self.student:
                group = _Group(self.runs, self.label, self.average_over, student)
                listed += [f"{student} {row.verdict}" for row in group._differences()[:1] if row.metric == group.metric]
        return f"Other students: {', '.join(listed)}. " if listed else ""

    def _without_difference(self) -> tuple[str, str, str]:
        """Return headline, sentence and caveat if there is no reference or no interval."""
        name, value = metric_title(self.metric), plain(self._mean(self.student))
        over = f", on average over {len(self.runs)} {self.unit}s" if len(self.runs) > 1 else ""
        sentence = f"{name} of {self.student} is {value} on the {self.split} split{over}."
        if self.reference is None:
            return "There is nothing to compare the student with.", sentence, _ADVICE
        reason = "kdkit cannot compute an interval of this difference."
        if self.metric in self.runs[0].metrics.results[self.reference]:
            sentence = f"{sentence[:-1]}, and {plain(self._mean(self.reference))} for {self.reference}."
            if not all(math.isfinite(self._mean(net)) for net in (self.student, self.reference)):
                reason = f"{name} is undefined{' in at least one run' if len(self.runs) > 1 else ''}."
        return "No paired comparison.", sentence, reason if self.baseline is not None else f"{reason} {_ADVICE}"

    def _caveat(self, difference: BaselineDifference) -> str:
        """Return the basis of the interval, and what it does not include."""
        split = self.runs[0].split(self.student)
        groups = None if split is None else split.test.groups
        count = "the samples" if split is None else f"{len(split.test):,} samples"
        if groups is not None:
            count = f"{len(set(groups.tolist())):,} groups of dependent samples"
        parts = [] if self.baseline is not None else [_ADVICE]
        if len(self.runs) > 1:
            parts.append(self._basis(difference, count))
        else:
            parts += [_ONE_SEED] if self.baseline is not None else []
            parts.append(f"Paired bootstrap over {count}. It reflects the choice of the samples, not of the seed.")
        if self.split == "validation":
            parts.append(
                "There is no test split: the epochs were chosen on these samples, so all values are better than those "
                "on new samples."
            )
        return " ".join(parts)

    def _basis(self, difference: BaselineDifference, count: str) -> str:
        """Return the intervals over seeds and over samples that the interval of several runs combines."""
        comparison = self.comparisons[difference.metric]
        points = in_points(self.runs, difference)

        def interval(part: Difference | None) -> str:
            return "" if part is None else f": {signed_bounds(part.interval, points=points)}"

        unit = self.unit
        seeds = f"Student's t interval over {len(self.runs)} {unit}s, paired by {unit}{interval(comparison.seeds)}"
        if comparison.samples is not None:
            return (
                f"The interval includes the choice of the {unit}s ({seeds}) and of the test samples (paired bootstrap "
                f"over {count}{interval(comparison.samples)})."
            )
        unknown = "" if comparison.includes_samples else " Without an interval over the samples there is no verdict"
        return f"{seeds}.{unknown}{': ' if unknown else ' '}{comparison.note}."

    def _mean(self, net: str) -> float:
        values = [run.metrics.results[net][self.metric].value for run in self.runs]
        return sum(values) / len(values)

    def _detail(self, net: str) -> str:
        """Return the interval of a value, or the range over the seeds."""
        results = [run.metrics.results[net][self.metric] for run in self.runs]
        if len(results) == 1:
            return bounds(results[0].interval)
        values = [result.value for result in results]
        return f"{plain(min(values))} to {plain(max(values))} over {self.unit}s"
