"""Reproductions of the results of papers, run from the root of the repository."""
