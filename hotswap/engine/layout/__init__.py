"""Where an adapter's tensors lie in a prepared model."""
