"""The hooks of the plugin, which register what it adds to kdkit."""

from kdkit import Register, hookimpl

# Everything is imported inside the hooks: kdkit loads this module for `kdkit --help`, which must not wait for torch.


@hookimpl
def register_losses(register: Register) -> None:
    """Register the loss."""
    from my_plugin.losses import ClippedMSE

    register("my_plugin_loss", ClippedMSE)


@hookimpl
def register_schedules(register: Register) -> None:
    """Register the schedule."""
    from my_plugin.schedules import Pretrained

    register("my_plugin_schedule", Pretrained)


@hookimpl
def register_metrics(register: Register) -> None:
    """Register the metric."""
    from my_plugin.metrics import BalancedAccuracy

    register("my_plugin_metric", BalancedAccuracy)


@hookimpl
def register_datasets(register: Register) -> None:
    """Register the data set."""
    from my_plugin.datasets import Clusters

    register("my_plugin_data", Clusters)
