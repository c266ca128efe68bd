"""What is said of code that is not checked, and of comments that keep it from being checked."""

from __future__ import annotations

from hotswap.lint.rules.rule import Outcome, rule
from hotswap.lint.typestate import Event


@rule("HSW200")
def not_analysed(event: Event) -> Outcome:
    """A file, or a part of it, was not analysed: mistakes in it are not found.

    It is no Python (a syntax error, a broken notebook or cell, another encoding), or it does more than is
    followed. A warning: the command fails because of it with ``--strict`` only.

    Bad:
        pipe.enable_lora_hotswap(target_rank=64

    Good:
        pipe.enable_lora_hotswap(target_rank=64)
    """
    return None


@rule("HSW293", default=False)
def unused_noqa(event: Event) -> Outcome:
    """A ``# noqa`` comment names a rule of the linter that finds nothing there.

    Bad:
        pipe.enable_lora_hotswap(target_rank=64)  # noqa: HSW203

    Good:
        pipe.enable_lora_hotswap(target_rank=64)
    """
    return None
