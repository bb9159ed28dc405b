"""A plugin for kdkit, with a loss, a schedule, a data set and a callback."""
