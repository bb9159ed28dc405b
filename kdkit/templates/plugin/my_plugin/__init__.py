"""A plugin for kdkit, with a loss, a schedule, a metric, a data set and a callback."""
