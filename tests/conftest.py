"""Marks of the test suite, and the seed that makes hypothesis draw the same examples in every run."""

import hypothesis
import pytest

collect_ignore = ['benchmarks']  # commands, not tests

hypothesis.settings.register_profile('default', deadline=None, derandomize=True)
hypothesis.settings.load_profile('default')


def pytest_configure(config: pytest.Config) -> None:
  config.addinivalue_line('markers', 'long: takes minutes; launch/test.sh --all runs it')
  config.addinivalue_line('markers', 'oldest: also runs with the oldest jax that is supported')
