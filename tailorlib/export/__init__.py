"""Export: a tailored model as a folder that transformers loads."""

from tailorlib.export.card import CardInfo
from tailorlib.export.export import export_model

__all__ = ["CardInfo", "export_model"]
