"""Certified robustness."""
