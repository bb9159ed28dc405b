"""Derive seeds from numbers, without importing torch."""

from enum import IntEnum


class SeedPurpose(IntEnum):
    """The last number of a derived seed, because two purposes with the same seed would draw the same numbers.

    A training epoch, with its dropout, has the seed of (seed, epoch) alone.
    """

    ORDER = 1  # of the rows of an epoch
    LOADING = 2  # of batches, by data that draws numbers
    VALIDATION = 3
    EVALUATION = 4
    DRAW = 5  # of a version of an augmented sample
    RANK = 6  # of an epoch, on ranks after the first
    BATCHES = 7  # their order in an epoch, if they have samples of about the same length


def derive_seed(*numbers: int) -> int:
    """Return a 63-bit seed that depends on every number and on their order."""
    # One round of splitmix64 for each number (Steele et al. 2014). Sums or products of seeds would collide.
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:
        mixed = (mixed ^ (number & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1  # torch takes seeds as signed 64-bit integers
