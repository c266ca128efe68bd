"""Tests of the plugin, the contract and the subjects."""
