"""Tests of what torch.compile is seen to do."""
