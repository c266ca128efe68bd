"""Adapters that tests make: described as data, or derived from a good one."""
