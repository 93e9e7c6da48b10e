import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
sys.path.insert(0, str(Path(__file__).parent))

from interchange_cases import families, llama  # noqa: F401
from model_cases import one_thread  # noqa: F401
