"""The search loop under Lightning."""
