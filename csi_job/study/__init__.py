"""A study: trials chosen, shared between workers, pruned and counted exactly."""
