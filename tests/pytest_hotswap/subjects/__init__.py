"""Tests of the subjects, and of where a contract class has its own from."""
