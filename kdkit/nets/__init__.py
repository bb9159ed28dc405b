"""Networks, views of their inputs, and taps on their layers."""
