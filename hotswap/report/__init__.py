"""Findings and verification records as text."""
