"""The built-in plugins of tailorlib, on its public names only."""
