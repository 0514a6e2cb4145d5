"""Adversarial inputs: what refutes that a model is robust."""
