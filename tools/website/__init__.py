"""The documentation as a site: `python -m tools.website` builds it in build/site, with warnings as errors.

It needs `pip install -e '.[docs]'`, and no network.
"""
