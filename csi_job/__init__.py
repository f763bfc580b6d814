"""Hyperparameter optimisation for chest-radiograph models, on one machine or as Kubernetes Jobs."""

from importlib import import_module

TYPE_CHECKING = False  # importing it from `typing` would take longer than the rest before signals are handled
if TYPE_CHECKING:
    from typing import Any

__all__ = ["__version__", "optimize_hyperparameters"]


def __getattr__(name: str) -> "Any":
    """Look up the version, or import the pipeline (torch, optuna), only on request: the command line starts at once."""
    if name == "__version__":
        from importlib.metadata import version

        return version("csi-job")
    if name in __all__:
        return getattr(import_module("csi_job.pipeline"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
