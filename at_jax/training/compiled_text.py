"""Reads collectives and bytes of high-bandwidth memory (HBM) from the text of a compiled program.

The text is that of `jax.stages.Compiled.as_text`, XLA's HLO after all passes.
"""

import math
import re

_COLLECTIVE = re.compile(
    r'\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\('
    r'(?:.*\bchain_id="(\d+)")?')
_ENTRY = re.compile(r'^ENTRY ', re.MULTILINE)
_NAME = re.compile(r'%[\w.-]+')
_OPERATION = re.compile(r'\s+(?:ROOT )?(%[\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)')
_ARRAY = re.compile(r'\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?')
_OTHER_SPACE = 'S('  # in the layout of an array: S(1) is VMEM, S(2) semaphores, S(5) the host's memory
# They name what other operations wrote, or call computations that are not counted.
_NO_TRAFFIC = ('parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast', 'while', 'conditional')


def collectives(text: str) -> dict[str, int]:
  """Counts the collective operations of a compiled program.

  Args:
    text: the program.

  Returns:
    The number of each kind. An asynchronous one counts once: libtpu writes it again in each operation that it
    overlaps with, under one chain_id.

  Example:
    >>> collectives('a = f32[] all-reduce-start(b)\\n c = f32[] all-reduce-done(a)')
    {'all-reduce': 1}
  """
  found = _COLLECTIVE.findall(text)
  pieces = {(kind, chain) for kind, chain in found if chain}
  counted = [kind for kind, chain in found if not chain] + [kind for kind, _ in pieces]
  return {kind: counted.count(kind) for kind in sorted(set(counted))}


def hbm_bytes(text: str) -> int:
  """Adds the bytes that the operations of a program read from and write to HBM.

  These are the operands and the results of each operation of the entry computation, without arrays that the
  compiler placed in a TPU's own memory, VMEM. An array that is read or written in part counts whole, except
  what an asynchronous slice reads. Bodies of loops, branches of conditionals and padding do not count.

  Args:
    text: the program.

  Returns:
    Bytes of one execution on one device.

  Example:
    >>> hbm_bytes('''ENTRY %main {
    ...   %a = f32[256]{0} parameter(0)
    ...   %b = f32[256]{0:S(1)} negate(%a)
    ...   ROOT %c = f32[256]{0} negate(%b)
    ... }''')  # %a is read and %c written
    2048
  """
  results, total = {}, 0
  for name, result, kind, rest in _OPERATION.findall(text[_ENTRY.search(text).start():]):
    results[name] = moved = _arrays(result)
    if kind in _NO_TRAFFIC or kind.endswith('-done'):
      continue
    if kind == 'slice-start':  # a tuple of what is sliced, the slice, and more
      (_, sliced_in_hbm), (size, in_hbm) = moved[:2]
      moved = [(size, sliced_in_hbm), (size, in_hbm)]
    elif not (kind.endswith('-start') and result.startswith('(')):  # such a tuple has the operands too
      operands = _NAME.findall(rest.partition('), ')[0])
      moved = moved + [array for operand in operands for array in results[operand]]
    total += sum(size for size, in_hbm in moved if in_hbm)
  return total


def _arrays(shape: str) -> list[tuple[int, bool]]:
  """The bytes of each array of a shape, and whether it is in HBM."""
  found = []
  for _, bits, sizes, layout in _ARRAY.findall(shape):
    count = math.prod(int(size) for size in sizes.split(',') if size)
    found.append((count * int(bits or 8) // 8, _OTHER_SPACE not in layout))  # pred: 8 bits
  return found
