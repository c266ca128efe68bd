"""Is it true: equivalence of outputs, fingerprints of models."""
