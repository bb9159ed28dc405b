"""Change a healthy heart so that it shows a finding: one function per class, with its criterion in the docstring.

Thresholds are those of the AHA/ACCF/HRS recommendations on the standardization and interpretation of the ECG (2009:
parts III, conduction, and IV, repolarisation), and of the universal definition of myocardial infarction (2018) for Q
waves. `easy` is the range at difficulty 0, `hard` at difficulty 1; both meet the criterion.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from kdkit_ecg.simulator.heart import Atria, Force, Heart, Qrs, Vector, scaled
from kdkit_ecg.simulator.randomness import RangeSampler

Finding = Callable[[Heart, RangeSampler], Heart]

# The directions of the three walls that an infarction or ischaemia affects: inferior, lateral, anterior.
_WALLS: tuple[Vector, ...] = ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))


def atrial_fibrillation(heart: Heart, sampler: RangeSampler) -> Heart:
    """AF: irregularly irregular beats, no P wave, a fibrillating baseline of 350 to 600 a minute."""
    rate = sampler.within(easy=(75, 120), hard=(65, 110))
    scatter = sampler.within(easy=(0.2, 0.28), hard=(0.1, 0.2))
    size = sampler.within(easy=(0.04, 0.08), hard=(0.01, 0.04))
    waves = sampler.uniform(360, 520)
    return replace(heart, atria="fibrillating", rate=rate, scatter=scatter, atrial_rate=waves, atrial_size=size)


def atrial_flutter(heart: Heart, sampler: RangeSampler) -> Heart:
    """AFL: saw-tooth waves of 250 to 350 a minute in the inferior leads; every 2nd, 3rd or 4th is conducted."""
    waves = sampler.within(easy=(280, 320), hard=(250, 345))
    conducted = int(sampler.generator.integers(2, 5))
    size = sampler.within(easy=(0.1, 0.16), hard=(0.03, 0.07))
    rate, t = waves / conducted, scaled(heart.t, 0.5)
    return replace(heart, atria="fluttering", rate=rate, swing=0.0, atrial_rate=waves, atrial_size=size, t=t)


def pacing_rhythm(heart: Heart, sampler: RangeSampler) -> Heart:
    """PR: a spike before each wide QRS of left bundle branch block shape; atria sensed or silent."""
    forces = (Force(0.35, 0.15, (1.0, 0.0, -0.4), main=True), Force(0.62, 0.16, (0.8, 0.0, -0.6), main=True))
    # Septal pacing, which has a normal axis: with an apical lead, every paced record would be LAD as well.
    qrs = replace(heart.qrs, forces=forces, duration=sampler.within(easy=(0.15, 0.18), hard=(0.125, 0.16)))
    atria: Atria = "sinus" if sampler.chance(0.5) else "silent"
    rate = sampler.uniform(61, 85)
    spike = sampler.within(easy=(0.8, 1.2), hard=(0.1, 0.3))  # mV: large by unipolar pacing, small by bipolar
    return replace(heart, spike=spike, atria=atria, rate=rate, swing=0.0, qrs=qrs, t=(-0.2, 0.05, 0.25))


def bradycardia(heart: Heart, sampler: RangeSampler) -> Heart:
    """Brady: under 60 a minute, not necessarily sinus. A regular one is a junctional escape, without P wave."""
    atria = "silent" if heart.atria == "sinus" else heart.atria
    return replace(heart, rate=sampler.within(easy=(38, 50), hard=(42, 55)), atria=atria)


def sinus_rhythm(heart: Heart, sampler: RangeSampler) -> Heart:
    """NSR: a normal P before each QRS, 60 to 100 a minute; other findings may be present."""
    return replace(heart, rate=sampler.within(easy=(66, 92), hard=(61, 99)))


def sinus_bradycardia(heart: Heart, sampler: RangeSampler) -> Heart:
    """SB: a normal P before each QRS, under 60 a minute."""
    return replace(heart, rate=sampler.within(easy=(40, 54), hard=(46, 59)), atria="sinus")


def sinus_tachycardia(heart: Heart, sampler: RangeSampler) -> Heart:
    """STach: a normal P before each QRS, over 100 a minute."""
    return replace(heart, rate=sampler.within(easy=(108, 135), hard=(101, 125)), swing=0.3 * heart.swing)


def sinus_arrhythmia(heart: Heart, sampler: RangeSampler) -> Heart:
    """SA: intervals between sinus beats differ by more than 120 ms, with the breathing."""
    return replace(heart, swing=sampler.within(easy=(0.2, 0.3), hard=(0.13, 0.2)))


def premature_atrial_contraction(heart: Heart, sampler: RangeSampler) -> Heart:
    """PAC: an early narrow beat after an abnormal P wave, then a pause that is less than compensatory."""
    return replace(heart, early=(*heart.early, "atrial"))


def premature_ventricular_contraction(heart: Heart, sampler: RangeSampler) -> Heart:
    """PVC: an early QRS of 120 ms or more without P wave, then a compensatory pause."""
    return replace(heart, early=(*heart.early, "ventricular"))


def prolonged_pr_interval(heart: Heart, sampler: RangeSampler) -> Heart:
    """IAVB (first-degree AV block) and LPR: PR over 200 ms in every beat."""
    return replace(heart, pr=sampler.within(easy=(0.23, 0.28), hard=(0.203, 0.24)))


def right_bundle_branch_block(heart: Heart, sampler: RangeSampler) -> Heart:
    """CRBBB: QRS of 120 ms or more, rSR' in V1, wide S in I and V6."""
    qrs = _right_ventricle_last(heart.qrs, sampler.within(easy=(0.65, 0.8), hard=(0.4, 0.7)))
    left, down, front = heart.t
    qrs = replace(qrs, duration=sampler.within(easy=(0.135, 0.155), hard=(0.121, 0.14)))
    return replace(heart, qrs=qrs, t=(left, down, front - 0.15))  # T is inverted in V1, secondary to the block


def incomplete_right_bundle_branch_block(heart: Heart, sampler: RangeSampler) -> Heart:
    """IRBBB: rSR' in V1, QRS of 110 to 119 ms."""
    qrs = _right_ventricle_last(heart.qrs, sampler.within(easy=(0.45, 0.55), hard=(0.3, 0.45)))
    return replace(heart, qrs=replace(qrs, duration=sampler.within(easy=(0.112, 0.117), hard=(0.11, 0.119))))


def left_bundle_branch_block(heart: Heart, sampler: RangeSampler) -> Heart:
    """LBBB: QRS of 120 ms or more, broad notched R without q in I and V6, QS in V1."""
    front = sampler.uniform(-0.7, -0.4)
    notch = sampler.within(easy=(0.15, 0.17), hard=(0.13, 0.14))  # from the middle to each of the two summits
    # The septum is activated from the right, so the first force already points to the left; T is opposite to QRS.
    forces = (
        Force(0.47 - notch, 0.1, (1.0, 0.0, front), main=True),
        Force(0.47 + notch, 0.12, (1.0, 0.0, front), main=True),
    )
    qrs = replace(heart.qrs, forces=forces, duration=sampler.within(easy=(0.14, 0.165), hard=(0.122, 0.145)))
    return replace(heart, qrs=qrs, t=scaled((-0.2, -0.05, 0.25), sampler.jitter(0.2)))


def nonspecific_conduction_disorder(heart: Heart, sampler: RangeSampler) -> Heart:
    """NSIVCB: QRS over 110 ms (here 120) in the shape of neither bundle branch block."""
    septum, walls, base = heart.qrs.forces
    slurred = (walls._replace(centre=0.42, width=0.11), walls._replace(centre=0.56, width=0.12))
    qrs = replace(heart.qrs, forces=(septum, *slurred, base._replace(centre=0.78)))
    return replace(heart, qrs=replace(qrs, duration=sampler.within(easy=(0.135, 0.155), hard=(0.121, 0.135))))


def left_anterior_fascicular_block(heart: Heart, sampler: RangeSampler) -> Heart:
    """LAnFB: axis -45 to -90 degrees, qR in aVL, rS in II, III and aVF, QRS little widened."""
    size = sampler.within(easy=(0.8, 1.1), hard=(0.5, 0.7))
    # The posterior fascicle conducts first, so activation begins downwards.
    first = Force(0.2, 0.08, (-0.2 * size, 0.3 * size, 0.15))
    axis = sampler.within(easy=(-75, -55), hard=(-70, -46))
    return replace(heart, qrs=replace(heart.qrs, forces=(first, *heart.qrs.forces[1:]), axis=axis))


def left_axis_deviation(heart: Heart, sampler: RangeSampler) -> Heart:
    """LAD: axis -30 to -90 degrees; an axis that fascicular block has turned further stays."""
    axis = min(heart.qrs.axis, sampler.within(easy=(-50, -36), hard=(-65, -31)))
    return replace(heart, qrs=replace(heart.qrs, axis=axis))


def right_axis_deviation(heart: Heart, sampler: RangeSampler) -> Heart:
    """RAD: axis +90 to +180 degrees."""
    return replace(heart, qrs=replace(heart.qrs, axis=sampler.within(easy=(105, 145), hard=(92, 115))))


def low_qrs_voltages(heart: Heart, sampler: RangeSampler) -> Heart:
    """LQRSV: peak to peak under 0.5 mV in all limb leads and under 1 mV in all chest leads."""
    voltage = sampler.within(easy=(0.28, 0.42), hard=(0.38, 0.49))
    return replace(heart, qrs=replace(heart.qrs, voltage=voltage), t=scaled(heart.t, 0.5))


def abnormal_q_wave(heart: Heart, sampler: RangeSampler) -> Heart:
    """QAb: a Q wave over 40 ms wide and over a quarter of R (or QS) in two leads of one territory."""
    depth = sampler.within(easy=(0.6, 0.8), hard=(0.45, 0.6))
    dead = _WALLS[int(sampler.generator.integers(3))]
    # The dead wall contributes no force, so the first force points away from it.
    q_wave = Force(0.24, 0.11, scaled(dead, -depth))
    forces = (q_wave, *(force._replace(centre=0.64) for force in heart.qrs.forces[1:2]))
    duration = sampler.within(easy=(0.102, 0.108), hard=(0.099, 0.108))
    return replace(heart, qrs=replace(heart.qrs, forces=forces, duration=duration, axis=sampler.uniform(30, 60)))


def prolonged_qt_interval(heart: Heart, sampler: RangeSampler) -> Heart:
    """LQT: QTc over 460 ms by Bazett's formula."""
    return replace(heart, qtc=sampler.within(easy=(0.49, 0.55), hard=(0.463, 0.5)))


def abnormal_t_wave(heart: Heart, sampler: RangeSampler) -> Heart:
    """TAb: a T wave that is flat (under a tenth of R) or has two opposite halves."""
    if sampler.chance(0.5):
        return replace(heart, t=scaled(heart.t, sampler.within(easy=(0.0, 0.1), hard=(0.1, 0.25))))
    return replace(heart, t_turn=sampler.within(easy=(0.9, 1.1), hard=(0.5, 0.8)))


def t_wave_inversion(heart: Heart, sampler: RangeSampler) -> Heart:
    """TInv: T of -0.1 mV or deeper in two leads of one territory."""
    size = sampler.within(easy=(0.35, 0.5), hard=(0.15, 0.3))
    away = -np.array(_WALLS[int(sampler.generator.integers(3))])
    # A fifth of a normal T in the other two directions, so that T does not vanish in the other leads.
    left, down, front = size * (away + 0.2 * np.array([1.0, 0.6, 0.4]) * (away == 0))
    return replace(heart, t=(float(left), float(down), float(front)))


def _right_ventricle_last(qrs: Qrs, size: float) -> Qrs:
    """Return a QRS that ends with a force to the right and to the front."""
    septum, walls = Force(0.2, 0.08, (-0.2, 0.0, 0.3)), qrs.forces[1]
    late = Force(0.74, 0.1, (-0.8 * size, 0.05, size))
    return replace(qrs, forces=(septum, walls._replace(centre=0.43, vector=(1.0, 0.0, -0.5)), late))


# In the order in which they are applied: first the rhythm, with Brady before SB, which restores the P waves of a slow
# heart; then conduction; last, the findings that a change of the QRS would undo.
FINDINGS: Mapping[str, Finding] = MappingProxyType(
    {
        "AF": atrial_fibrillation,
        "AFL": atrial_flutter,
        "PR": pacing_rhythm,
        "Brady": bradycardia,
        "NSR": sinus_rhythm,
        "SB": sinus_bradycardia,
        "STach": sinus_tachycardia,
        "SA": sinus_arrhythmia,
        "PAC": premature_atrial_contraction,
        "PVC": premature_ventricular_contraction,
        "IAVB": prolonged_pr_interval,
        "LPR": prolonged_pr_interval,
        "CRBBB": right_bundle_branch_block,
        "IRBBB": incomplete_right_bundle_branch_block,
        "LBBB": left_bundle_branch_block,
        "NSIVCB": nonspecific_conduction_disorder,
        "LAnFB": left_anterior_fascicular_block,
        "LAD": left_axis_deviation,
        "RAD": right_axis_deviation,
        "LQRSV": low_qrs_voltages,
        "QAb": abnormal_q_wave,
        "LQT": prolonged_qt_interval,
        "TAb": abnormal_t_wave,
        "TInv": t_wave_inversion,
    }
)
