"""Radiographs and their label table: read, checked, split by patient."""
