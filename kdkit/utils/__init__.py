"""Utilities without a floor of their own, one file for each thing."""
