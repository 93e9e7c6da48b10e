"""LayerSelection: take a layer as it is."""

from __future__ import annotations

from tailorlib import Operation


class LayerSelection(Operation):
    """A kept layer is taken from exactly one model of the family, by reference: nothing is computed."""
