"""Deployments under test."""
