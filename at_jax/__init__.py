"""Adversarial training in JAX: attacks, robust training, and its analysis."""

__version__ = '0.1.0'
