"""Tests of the recipes share a module of stand-ins."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
