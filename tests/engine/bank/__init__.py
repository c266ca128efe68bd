"""Tests of adapters that are kept ready for a model."""
