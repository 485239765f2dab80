"""`python -m at_jax.config` prints the table of all configuration fields, in Markdown."""

from at_jax import environment
from at_jax.config import fields

if __name__ == '__main__':
  print(environment.printable(fields.table()))
