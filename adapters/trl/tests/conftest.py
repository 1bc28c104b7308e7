"""Makes ``tiny`` importable from the tests of this folder, which pytest does not put on the path, and its fixtures known."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from tiny import model_folder, rows_file, trainer, words

__all__ = ["model_folder", "rows_file", "trainer", "words"]
