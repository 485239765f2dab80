"""Scripts that tests run in processes of their own: devices and precision are fixed once jax starts."""

import os
import subprocess
import sys


def environment(num_devices: int = 1) -> dict[str, str]:
  """What such a process needs: this one's path, and the CPU as so many devices."""
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num_devices}"
  return os.environ | {
      'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.pathsep.join(sys.path)}


def in_four_devices(script: str, *arguments: str) -> str:
  """What a script prints in a process that sees four devices, which may wait for each other for ever."""
  return subprocess.run([sys.executable, '-c', script, *arguments], check=True, text=True, timeout=400,
                        stdout=subprocess.PIPE, env=environment(4)).stdout
