"""Tests of the contract and of the laws in it."""
