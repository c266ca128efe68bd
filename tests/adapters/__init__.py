"""Tests of what adapter files say."""
