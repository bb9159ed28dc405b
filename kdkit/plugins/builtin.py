"""The built-in plugin of kdkit. It uses the same hooks as any installed plugin."""

from pathlib import Path

from kdkit.plugins.hooks import Register, RegisterTemplate, hookimpl

TEMPLATES = Path(__file__).parents[1] / "templates"

# The imports are inside the hooks, because these modules import torch, which `kdkit --help` must not do.


@hookimpl
def register_losses(register: Register) -> None:
    """Register the losses of `kdkit.losses`."""
    from kdkit.losses import catalog, loss_name

    for factory in (*catalog.ON_OUTPUTS, *catalog.PER_LABEL, *catalog.ON_RELATIONS, *catalog.ON_FEATURES):
        register(loss_name(factory), factory)
    for name, factory in catalog.PRESETS.items():
        register(name, factory)


@hookimpl
def register_taps(register: Register) -> None:
    """Register the taps of `kdkit.nets`."""
    from kdkit.nets import taps, timm

    register("layer", taps.Tap)
    register("attention", taps.AttentionTap)
    register("classifier", taps.ClassifierTap)
    register("timm", timm.timm_tap)


@hookimpl
def register_schedules(register: Register) -> None:
    """Register the schedules of `kdkit.recipe.schedules`."""
    from kdkit.recipe import schedules

    register("parallel", schedules.Parallel)
    register("sequential", schedules.Sequential)
    register("multi_level", schedules.MultiLevel)


@hookimpl
def register_ramps(register: Register) -> None:
    """Register the ramps of `kdkit.recipe.ramps`."""
    from kdkit.recipe import ramps

    register("linear", ramps.LinearRamp)
    register("cosine", ramps.CosineRamp)


@hookimpl
def register_models(register: Register) -> None:
    """Register the models of timm, all under one name; the factory takes the name of the model."""
    from kdkit.nets.timm import create  # imports timm itself only when it creates a model

    register("timm", create)


@hookimpl
def register_datasets(register: Register) -> None:
    """Register data that is made of torch datasets or loaders."""
    from kdkit.data.torch_data import TorchData

    register("torch", TorchData)


@hookimpl
def register_metrics(register: Register) -> None:
    """Register the metrics of `kdkit.metrics`."""
    from kdkit import metrics

    register("accuracy", metrics.Accuracy)
    register("brier", metrics.Brier)
    register("calibration_error", metrics.CalibrationError)
    register("cross_entropy", metrics.CrossEntropy)
    register("macro_auprc", metrics.MacroAUPRC)
    register("macro_auroc", metrics.MacroAUROC)
    register("macro_f1", metrics.MacroF1)
    register("mae", metrics.MAE)
    register("map", metrics.MeanAveragePrecision)
    register("mean_iou", metrics.MeanIoU)
    register("micro_f1", metrics.MicroF1)
    register("mrr", metrics.MRR)
    register("mse", metrics.MSE)
    register("ndcg", metrics.NDCG)
    register("nearest_neighbours", metrics.NearestNeighbours)
    register("pearson", metrics.Pearson)
    register("perplexity", metrics.Perplexity)
    register("r2", metrics.R2)
    register("top_k_accuracy", metrics.TopKAccuracy)


@hookimpl
def register_loggers(register: Register) -> None:
    """Register the loggers of `kdkit.loggers`, which import their packages when they are created."""
    from kdkit import loggers

    register("csv", loggers.CsvLogger)
    register("jsonl", loggers.JsonlLogger)
    register("mlflow", loggers.MlflowLogger)
    register("tensorboard", loggers.TensorBoardLogger)
    register("trackio", loggers.TrackioLogger)
    register("wandb", loggers.WandbLogger)


@hookimpl
def register_exporters(register: Register) -> None:
    """Register the exporters of `kdkit.export`, which import their packages when they are used."""
    from kdkit.export.edge import ExecutorchExporter, LitertExporter
    from kdkit.export.onnx_exporter import Int8OnnxExporter, OnnxExporter
    from kdkit.export.pt2 import Pt2Exporter

    register("executorch", ExecutorchExporter)
    register("litert", LitertExporter)
    register("onnx", OnnxExporter)
    register("onnx-int8", Int8OnnxExporter)
    register("pt2", Pt2Exporter)


@hookimpl
def register_templates(register: RegisterTemplate) -> None:
    """Register the recipe files of `kdkit new recipe`."""
    register("digits", TEMPLATES / "digits.py")
    register("images", TEMPLATES / "images.py")
    register("own_data", TEMPLATES / "own_data.py")
    register("segmentation", TEMPLATES / "segmentation.py")
    register("text_classifier", TEMPLATES / "text_classifier.py")
