"""What the text of a compiled program says: its collectives, and its bytes of high-bandwidth memory.

The text is that of `jax.stages.Compiled.as_text`, XLA's HLO after all passes.
"""

import re

_COLLECTIVE = re.compile(
    r'\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\('
    r'(?:.*\bchain_id="(\d+)")?')
_ENTRY = re.compile(r'^ENTRY ', re.MULTILINE)
_NAME = re.compile(r'%[\w.-]+')
_OPERATION = re.compile(r'\s+(?:ROOT )?(%[\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)')
_ARRAY = re.compile(r'\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?')
_ON_CHIP = 'S(1)'  # in the layout of an array: memory space 1, a TPU's VMEM
# They name what another operation wrote. The second halves of asynchronous ones are `…-done`.
_NOT_READING = ('parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast', 'while', 'conditional')


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
  """Adds the bytes that the operations of a program read from and write to high-bandwidth memory.

  These are the operands and the results of each operation of the entry computation, without arrays that the
  compiler placed in a TPU's own memory, VMEM. An operand that is partly read counts whole, except that of a
  slice; the bodies of loops do not count, nor does padding to tiles.

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
    results[name] = arrays = _arrays(result)
    if kind in _NOT_READING or kind.endswith('-done'):
      continue
    if kind == 'copy-start':  # a tuple of the copy, what is copied, and a semaphore
      moved = arrays[:2]
    elif kind == 'slice-start':  # a tuple of what is sliced, the slice, and a semaphore
      (_, sliced_on_chip), (size, on_chip), _ = arrays
      moved = [(size, sliced_on_chip), (size, on_chip)]
    else:
      operands = _NAME.findall(rest.partition('), ')[0])
      moved = arrays + [array for operand in operands for array in results[operand]]
    total += sum(size for size, on_chip in moved if not on_chip)
  return total


def _arrays(shape: str) -> list[tuple[int, bool]]:
  """The bytes of each array of a shape, and whether it is in VMEM."""
  found = []
  for _, bits, sizes, layout in _ARRAY.findall(shape):
    count = 1
    for size in filter(None, sizes.split(',')):
      count *= int(size)
    found.append((count * int(bits or 8) // 8, _ON_CHIP in layout))  # pred: 8 bits
  return found
