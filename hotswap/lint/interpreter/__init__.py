"""Run a program on abstract values, and follow each model through it."""
