"""Makers of models, adapter files and reports for the tests."""
