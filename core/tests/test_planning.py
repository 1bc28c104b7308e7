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


ASKING = ADAPTER.replace("{capabilities}", "return Capabilities('toy', dict.fromkeys(run.components('k')[0].value))")
OFFERING = """
from budwood.api import Config, hookimpl

class Section(Config):
    word: str = "none"

class Plugin:
    @hookimpl
    def config_model(self):
        return Section

    @hookimpl
    def components(self, run, kind):
        return {kind: 0, run.name: 0, run.section.word: 0}
"""


def test_components_may_depend_on_the_run_and_on_their_plugins_own_section(site: Any) -> None:
    site.add("budwood-asking", "1.0", {"asking": "asking_x:Adapter"}, {"asking_x": ASKING})
    site.add("budwood-offering", "1.0", {"offering": "offering_x:Plugin"}, {"offering_x": OFFERING})
    plan = explain({"name": "mine", "trainer": {"kind": "asking"}, "plugins": {"offering": {"word": "said"}}})
    assert list(plan.capabilities.seams) == ["k", "mine", "said"]
