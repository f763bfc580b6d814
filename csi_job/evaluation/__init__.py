"""Evaluation: metrics of a model on a split, with intervals; predictions on new images."""
