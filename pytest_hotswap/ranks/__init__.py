"""Deployments over several processes: pytest is the controller, and each law is judged on every rank."""
