"""The behaviour of the trainer's library that docs/seams/sb3.md states: widening a pin starts here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parent / "benchmarks" / "sb3_facts.py"
spec = importlib.util.spec_from_file_location("sb3_facts", PATH)
assert spec is not None
assert spec.loader is not None
facts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(facts)


@pytest.mark.parametrize("fact", facts.FACTS, ids=lambda fact: fact.__name__)
def test_fact_holds(fact):
    holds, seen = fact()
    assert holds, f"{fact.__doc__} Seen: {seen}. Re-read the seam before widening the pin."
