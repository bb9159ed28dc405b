"""Each finding meets its criterion in the signals of its records, and in none of a healthy heart."""

from functools import cache
from itertools import islice

import numpy as np
import pytest

from kdkit_ecg.labels import scored_classes
from kdkit_ecg.simulator import FINDINGS, Simulator
from tests.helpers.ecg_measures import AVF, AVL, II, III, TERRITORIES, V1, V6, I, Strip, bumps, saw_tooth

CLEAR = Simulator(seed=11, rate=500, length=5000, difficulty=0)


def regular(strip):
    return np.ptp(strip.intervals) < 0.12


def upright_p(strip):
    return strip.beat.p[0] > 0.05


def af(strip):
    irregular = np.std(strip.intervals) / np.mean(strip.intervals) > 0.1
    return irregular and np.ptp(np.diff(strip.intervals)) > 0.2 and strip.p_wave_correlation() < 0.5


def afl(strip):
    rate, size = saw_tooth(strip)
    conducted = rate / strip.bpm
    return size > 0.06 and 240 < rate < 360 and abs(conducted - round(conducted)) < 0.08 and 2 <= round(conducted) <= 4


def pacing(strip):
    jump = np.abs(np.diff(strip.signal[V6]))
    # A spike precedes the QRS by 20 ms.
    spans = [np.round((strip.onsets[index] + (-0.03, -0.01)) * strip.rate).astype(int) for index in strip.complete]
    return all(jump[start:stop].max() > 0.1 for start, stop in spans) and strip.beat.width > 0.12


def pac(strip):
    # A narrow early beat of the usual shape, a negative P in lead II, and less than a compensatory pause.
    gaps = np.diff(strip.onsets)
    usual = np.median(gaps)
    return any(
        strip.cut(index).width < 0.12 + 0.06 * (strip.beat.width > 0.11)
        and np.corrcoef(strip.cut(index).qrs_window_of(strip.beat), strip.beat.qrs_window_of(strip.beat))[0, 1] > 0.95
        and strip.cut(index).span(-0.12, -0.03)[II].min() < -0.03
        and gaps[index - 1] + gaps[index] < 1.97 * usual
        for index in strip.premature()
    )


def pvc(strip):
    # A wide early beat of another shape, no P wave in lead II, and a compensatory pause.
    gaps = np.diff(strip.onsets)
    usual = np.median(gaps)
    return any(
        strip.cut(index).width >= 0.12
        and np.corrcoef(strip.cut(index).qrs_window_of(strip.beat), strip.beat.qrs_window_of(strip.beat))[0, 1] < 0.95
        and np.ptp(strip.cut(index).span(-0.1, -0.03)[II]) < 0.05
        and abs(gaps[index - 1] + gaps[index] - 2 * usual) < 0.08
        for index in strip.premature()
    )


def long_pr(strip):
    return upright_p(strip) and strip.beat.pr > 0.2


def r_s_r(strip):
    return bumps(np.append(strip.beat.qrs[V1], 0), 0.03) == [1, -1, 1]


def crbbb(strip):
    wide_s = all(np.sum(strip.beat.qrs[lead] < -0.03) / strip.rate > 0.035 for lead in (I, V6))
    return strip.beat.width >= 0.12 and r_s_r(strip) and wide_s


def irbbb(strip):
    return 0.108 < strip.beat.width < 0.12 and r_s_r(strip)


def lbbb(strip):
    notched = all(bumps(np.append(strip.beat.qrs[lead], 0), 0.02) == [1, -1, 1] for lead in (I, V6))
    qs = strip.beat.qrs[V1].max() < 0.03 and strip.beat.qrs[V1].min() < -0.2
    return strip.beat.width >= 0.12 and notched and qs


def nsivcb(strip):
    return strip.beat.width > 0.11 and not (r_s_r(strip) or lbbb(strip) or pacing(strip))


def lanfb(strip):
    q_r = strip.beat.first_wave(AVL)[0] < 0 < strip.beat.qrs[AVL].sum()
    r_s = all(strip.beat.first_wave(lead)[0] > 0 > strip.beat.qrs[lead].sum() for lead in (II, III, AVF))
    return -90 <= strip.beat.axis <= -45 and q_r and r_s


def low_voltage(strip):
    sizes = np.ptp(strip.beat.qrs, axis=1)
    return sizes[:6].max() < 0.5 and sizes[6:].max() < 1.0


def deep_q(beat, lead):
    sign, width, height = beat.first_wave(lead)
    return sign < 0 and width > 0.04 and height > 0.25 * max(beat.qrs[lead].max(), 0)


def abnormal_q(strip):
    return any(sum(deep_q(strip.beat, lead) for lead in leads) >= 2 for leads in (*TERRITORIES[:2], (7, 8, 9)))


def long_qt(strip):
    return strip.beat.qt / np.sqrt(60 / strip.bpm) > 0.46


def abnormal_t(strip):
    flat = np.abs(strip.beat.t) < 0.1 * np.ptp(strip.beat.qrs, axis=1)
    after_qrs = strip.beat.span(strip.beat.edges[1] + 0.03, 0.5)
    both = (after_qrs.max(axis=1) > 0.04) & (after_qrs.min(axis=1) < -0.04)
    return flat.sum() >= 8 or both.sum() >= 5


def inverted_t(strip):
    return any(np.sum(strip.beat.t[list(leads)] < -0.1) >= 2 for leads in (*TERRITORIES[:2], (7, 8, 9)))


# Finding -> its criterion, and the findings that make this measurement impossible.
FLUTTERS = {"AF", "AFL"}
EARLY = {"PAC", "PVC"}
CRITERIA = {
    "AF": (af, set()),
    "AFL": (afl, {"LQRSV"}),
    "PR": (pacing, set()),
    "Brady": (lambda strip: strip.bpm < 60, set()),
    "NSR": (lambda strip: 60 <= strip.bpm <= 100 and regular(strip) and upright_p(strip), EARLY),
    "SB": (lambda strip: strip.bpm < 60 and upright_p(strip), set()),
    "STach": (lambda strip: strip.bpm > 100 and upright_p(strip), set()),
    "SA": (lambda strip: np.ptp(strip.intervals) > 0.12 and upright_p(strip), set()),
    "PAC": (pac, set()),
    "PVC": (pvc, {*FLUTTERS, "LQT"}),
    "IAVB": (long_pr, set()),
    "LPR": (long_pr, set()),
    "CRBBB": (crbbb, {*FLUTTERS, "STach"}),
    "IRBBB": (irbbb, FLUTTERS),
    "LBBB": (lbbb, {*FLUTTERS, "STach"}),
    "NSIVCB": (nsivcb, {*FLUTTERS, "STach"}),
    "LAnFB": (lanfb, FLUTTERS),
    "LAD": (lambda strip: -90 <= strip.beat.axis <= -30, FLUTTERS),
    "RAD": (lambda strip: strip.beat.axis >= 90, FLUTTERS),
    "LQRSV": (low_voltage, FLUTTERS),
    "QAb": (abnormal_q, FLUTTERS),
    "LQT": (long_qt, {"TAb"}),
    "TAb": (abnormal_t, FLUTTERS),
    "TInv": (inverted_t, FLUTTERS),
}


def strip_of(number):
    record = CLEAR.record(number)
    return Strip(record.signal, CLEAR.rate, record.beats.onsets)


@cache
def findings_of(number):
    return CLEAR.patient(number).findings


def records_with(finding, count):
    """Return the numbers of the first records with this finding in which it can be measured."""
    masked_by = CRITERIA[finding][1]
    patients = ((number, findings_of(number)) for number in range(3000))
    measured = (number for number, findings in patients if finding in findings and masked_by.isdisjoint(findings))
    return list(islice(measured, count))


@pytest.fixture(scope="module")
def healthy_strips():
    numbers = [number for number in range(600) if CLEAR.patient(number).findings == {"NSR"}][:5]
    return [strip_of(number) for number in numbers]


def test_every_class_of_2020_has_a_function_and_a_criterion():
    assert set(FINDINGS) == set(scored_classes(2020).names) == set(CRITERIA)


@pytest.mark.parametrize("finding", CRITERIA)
def test_a_record_with_the_finding_meets_its_criterion(finding):
    criterion = CRITERIA[finding][0]
    missed = [number for number in records_with(finding, 4) if not criterion(strip_of(number))]
    assert not missed, [(number, sorted(CLEAR.patient(number).findings)) for number in missed]


@pytest.mark.parametrize("finding", [name for name in CRITERIA if name != "NSR"])
def test_a_healthy_heart_does_not_meet_the_criterion(finding, healthy_strips):
    assert len(healthy_strips) == 5
    assert not any(CRITERIA[finding][0](strip) for strip in healthy_strips)
