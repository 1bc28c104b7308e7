"""The precision of a run: what accelerate is told, whatever a process or its variables have said before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from budwood.api import ConfigError

pytest.importorskip("lerobot")
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from budwood_lerobot.devices import accelerator_of, check_precision

ACT = SimpleNamespace(type="act", device="cpu", use_amp=False)


def policy(dtype: str) -> Any:
    return SimpleNamespace(type="pi0", device="cpu", use_amp=False, dtype=dtype)


def run(precision: str) -> Any:
    return SimpleNamespace(config={"precision": precision})


@pytest.fixture(autouse=True)
def _process_that_has_just_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})


@pytest.mark.parametrize(
    ("native", "precision", "mixed"),
    [
        (ACT, "fp32", "no"),
        (ACT, "bf16", "bf16"),
        (policy("float32"), "fp32", "no"),
        (policy("bfloat16"), "fp32", "bf16"),
        (policy("bfloat16"), "bf16", "bf16"),
    ],
)
def test_a_variable_decides_nothing(native: Any, precision: str, mixed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16" if mixed == "no" else "no")
    assert accelerator_of(native, run(precision)).mixed_precision == mixed


def test_an_earlier_run_in_another_precision_is_told() -> None:
    Accelerator(mixed_precision="bf16", cpu=True)
    with pytest.raises(ConfigError, match=r"precision: accelerate keeps .* than cpu and no") as caught:
        accelerator_of(ACT, run("fp32"))
    assert "\n" not in str(caught.value)
    assert accelerator_of(ACT, run("bf16")).mixed_precision == "bf16"


def test_bf16_that_would_change_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the precision of pi0 is its own matter.*trainer\.policy\.dtype: bfloat16"):
        accelerator_of(policy("float32"), run("bf16"))
    for native in (ACT, None, policy("float32")):
        with pytest.raises(ConfigError, match="bf16 would change nothing"):
            check_precision("bf16", native)
        check_precision("tf32", native)
    check_precision("bf16", policy("bfloat16"))
