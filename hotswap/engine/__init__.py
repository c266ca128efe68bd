"""What is done to a model: prepare, swap, load."""
