"""Built-in texts."""
