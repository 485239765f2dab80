"""AutoAttack: four attacks without parameters to tune, and their worst case for each example.

`driver` is the loop, `components` the attacks of each version, `batching` the batches, `state_file` the
file that a killed evaluation resumes from, `devices` and `multihost` how the examples are shared.
"""

from at_jax.attacks.autoattack.driver import AutoAttackResult, Progress, autoattack

__all__ = ['AutoAttackResult', 'Progress', 'autoattack']
