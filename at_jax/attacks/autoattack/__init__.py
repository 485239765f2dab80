"""AutoAttack: an ensemble of parameter-free attacks, and the worst case over them for each example.

`driver` runs the evaluation; `components` lists the attacks of each version; `batching` refills a compiled
batch; `state_file` lets a killed evaluation resume; `devices` and `multihost` divide the examples.
"""

from at_jax.attacks.autoattack.audit import Audit
from at_jax.attacks.autoattack.batching import Passes
from at_jax.attacks.autoattack.driver import AutoAttackResult, Progress, autoattack

__all__ = ['Audit', 'AutoAttackResult', 'Passes', 'Progress', 'autoattack']
