"""Makes ``robots`` importable from the tests of this folder, which pytest does not put on the path, and its fixtures known."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

from robots import dataset, trainer

__all__ = ["dataset", "trainer"]
