"""Export: a tailored model as a folder that transformers loads."""

from tailorlib.export.card import CardInfo
from tailorlib.export.export import export_model
from tailorlib.export.verify import VerifyReport, verify_export

__all__ = ["CardInfo", "VerifyReport", "export_model", "verify_export"]
