"""What the server behind `FORKS` imports once for all commands."""

import atexit
import gc
import os

import plotly.offline
import sklearn.metrics
import torch._dynamo

import csi_job.cli
import csi_job.pipeline

__all__ = ["csi_job", "plotly", "sklearn", "torch"]
gc.freeze()  # a collection in a fork would copy the pages that all of them share
atexit.register(os._exit, 0)  # without the complaints of triton's bindings about what is still referenced
