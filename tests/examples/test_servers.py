"""The servers answer requests and the cluster verifies; ``make examples-test`` has FastAPI and Ray."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ["formal", "legal", "poetic", "terse"]
pytestmark = [
    pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not in this copy"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture
def surroundings(fleet: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """What the servers read, also in the processes that they start."""
    monkeypatch.setenv("FLEET", str(fleet))
    monkeypatch.setenv("BACKEND", "aot_eager")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES.parent), str(EXAMPLES)]))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield sys.modules
    for name in ("serving", "fastapi_server", "ray_serve", "ray_verify"):
        sys.modules.pop(name, None)


def expected(fleet: Path, name: str, tokens: list[int]) -> list[int]:
    """Continue greedily with PEFT's own load, without a swap, a cache or a compiler."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(fleet / "base").eval()
    model = PeftModel.from_pretrained(base, fleet / "adapters" / name).eval()
    found = [*tokens]
    for _ in range(4):
        with torch.no_grad():
            found.append(int(model(input_ids=torch.tensor([found])).logits[0, -1].argmax()))
    return found[len(tokens) :]


@pytest.mark.usefixtures("surroundings")
def test_fastapi_serves_every_adapter_and_takes_more(fleet: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="runs in make examples-test")
    from fastapi.testclient import TestClient
    from fastapi_server import app  # type: ignore[import-not-found]

    from hotswap import watch_compiles

    def complete(name: str) -> Any:
        return client.post("/complete", json={"adapter": name, "tokens": [1, 2, 3]})

    with TestClient(app) as client:
        assert client.get("/health").json()["staged"] == NAMES
        with watch_compiles() as log:
            for name in [*NAMES, "formal"]:
                assert complete(name).json()["tokens"] == expected(fleet, name, [1, 2, 3])
        assert log.total_hits
        assert not log.recompiles
        assert complete("nobody").status_code == 404
        refused = client.put("/adapters/new", params={"path": str(tmp_path)})
        assert refused.status_code == 422
        assert "HSW002" in refused.json()["detail"][0]
        added = client.put("/adapters/new", params={"path": str(fleet / "adapters" / "terse")})
        assert complete("new").json()["digest"] == added.json()["digest"]
        assert client.get("/health").json()["active"] == "new"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="runs in make examples-test")
    path = os.pathsep.join([str(EXAMPLES.parent), str(EXAMPLES)])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    yield ray
    ray.shutdown()


@pytest.mark.usefixtures("surroundings", "cluster")
def test_ray_serve_stages_what_requests_name(fleet: Path) -> None:
    import httpx
    from ray import serve
    from ray_serve import Adapters  # type: ignore[import-not-found]

    environment = {name: os.environ[name] for name in ("FLEET", "BACKEND", "PYTHONPATH")}
    deployed = Adapters.options(ray_actor_options={"runtime_env": {"env_vars": environment}})
    serve.run(deployed.bind())
    try:
        for name in [*NAMES, "formal"]:
            headers = {"serve_multiplexed_model_id": name}
            url = "http://127.0.0.1:8000/"
            found = httpx.post(url, json=[1, 2, 3], headers=headers, timeout=60).json()
            assert found["tokens"] == expected(fleet, name, [1, 2, 3])
            assert name in found["staged"]
            assert len(found["staged"]) <= 2
    finally:
        serve.shutdown()


@pytest.mark.usefixtures("surroundings", "cluster")
def test_ray_verifies_a_fleet_in_shards(fleet: Path, tmp_path: Path) -> None:
    import ray_verify  # type: ignore[import-not-found]

    adapters = [str(fleet / "adapters" / name) for name in NAMES]
    some = ["--backend", "eager", "--", "-k", "rank_bound or equals"]
    code = ray_verify.main(str(fleet / "base"), str(tmp_path / "out"), *adapters, options=some)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert sorted(each["name"] for each in report["adapters"]) == NAMES
    passed = {law["law"] for law in report["laws"] if law["state"] == "passed"}
    assert passed == {"rank-bound", "swap-equals-load"}
    assert code == 1  # the other laws did not run
