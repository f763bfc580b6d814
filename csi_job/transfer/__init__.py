"""Studies copied, exported and migrated."""
