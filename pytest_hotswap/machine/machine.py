"""State machines over a subject: Hypothesis looks for the shortest sequence that breaks a law."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, event, settings, target
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pytest_hotswap.adapters.derived import DEFECTS
from pytest_hotswap.adapters.described import AdapterDescription, described
from pytest_hotswap.machine.order import OrderSteps
from pytest_hotswap.machine.progress import Progress
from pytest_hotswap.machine.script import script
from pytest_hotswap.machine.steps import Steps
from pytest_hotswap.strategies import adapter_descriptions
from pytest_hotswap.subjects.base import Subject

ORDER_EXAMPLES = 20
"""Examples of OrderMachine: each may compile, which takes seconds."""


class _Machine(RuleBasedStateMachine):
    """Takes steps, writes them down, and attaches the script to what goes wrong."""

    steps: ClassVar[Any]
    tell: ClassVar[Callable[[str], None]]

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[str] = []
        type(self).tell("")
        self.steps.start()

    def _take(self, name: str, *arguments: Any) -> None:
        event(name)
        type(self).tell(name)
        self._lines.append(f"{name}({', '.join(map(repr, arguments))})")
        try:
            getattr(self.steps, name)(*arguments)
        except Exception as error:
            found = script(type(self.steps), self.steps.subject, self._lines, error)
            error.hotswap_script = found  # type: ignore[attr-defined]
            error.add_note(f"\nThis script reproduces it:\n\n{found}")
            raise


def swap_machine(steps: Steps) -> type[_Machine]:
    """The machine of a compiled deployment, over the modules and ranks of its plan."""
    plan = steps.deployment.plan
    adapters = adapter_descriptions(max_rank=plan.target_rank, modules=list(described(plan)))
    if known := steps.companions():
        adapters |= st.sampled_from(known)
    unsupported = steps.deployment.subject.unsupported

    class SwapMachine(_Machine):
        """Swaps, failures and knobs in any order, from the compiled snapshot."""

        def teardown(self) -> None:
            target(min(self.steps.error, 1e6), label="error as a share of the tolerance")

        @rule()
        def run(self) -> None:
            self._take("run")

        @rule(adapter=adapters)
        def swap(self, adapter: AdapterDescription) -> None:
            event(f"swap: {'some modules' if adapter.without else 'every module'}")
            self._take("swap", adapter)

        @rule(adapter=adapters, defect=st.sampled_from(DEFECTS))
        def swap_broken(self, adapter: AdapterDescription, defect: str) -> None:
            event(f"swap_broken: {defect}")
            if "swap-atomic" not in unsupported:
                self._take("swap_broken", adapter, defect)

        @rule()
        def swap_to_none(self) -> None:
            if "swap-has-effect[none]" not in unsupported:
                self._take("swap_to_none")

        @rule(scale=st.sampled_from([0.0, 0.5, 2.0]))
        def set_scale(self, scale: float) -> None:
            self._knob("set_scale", scale)

        @rule()
        def disable_and_enable(self) -> None:
            self._knob("disable_and_enable")

        @rule()
        def save_and_reload(self) -> None:
            self._knob("save_and_reload")

        @rule(adapter=adapters)
        def add_adapter(self, adapter: AdapterDescription) -> None:
            if "swap-isolated" not in unsupported:
                self._take("add_adapter", adapter)

        @rule(copies=st.integers(2, 3))
        def batch(self, copies: int) -> None:
            self._take("batch", copies)

        def _knob(self, name: str, *arguments: Any) -> None:
            if "knobs-follow" not in unsupported:
                self._take(name, *arguments)

    SwapMachine.steps = steps
    return SwapMachine


class OrderMachine(_Machine):
    """Loads, then prepares, compiles, swaps and starts over in any order."""

    @initialize()
    def first_load(self) -> None:
        self._take("load")

    @precondition(lambda self: self.steps.prepared and self.steps.compiled)
    @rule()
    def load(self) -> None:
        self._take("load")

    @rule()
    def prepare(self) -> None:
        self._take("prepare")

    @precondition(lambda self: not self.steps.compiled)
    @rule()
    def compile(self) -> None:
        self._take("compile")

    @rule(index=st.integers(0, 1))
    def swap(self, index: int) -> None:
        self._take("swap", index)


def run_hotswap_machine(subject: Subject, *, settings: settings | None = None) -> None:
    """Search for a sequence of steps that breaks a law: first of swaps, then of the order of set-up.

    A failure carries a script that reproduces it without Hypothesis or pytest. ``settings`` are
    Hypothesis' own; how many examples and steps are drawn is its profile's business.
    """
    from pytest_hotswap.reporting import drop_trace_capture

    drop_trace_capture()
    given = _unhurried(settings)
    steps = Steps(subject)
    try:
        _search("swaps", swap_machine(steps), given)
    finally:
        steps.close()
    order = OrderSteps(subject)
    machine = type("OrderMachine", (OrderMachine,), {"steps": order})
    few = min(given.max_examples, ORDER_EXAMPLES)
    try:
        _search(
            "order of set-up", machine, _unhurried(given, max_examples=few, stateful_step_count=6)
        )
    finally:
        order.close()


def _search(what: str, machine: type[_Machine], given: settings) -> None:
    with Progress(what, given.max_examples).shown() as tell:
        machine.tell = staticmethod(tell)
        run_state_machine_as_test(machine, settings=given)


def _unhurried(given: settings | None, **fewer: Any) -> settings:
    unhealthy = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    base = given or settings()
    phases = [phase for phase in base.phases if phase is not Phase.explain]  # it traces every line
    return settings(base, deadline=None, phases=phases, suppress_health_check=unhealthy, **fewer)
