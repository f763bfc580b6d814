"""What every page shares: the base template with its style sheet, the look of figures, and rendering."""
