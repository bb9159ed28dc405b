"""Derive seeds from numbers, without an import of torch."""


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
