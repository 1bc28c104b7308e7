"""Makes ``in_two`` and ``rowwise`` importable from the tests of this folder, which pytest does not put on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
