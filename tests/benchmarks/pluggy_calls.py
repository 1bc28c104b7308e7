"""What a hook call costs against calling what a hook returned: why pluggy runs at set-up only.

python tests/benchmarks/pluggy_calls.py
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from importlib import metadata

import pluggy

CALLS, REPEATS = 2_000, 60
spec, impl = pluggy.HookspecMarker("bench"), pluggy.HookimplMarker("bench")


class Spec:
    @spec
    def reward(self, obs: float, action: float) -> float: ...

    @spec(firstresult=True)
    def owner(self, obs: float, action: float) -> float | None: ...


class Plugin:
    @impl
    def reward(self, obs: float, action: float) -> float:
        return obs

    @impl
    def owner(self, obs: float, action: float) -> float | None:
        return None


class Wrapper:
    @impl(wrapper=True)
    def reward(self, obs: float, action: float):
        return (yield)


def manager(plugins: int, wrappers: int = 0) -> pluggy.PluginManager:
    built = pluggy.PluginManager("bench")
    built.add_hookspecs(Spec)
    for kind, count in ((Plugin, plugins), (Wrapper, wrappers)):
        for _ in range(count):
            built.register(kind())
    built.check_pending()
    return built


def nanoseconds(call: Callable[[], object]) -> float:
    """CPU time of one call, the best of ``REPEATS`` batches of ``CALLS``."""
    best = float("inf")
    for _ in range(REPEATS):
        started = time.process_time_ns()
        for _ in range(CALLS):
            call()
        best = min(best, (time.process_time_ns() - started) / CALLS)
    return best


def main() -> None:
    print(f"pluggy {metadata.version('pluggy')}, Python {platform.python_version()}; ns of CPU time a call")
    bound = [Plugin().reward for _ in range(3)]
    print(f"{'plain bound method':32}{nanoseconds(lambda: bound[0](obs=1.0, action=2.0)):8.0f}")
    print(f"{'3 bound methods in a loop':32}{nanoseconds(lambda: [call(1.0, 2.0) for call in bound]):8.0f}")
    for plugins, wrappers in ((0, 0), (1, 0), (3, 0), (8, 0), (1, 1), (3, 3)):
        hook = manager(plugins, wrappers).hook.reward
        name = f"hook, {plugins} plugins, {wrappers} wrappers"
        print(f"{name:32}{nanoseconds(lambda hook=hook: hook(obs=1.0, action=2.0)):8.0f}")
    owner = manager(8).hook.owner
    print(f"{'first result, 8 answer None':32}{nanoseconds(lambda: owner(obs=1.0, action=2.0)):8.0f}")


if __name__ == "__main__":
    main()
