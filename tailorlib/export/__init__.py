"""Writing a tailored model to disk."""
