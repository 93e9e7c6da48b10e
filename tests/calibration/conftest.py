import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))
sys.path.insert(0, str(Path(__file__).parent))

from model_cases import case, case_family, folders, llama, one_thread  # noqa: F401 - fixtures
