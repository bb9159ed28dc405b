"""Plugin hooks, registries, and the loading of plugins and recipe files."""
