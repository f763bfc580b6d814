"""The report: plots, tables and one page about a study and its model."""
