"""Devices, files, memory, randomness, collectives and validation."""
