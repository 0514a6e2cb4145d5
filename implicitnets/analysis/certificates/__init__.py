"""Certified robustness: what holds for every input within a radius of a given one."""
