import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "models"))

from own_code_cases import custom, modules_cache, row  # noqa: F401 - fixtures
