"""What adapter files say; no torch."""
