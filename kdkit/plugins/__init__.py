"""Hooks, registries, and how plugins and recipe files are loaded."""
