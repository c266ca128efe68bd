"""``hotswap verify --tp``: the model is cut over processes, and the report says so."""

from __future__ import annotations

import json
from pathlib import Path

from hotswap.cli.verify.demo import write_demo
from tests.support.warm import verify


def test_a_model_that_is_cut_is_judged_on_every_rank(tmp_path: Path) -> None:
    base, adapters = write_demo(tmp_path, layers=1)
    laws = "placed or zero_recompiles and not (companions or sequence)"
    words = ["--tp", "2", "--backend", "eager", "--no-timing", "--json", "--", "-k", laws]
    ended = verify(*adapters[1:3], "--base", base, *words)
    document = json.loads(ended.stdout)
    assert document["request"]["tp"] == 2
    assert "--tp 2" in document["request"]["command"]
    (environment,) = document["environment"]
    assert (environment["ranks"], environment["distributed"]) == (2, "gloo")
    assert document["verdict"]["line"].endswith("; on 2 ranks (gloo)"), ended.stderr
    assert {test["outcome"] for test in document["tests"]} == {"passed", "skipped"}
    for adapter in document["adapters"]:
        assert adapter["recompiles"] == 0
        assert adapter["swap_seconds"] > 0
    assert document["swaps"] > 0
