"""The curve of a plan: target rank against memory and adapters admitted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hotswap.adapters.plan import SwapPlan


@dataclass(frozen=True, slots=True)
class Point:
    """What a target rank costs and admits: bytes of one prepared adapter, and how many adapters fit.

    ``uniform`` is with that rank in every module, ``fitted`` with no module above what the plan needs there.
    """

    target_rank: int
    uniform: int
    fitted: int
    admitted: int


def curve(plan: SwapPlan) -> tuple[Point, ...]:
    """One point for each largest rank of an adapter: between them nothing more is admitted.

    An adapter that conflicts with the others is admitted at no rank.
    """
    refused = {finding.where.partition("::")[0] for finding in plan.conflicts}
    fitting = [adapter.rank for adapter in plan.adapters if adapter.path not in refused]
    ranks = sorted({adapter.rank for adapter in plan.adapters if adapter.rank})
    return tuple(point(plan, rank, fitting) for rank in ranks)


def point(plan: SwapPlan, rank: int, fitting: Iterable[int]) -> Point:
    """What one target rank costs, and how many of the ranks that fit it admits."""
    capped = {name: min(own, rank) for name, own in plan.ranks.items()}
    uniform = dict.fromkeys(plan.modules, rank)
    admitted = sum(own <= rank for own in fitting)
    return Point(rank, plan.bytes_at(uniform), plan.bytes_at(capped), admitted)


def bank_bytes(plan: SwapPlan, adapters: int, *, uniform: bool = False) -> int:
    """The bytes of a model prepared with the plan and a bank of some adapters: each is a padded image."""
    return (plan.uniform_bytes if uniform else plan.padded_bytes) * (adapters + 1)
