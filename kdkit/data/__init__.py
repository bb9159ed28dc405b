"""Batches, data sets, and how they are loaded."""
