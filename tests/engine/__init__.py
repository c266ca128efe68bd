"""Tests of what is done to a deployment."""
