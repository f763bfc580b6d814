"""Evaluate models: metrics on a split with their intervals, comparisons, predictions for new images."""
