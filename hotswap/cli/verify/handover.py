"""What ``hotswap verify`` tells the pytest that it starts; the plugin pytest_hotswap.evidence reads it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

COLLECTED = "collected"
"""The file beside the settings in which the plugin says how many tests there are."""


@dataclass(frozen=True, slots=True)
class Handover:
    """How the deployment is to be run; ``deadline`` is in seconds since the epoch."""

    plan: str | None = None
    device: str | None = None
    dtype: str | None = None
    compile_mode: str | None = None
    regional: bool = False
    inputs: str | None = None
    deadline: float | None = None
    budget: str = ""
    refused: tuple[str, ...] = ()
    own_adapters: bool = False  # the subject's: it is asked for them, and their files are read
    package: str | None = None
    ranks: int | None = None
    plan_file: str | None = None  # the user's: ``plan`` is a copy that does not outlive the command
    temporary: bool = False  # the model and the adapters do not outlive it either

    def save(self, path: Path) -> None:
        """Write them for the plugin to read."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: str) -> Handover:
        """Read what ``save`` wrote."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
