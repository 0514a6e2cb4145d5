"""Training for robustness: certified losses, adversarial training, Lipschitz and flatness penalties."""
