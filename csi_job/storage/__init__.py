"""Optuna's storage, with leases."""
