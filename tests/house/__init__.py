"""Tests of the structure: who imports whom, how long a module is, what a folder says of itself."""
