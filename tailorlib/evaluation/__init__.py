"""The evaluation engine: compiled requests, packed forward passes, scores."""
