"""Robust accuracy of the deployed model, and of a paper's released protocol."""

from at_jax.evaluation.robustness import Report, evaluate

__all__ = ['Report', 'evaluate']
