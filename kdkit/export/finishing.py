"""Train an int8 graph on the outputs of its original network: quantization-aware distillation."""

import torch
from onnx import ModelProto
from torch import nn

from kdkit.engine.options import RunOptions
from kdkit.engine.run import run
from kdkit.errors import KdkitError, first_line
from kdkit.export.int8_module import Int8Module
from kdkit.export.onnx_graph import OnnxGraph
from kdkit.export.source import ExportSource
from kdkit.nets.net import Net
from kdkit.recipe.objective import Match
from kdkit.recipe.optim import LRSchedule, Optimizer
from kdkit.recipe.recipe import Recipe, Stage
from kdkit.recipe.training import Training

# The initial rate. It decays to 0, so that the weights settle on their steps. Rates of 1e-3 and more hurt LRH-Net.
_LEARNING_RATE = 1e-4


def finish(source: ExportSource, model: ModelProto) -> ModelProto:
    """Return a quantized model after training, with the same operators and scales.

    The network teaches the model its outputs, in a stage with the data and metrics of the network's recipe. The
    epoch with the best metric on the validation split is kept.
    Raises KdkitError if an operator cannot be trained, or if training fails, for example with a loss of NaN.
    """
    try:
        module = Int8Module(OnnxGraph(model))
        with torch.no_grad():
            module(*source.example)  # finds options of an operator that cannot be trained, before the stage begins
    except (LookupError, RuntimeError) as error:
        raise KdkitError(f"an operator has options that cannot be trained: {first_line(error)}") from error
    net, last, epochs = source.net, source.recipe.stages[-1].training, source.options.finish_epochs
    # A separate net that counts as trained, because it may be a student in the recipe.
    teacher = Net(
        f"{net.name}-float",
        net.network,
        view=net.view,
        element=net.element,
        channels_last=net.channels_last,
        classes=net.classes,
        trained=True,
    )
    student = Net(f"{net.name}-int8", module, view=net.view, channels_last=net.channels_last, classes=net.classes)
    training = Training(
        epochs=epochs,
        batch_size=last.batch_size,
        optimizer=Optimizer(torch.optim.Adam, lr=_LEARNING_RATE),
        lr_schedule=LRSchedule(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
        max_grad_norm=1.0,
    )
    stage = Stage({student: 1.0 * Match(teacher, nn.MSELoss())}, training, name="finishing")
    recipe = Recipe(data=source.data, schedule=[stage], metrics=source.metrics)
    run(recipe, RunOptions(device="cpu", seed=source.options.seed, teacher_cache="off", progress=False))
    return module.trained_graph().to_model({entry.domain: entry.version for entry in model.opset_import})
