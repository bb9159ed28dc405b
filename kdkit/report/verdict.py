"""The verdict of a report: whether distillation helped, by how much, and how sure that is."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from kdkit.errors import DataError
from kdkit.metrics.paired import paired_t_interval
from kdkit.plugins.events import BaselineDifference
from kdkit.report.formats import bounds, is_share, metric_title, plain, signed
from kdkit.report.runs import ReportedRun, settings_digest

_ADVICE = "Whether distillation helped needs the same student without it: run with --baseline."


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
    verdicts = []
    for group in groups.values():
        seeds = {repr(run.record.get("seed")) for run in group}
        # Repetitions of one seed are no sample of seeds.
        parts = [group] if len(seeds) == len(group) else [[run] for run in group]
        verdicts += [_Group(part).verdict() for part in parts]
    return tuple(verdicts)


def headline_of(verdicts: Sequence[Verdict]) -> str:
    """Return the verdict on all groups in a sentence."""
    if len(verdicts) == 1:
        return verdicts[0].headline
    # Without a baseline, a setting says nothing about distillation.
    compared = [verdict for verdict in verdicts if verdict.has_baseline]
    if not compared:
        return f"{len(verdicts)} recipes side by side."
    helped = sum(verdict.tone == "better" for verdict in compared)
    if helped == len(compared):
        return f"Distillation helped in all {helped} settings."
    return f"Distillation helped in {helped or 'none'} of {len(compared)} settings."


class _Group:
    """Runs that differ in their seeds only, and the two nets that their verdict compares."""

    def __init__(self, runs: list[ReportedRun]) -> None:
        self.runs = runs
        # The others differ in their seeds only, so they have the same nets and metrics.
        first = runs[0]
        self.student = first.student
        self.baseline = first.baselines.get(self.student)
        self.teachers = first.teachers_of(self.student)
        # A teacher is a reference too: a student may be as good as one that is much larger.
        self.reference = self.baseline or next(iter(self.teachers), None)
        self.metric = first.monitored_metric(self.student)
        self.split = first.metrics.reported_on

    def verdict(self) -> Verdict:
        """Return the verdict."""
        differences = self._differences()
        nets = [
            ("student", self.student),
            ("baseline", self.baseline),
            *(("teacher", net) for net in self.teachers[:2]),
        ]
        is_decided = bool(differences) and differences[0].metric == self.metric
        # "" if the deciding metric has no interval: others must not decide in its place.
        tone = differences[0].verdict if is_decided else ""
        if is_decided:
            headline, sentence = self._headline(differences[0]), self._sentence(differences[0])
            caveat = f"{self._other_metrics(differences)}{self._caveat()}"
        else:
            headline, sentence, caveat = self._without_difference()
        return Verdict(
            runs=tuple(self.runs),
            headline=headline,
            sentence=sentence,
            caveat=caveat,
            tone=tone if tone in ("better", "worse") else "open",
            figures=tuple(
                Figure(role=role, name=net, text=plain(self._mean(net)), detail=self._detail(net))
                for role, net in nets
                if net is not None and self.metric in self.runs[0].metrics.results[net]
            ),
            differences=differences,
            has_baseline=is_decided and self.baseline is not None,
        )

    def _differences(self) -> tuple[BaselineDifference, ...]:
        """Return the differences of one run over its samples, or of several runs over their seeds."""
        if self.reference is None:
            return ()
        over_samples = self.runs[0].differences(self.student, self.reference)
        if len(self.runs) == 1:
            return over_samples
        # Over seeds, the difference of each seed is one observation, whatever the interval over its samples is.
        combined = []
        for row in over_samples:
            values: list[dict[Hashable, float]] = [
                {run.label: run.metrics.results[net][row.metric].value for run in self.runs}
                for net in (self.student, self.reference)
            ]
            try:
                difference = paired_t_interval(*values, lower_is_better=row.lower_is_better)
            except DataError:  # a run without a value
                continue
            combined.append(
                replace(row, value=difference.value, interval=difference.interval, verdict=difference.verdict)
            )
        return tuple(combined)

    def _headline(self, difference: BaselineDifference) -> str:
        is_open = difference.verdict not in ("better", "worse")
        if self.baseline is None:
            if is_open:
                return f"{self.student} cannot be distinguished from {self.reference}."
            return f"{self.student} is {difference.verdict} than {self.reference}."
        if is_open:
            return "No effect of distillation can be distinguished."
        return "Distillation helped." if difference.verdict == "better" else "Distillation hurt."

    def _sentence(self, difference: BaselineDifference) -> str:
        value, reference = (self._mean(net) for net in (difference.student, difference.baseline))
        points = is_share(value, reference, difference.value)
        low, high = (signed(bound, points=points) for bound in difference.interval)
        who = f"for its teacher {self.reference}" if self.baseline is None else "for the same student without a teacher"
        seeds = f", on average over {len(self.runs)} seeds," if len(self.runs) > 1 else ""
        return (
            f"{metric_title(self.metric)} on the {self.split} split{seeds} is {plain(value)} against "
            f"{plain(reference)} {who}: {signed(difference.value, points=points)}{' points' if points else ''}, "
            f"{100 * difference.level:.0f} % interval {low} to {high}."
        )

    def _other_metrics(self, differences: Sequence[BaselineDifference]) -> str:
        """Return the metrics with another verdict, "" if there are none: a verdict must not hide them."""
        others = [row for row in differences[1:] if row.verdict != differences[0].verdict]
        listed = ", ".join(f"{metric_title(row.metric)} {row.verdict}" for row in others)
        return f"By other metrics: {listed}. " if others else ""

    def _without_difference(self) -> tuple[str, str, str]:
        """Return headline, sentence and caveat if there is nothing to compare, or no interval."""
        name, value = metric_title(self.metric), plain(self._mean(self.student))
        sentence = f"{name} of {self.student} is {value} on the {self.split} split."
        if self.reference is None:
            return "There is nothing to compare the student with.", sentence, _ADVICE
        if self.metric in self.runs[0].metrics.results[self.reference]:
            sentence = f"{sentence[:-1]}, that of {self.reference} {plain(self._mean(self.reference))}."
        reason = "kdkit cannot compute an interval of this difference."
        return "No paired comparison.", sentence, reason if self.baseline is not None else f"{reason} {_ADVICE}"

    def _caveat(self) -> str:
        """Return what the interval is based on, and what it does not include."""
        if len(self.runs) > 1:
            basis = f"Student's t interval over {len(self.runs)} seeds, paired by seed."
        else:
            split = self.runs[0].split(self.student)
            groups = None if split is None else split.test.groups
            count = "the samples" if split is None else f"{len(split.test):,} samples"
            if groups is not None:
                count = f"{len(set(groups.tolist())):,} groups of dependent samples"
            basis = (
                f"Paired bootstrap over {count}. It reflects the choice of the samples, not of the seed: repeat the "
                "run with other seeds to include that."
            )
        if self.split == "validation":
            basis += " There is no test split: the epochs were chosen on these samples, so all values are too high."
        return basis if self.baseline is not None else f"{_ADVICE} {basis}"

    def _mean(self, net: str) -> float:
        values = [run.metrics.results[net][self.metric].value for run in self.runs]
        return sum(values) / len(values)

    def _detail(self, net: str) -> str:
        """Return the interval of a value, or the range over the seeds."""
        results = [run.metrics.results[net][self.metric] for run in self.runs]
        if len(results) == 1:
            return bounds(results[0].interval)
        values = [result.value for result in results]
        return f"{plain(min(values))} to {plain(max(values))} over seeds"
