"""A trial: one model trained with one set of hyperparameters."""
