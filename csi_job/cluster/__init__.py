"""The stages on Kubernetes: run, scale, check, fetch."""
