"""Model families: checkpoints, architectures, stitching."""

from tailorlib.models.family import ModelFamily

__all__ = ["ModelFamily"]
