"""What a law that fails prints: the failure, what to do, and a script that reproduces it by itself."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from hotswap.report.laws import REMEDIES
from pytest_hotswap.contract.failure import what_to_do
from pytest_hotswap.reporting import drop_trace_capture
from tests.support import warm
from tests.support.models import write_adapter

SUBJECT = """
import torch
from torch import nn
from pytest_hotswap import HotswapContract, ReferenceSubject


class Stuck(ReferenceSubject):
    adapters = "adapters/*"
    companions = "none"

    def base_model(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(6, 5)).eval()

    def inputs(self):
        return {"input": torch.linspace(-1, 1, 12).reshape(2, 6)}

    def swap(self, model, adapter):
        if adapter is None:
            raise AssertionError("the subject's own")
        if adapter.name != "two":
            super().swap(model, adapter)


class TestStuck(HotswapContract):
    subject = Stuck
"""


def test_it_says_what_to_do_without_frames_and_its_script_fails_as_it_did(
    pytester: pytest.Pytester,
) -> None:
    place = pytester.path
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(6, 5)).eval()
    for seed, name in enumerate(("one", "two"), start=1):
        write_adapter(place / "adapters" / name, base, seed=seed, r=seed + 1, target_modules=["0"])
    pytester.makepyfile(test_stuck=SUBJECT)
    words = ["-k", "(equals_load and two and not placed and not float64) or effect__none"]
    done = warm.run_pytest(pytester, "--hotswap-report", "out.jsonl", *words)
    printed = done.stdout.str()
    assert "swap-equals-load: two: output 0 differs by" in printed
    assert REMEDIES["swap-equals-load"] in printed
    node = "test_stuck.py::TestStuck::test_swap_equals_load[two]"
    assert f"just this one again: pytest '{node}'" in printed
    assert "__trace" not in printed  # of torch: hundreds of lines
    assert "def test_swap_equals_load" not in printed
    assert "assert False" not in printed
    assert 'raise AssertionError("the subject\'s own")' in printed  # its frames are of use
    lines = [json.loads(line) for line in (place / "out.jsonl").read_text().splitlines()]
    (script,) = [line["script"] for line in lines if "script" in line]
    assert "repeat(subject, 'test_swap_equals_load', adapter='two')" in script
    again = warm.run([sys.executable, "-c", script], cwd=Path("/"))
    assert again.returncode == 1
    assert "AssertionError: swap-equals-load: two: output 0 differs by" in again.stderr
    good = script.replace("adapter='two'", "adapter='one'")
    assert warm.run([sys.executable, "-c", good], cwd=Path("/")).returncode == 0


def test_what_to_do_is_said_of_the_law_that_is_broken() -> None:
    test: Any = SimpleNamespace(name="test_zero_recompiles__any_swap_sequence", nodeid="it")
    for law in ("swap-equals-load", "zero-recompiles"):
        told = what_to_do(test, AssertionError(f"{law}: it is wrong"))
        assert told.splitlines() == [REMEDIES[law], "just this one again: pytest 'it'"]


def test_torchs_trace_is_not_captured_and_other_logs_are(caplog: pytest.LogCaptureFixture) -> None:
    trace, kept = logging.getLogger("torch.__trace"), logging.StreamHandler()
    trace.addHandler(caplog.handler)
    trace.addHandler(kept)
    try:
        drop_trace_capture()
        assert caplog.handler not in trace.handlers
        assert kept in trace.handlers
    finally:
        trace.removeHandler(kept)
