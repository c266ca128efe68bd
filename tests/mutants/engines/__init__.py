"""The faulty engines by kind of defect; each is what somebody could write, and has one."""

from tests.mutants.engines import (  # noqa: F401, I001 (each adds its own to the list, in this order)
    traces,
    values,
    effects,
    bystanders,
    failures,
    storage,
    compiles,
    preparation,
    refusals,
    knobs,
    envelopes,
    moments,
    plain_values,
    plain_compiles,
    plain_storage,
    plain_failures,
    plain_knobs,
    plain_preparation,
    plain_surroundings,
    plain_alike,
    wholes,
)
from tests.mutants.registry import ENGINES

__all__ = ["ENGINES"]
