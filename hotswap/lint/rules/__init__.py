"""What is wrong with a step of a program: one function a rule, whose docstring is its documentation."""

from hotswap.lint.rules import preparation, swaps, changes, limits  # noqa: F401, I001  in this order they look at a step
from hotswap.lint.rules.rule import RULES, Rule, table

__all__ = ["RULES", "Rule", "table"]
