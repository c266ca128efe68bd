"""PEFT's signatures and classes over this engine."""
