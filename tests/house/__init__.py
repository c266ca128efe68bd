"""Tests of the structure: who imports whom."""
