"""The laws as a class of tests."""
