"""From a configuration to a plan: what an adapter must answer."""

from __future__ import annotations

from typing import Any

import pytest

from budwood.api import PluginError
from budwood.planning import explain

ADAPTER = """
from typing import Any
from budwood.api import Capabilities, Config, hookimpl

class Both(Config):
    trainer: Any
    env: Any = None

class Adapter:
    @hookimpl
    def config_model(self):
        return Both

    @hookimpl
    def capabilities(self, run, target):
        {capabilities}

    @hookimpl
    def build_trainer(self, run, contributions):
        return None
"""


@pytest.mark.parametrize(
    ("capabilities", "hook"), [("return None", "capabilities"), ("return Capabilities('toy', {})", "build_trainer")]
)
def test_an_adapter_that_answers_nothing_is_named(site: Any, capabilities: str, hook: str) -> None:
    source = ADAPTER.replace("{capabilities}", capabilities)
    site.add("budwood-toy", "1.0", {"toy": f"toy_{hook}:Adapter"}, {f"toy_{hook}": source})
    with pytest.raises(PluginError) as caught:
        explain({"trainer": {"kind": "toy"}}).build_trainer()
    assert str(caught.value) == (
        f"trainer.kind: its hook {hook} gave nothing for this run. Asked for by budwood-toy 1.0. "
        "Report this to its author."
    )
