"""Histories: what clients of a study did and were answered, checked against a sequential model of a study."""
