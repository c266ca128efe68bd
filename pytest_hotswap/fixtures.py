"""What the plugin's fixtures hand out; torch and peft are imported inside functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hotswap.subjects.origin import subject_at_run
from pytest_hotswap.subjects.protocol import missing

if TYPE_CHECKING:
    from torch import nn

    from pytest_hotswap.contract.deployment import Broken, Deployment


def bring_up(
    request: pytest.FixtureRequest, factory: pytest.TempPathFactory
) -> Iterator[Deployment | Broken]:
    """Build the deployment of a contract class between two resets of Dynamo; call it once.

    What keeps it from that is one sentence, not one a law: a Broken is yielded then.
    """
    import torch

    from pytest_hotswap.contract.deployment import Broken, Deployment, brief

    torch._dynamo.reset()
    subject = subject_at_run(request.cls, request)
    if lacking := missing(subject):
        pytest.fail(
            f"{type(subject).__name__} has no {', '.join(lacking)}; derive it from pytest_hotswap.Subject, "
            "or see pytest_hotswap.SubjectProtocol",
            pytrace=False,
        )
    problem, remedy = "cannot be brought up", ""
    try:
        deployment = Deployment(subject, factory.mktemp("hotswap"))
        problem = "has a base model that does not run on the inputs"
        remedy = "; give the arguments of its forward by inputs(), or --inputs of hotswap verify"
        deployment.run(deployment.base)
        problem, remedy = "cannot be brought up", ""
        _ = deployment.compiled
    except Exception as error:  # whatever the subject raises
        torch._dynamo.reset()
        kind = "" if isinstance(error, pytest.UsageError) else f"{type(error).__name__}: "
        text = f"{type(subject).__name__} {problem}: {kind}{brief(error)}{remedy}"
        yield Broken(text)
        return
    yield deployment
    deployment.close()


class AdapterFactory:
    """Makes adapter folders for a base model; what is made depends on the arguments only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self,
        model: nn.Module,
        *,
        rank: int = 4,
        alpha: float = 8,
        target_modules: str | Sequence[str] = "all-linear",
        seed: int = 0,
        name: str | None = None,
        **config: Any,
    ) -> Path:
        """Save a PEFT adapter with random weights for ``model``, which is left as it was.

        ``config`` goes to peft.LoraConfig. The folder's name is ``name``, or counts up.
        """
        import copy

        import torch
        from peft import LoraConfig, get_peft_model

        targets = target_modules if isinstance(target_modules, str) else list(target_modules)
        lora_alpha: Any = alpha  # PEFT says int, and divides
        lora = LoraConfig(r=rank, lora_alpha=lora_alpha, target_modules=targets, **config)
        adapted = get_peft_model(copy.deepcopy(model), lora)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, weight in adapted.named_parameters():
                if "lora_" in key:
                    values = torch.randn(weight.shape, generator=generator)
                    weight.copy_(values * (weight[0].numel() ** -0.5))
        folder = self.folder / (name or f"adapter-{len(list(self.folder.iterdir()))}")
        if folder.exists():
            raise FileExistsError(f"an adapter named {folder.name!r} was made already: {folder}")
        adapted.save_pretrained(str(folder), save_embedding_layers=False)
        return folder
