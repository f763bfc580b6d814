"""The final model: the best trials retrained over several seeds, the winner exported with its card."""
