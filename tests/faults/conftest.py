"""What the tests of this folder share: what lies beside them, and fixtures."""

import sys
from pathlib import Path

from damaged_store import bench

sys.path.insert(0, str(Path(__file__).parent))

__all__ = ["bench"]
