"""Robust accuracy of the deployed model, next to the released protocol of a paper."""

from at_jax.evaluation.robustness import Report, evaluate

__all__ = ['Report', 'evaluate']
