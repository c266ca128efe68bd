"""What user code does with adapters around ``torch.compile``, found without running it; no torch."""
