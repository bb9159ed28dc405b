"""Batches, data sets, and loading them."""
