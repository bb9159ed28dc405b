"""Sample a healthy heart: the starting point that findings then change."""

from kdkit_ecg.simulator.heart import Force, Heart, Qrs, scaled
from kdkit_ecg.simulator.randomness import RangeSampler


def healthy_heart(sampler: RangeSampler) -> Heart:
    """Return a heart in sinus rhythm at 60 to 100 a minute with all intervals normal.

    PR 120 to 200 ms, QRS under 110 ms, QTc under 450 ms, axis -30 to +90 degrees.
    """
    septum, front, base, t_size = (sampler.jitter(0.2) for _ in range(4))
    # The three phases of ventricular activation, in the order in which they happen.
    forces = (
        Force(0.22, 0.08, (-0.15 * septum, 0.0, 0.2 * septum)),  # the septum, from left to right
        Force(0.45, 0.09, (1.0, 0.0, -0.3 * front), main=True),  # the free walls; the left one outweighs the right
        Force(0.66, 0.1, (-0.08 * base, -0.2 * base, -0.3 * base)),  # the base
    )
    qrs = Qrs(
        forces=forces,
        duration=sampler.within(easy=(0.082, 0.098), hard=(0.075, 0.106)),
        axis=sampler.within(easy=(15, 70), hard=(-20, 82)),
        voltage=sampler.within(easy=(0.9, 1.8), hard=(0.7, 1.8)),
    )
    # The focus of premature beats, with a wide QRS. From the left ventricle its vector points to the right and front,
    # from the right one to the left and back.
    focus_left, focus_front = (-0.6, 0.8) if sampler.chance(0.5) else (0.8, -0.6)
    focus_forces = (
        Force(0.36, 0.15, (focus_left, 0.0, focus_front)),
        Force(0.6, 0.16, (0.8 * focus_left, sampler.uniform(-0.8, 0.8), 0.8 * focus_front)),
    )
    focus_duration = sampler.within(easy=(0.15, 0.18), hard=(0.125, 0.15))
    focus_voltage = sampler.within(easy=(1.6, 2.2), hard=(0.8, 1.4))
    return Heart(
        rate=sampler.within(easy=(66, 92), hard=(61, 99)),
        swing=sampler.within(easy=(0.01, 0.04), hard=(0.02, 0.1)),
        pr=sampler.within(easy=(0.135, 0.17), hard=(0.125, 0.195)),
        qrs=qrs,
        qtc=sampler.within(easy=(0.39, 0.425), hard=(0.375, 0.445)),
        p=scaled((0.06, 0.11, 0.02), sampler.jitter(0.2)),
        t=scaled((0.22, sampler.uniform(0.1, 0.25), sampler.uniform(0.08, 0.18)), t_size),
        focus=Qrs(forces=focus_forces, duration=focus_duration, axis=0.0, voltage=focus_voltage),
        focus_t=scaled((-focus_left, 0.1, -focus_front), 0.4),  # opposite to its QRS: repolarisation is secondary
    )
