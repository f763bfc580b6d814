"""Hyperparameter optimisation for chest-radiograph models, on one machine or as Kubernetes Jobs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["optimize_hyperparameters"]


def __getattr__(name: str) -> Any:
    """Import the pipeline (torch, optuna) only when it is asked for, so that the command line starts at once."""
    if name in __all__:
        return getattr(import_module("csi_job.pipeline"), name)
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
