"""What torch.compile did."""
