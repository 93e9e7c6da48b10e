"""Built-in warm starts."""
