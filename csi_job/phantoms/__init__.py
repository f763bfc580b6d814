"""Drawn chest radiographs to try everything with."""
