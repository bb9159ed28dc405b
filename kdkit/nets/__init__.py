"""Networks, their inputs, and taps on their layers."""
