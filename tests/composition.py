"""python tests/composition.py writes docs/composition.md: which plugins run on which trainer, which run together, and why not.

Every answer is that of ``budwood explain`` for the configuration with these sections on that trainer.
"""

from __future__ import annotations

import sys
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

from budwood.api import BudwoodError
from budwood.planning import explain

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "composition.md"

REACH = {"id": "budwood_reward_shaping.reach_budget:ReachBudget"}
TRAINERS: dict[str, dict[str, Any]] = {
    "SB3 PPO": {"trainer": {"kind": "sb3", "algo": "ppo", "total_timesteps": 1_000}, "env": REACH},
    "SB3 SAC": {"trainer": {"kind": "sb3", "algo": "sac", "total_timesteps": 1_000}, "env": REACH},
    "TRL GRPO": {"trainer": {"kind": "trl", "algo": "grpo", "model": "smollm2", "total_steps": 10}},
    "TRL DPO": {"trainer": {"kind": "trl", "algo": "dpo", "model": "smollm2", "total_steps": 10}},
    "LeRobot offline": {"trainer": {"kind": "lerobot", "algo": "offline", "total_steps": 8, "policy": {"type": "act"}}},
    "LeRobot online": {"trainer": {"kind": "lerobot", "algo": "online", "total_steps": 8}, "env": {"type": "pusht"}},
}
FILES = {"trl": {"train": "rows.jsonl"}, "lerobot": {"repo_id": "local/demonstrations", "root": "demonstrations"}}

OUTER = {"steps": 2, "inner_iterations": 2}
SHAPING: dict[str, dict[str, Any]] = {
    "SB3 PPO": {"terms": ["speed", "effort"], "criteria": ["distance"], "outer": OUTER},
    "SB3 SAC": {
        "terms": ["speed", "effort"],
        "criteria": ["distance"],
        "weights": {"scale": None},
        "outer": {"steps": 2, "inner_steps": 100, "estimator": "score"},
    },
    "TRL": {"terms": [{"name": "form", "info": "trl.think_format_reward"}], "weights": {"scale": None}, "outer": None},
    "LeRobot": {"terms": [{"name": "near", "info": "coverage"}], "weights": {"scale": None}, "outer": None},
}
SECTIONS: dict[str, dict[str, Any]] = {
    "flow_rl": {},
    "flow_vla": {},
    "lcqa_selector": {"rows": "mined.jsonl", "stages": [{"name": "recall", "red": 4, "prompt": "Choose."}]},
    "reward_shaping": {},
}
"""A section for every plugin that is no adapter."""
ADAPTERS = {"sb3", "trl", "lerobot", "isaac"}


def configuration(trainer: str, plugins: tuple[str, ...], policy: str) -> dict[str, Any]:
    """The smallest one in which each of ``plugins`` has what it needs of this trainer."""
    made = {"name": "pair", "device": "cpu", **TRAINERS[trainer]}
    kind, algo = made["trainer"]["kind"], made["trainer"]["algo"]
    sections = {name: SECTIONS[name] for name in plugins}
    if "reward_shaping" in plugins:
        sections["reward_shaping"] = SHAPING.get(trainer) or SHAPING[trainer.split()[0]]
        if algo == "grpo":
            made["trainer"] = {**made["trainer"], "rewards": {"think_format_reward": 1.0}}
    if algo == "online":
        made["trainer"] = {**made["trainer"], "policy": {"path": policy}}
    elif kind in FILES and "lcqa_selector" not in plugins:
        made["dataset"] = FILES[kind]
    return {**made, "plugins": sections}


def answers(policy: str) -> dict[tuple[str, tuple[str, ...]], str]:
    """(trainer, plugins) -> "" where they run, else the first reason that ``explain`` gives."""
    found = {}
    for trainer in TRAINERS:
        for count in (1, 2):
            for plugins in combinations(SECTIONS, count):
                try:
                    explain(configuration(trainer, plugins, policy))
                    found[trainer, plugins] = ""
                except BudwoodError as error:
                    found[trainer, plugins] = _reason(error)
    return found


def _reason(error: BudwoodError) -> str:
    first = error.problems[0] if error.problems else str(error)
    return first.partition(". ")[0].partition(" [")[0]


def page(found: dict[tuple[str, tuple[str, ...]], str]) -> str:
    """The page: a table of plugins, a table of pairs, and the reasons that both refer to by number."""
    reasons: dict[str, int] = {}

    def cell(trainer: str, plugins: tuple[str, ...]) -> str:
        if len(plugins) > 1 and any(found[trainer, (name,)] for name in plugins):
            return "/"
        reason = found[trainer, plugins]
        return f"no ({reasons.setdefault(reason, len(reasons) + 1)})" if reason else "yes"

    def table(count: int) -> list[str]:
        head = [f"| | {' | '.join(TRAINERS)} |", f"|---|{'---|' * len(TRAINERS)}"]
        rows = list(combinations(SECTIONS, count))
        return head + [f"| `{'`, `'.join(row)}` | {' | '.join(cell(t, row) for t in TRAINERS)} |" for row in rows]

    plugins, pairs = table(1), table(2)
    return "\n".join(
        [
            "# What runs together",
            "",
            "Written by `python tests/composition.py`; a test asks again and compares. Every cell is the answer of",
            "`budwood explain` to a small configuration with these plugins on that trainer: *yes*, or the number of the",
            "reason. What is refused is refused before anything is trained. Pairs that say *yes* are also trained, stopped and",
            "resumed to the same numbers: `tests/test_composition.py` on Stable-Baselines3,",
            "`plugins/lcqa_selector/tests/test_selector_plugin.py` on TRL.",
            "",
            "## Plugins",
            "",
            *plugins,
            "",
            "## Pairs",
            "",
            "/: one of the two does not run on this trainer, as above.",
            "",
            *pairs,
            "",
            "## Reasons",
            "",
            "The first that is found; `explain` lists them all, and what to do.",
            "",
            *(f"{number}. {reason.replace('<', '&lt;')}" for reason, number in reasons.items()),
            "",
        ]
    )


if __name__ == "__main__":
    from budwood_lerobot.tiny import write

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        text = page(answers(folder)).replace(folder, "POLICY")
    if "--print" in sys.argv:
        print(text)
    else:
        PAGE.write_text(text)
