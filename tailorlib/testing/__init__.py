"""Contract tests and tiny models, for plugin authors and for the library itself."""
