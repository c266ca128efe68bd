"""Tests of the formats of adapter files."""
