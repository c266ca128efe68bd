"""Deployments over several processes: the laws on every rank, and what is said of a rank that fails."""
