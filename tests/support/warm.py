"""What the server behind `FORKS` imports once for all commands."""

import gc

import plotly.offline
import sklearn.metrics

import csi_job.cli
import csi_job.pipeline

__all__ = ["csi_job", "plotly", "sklearn"]
gc.freeze()  # a collection in a fork would copy the pages that all of them share
