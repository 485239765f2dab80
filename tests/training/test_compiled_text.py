"""Collectives and bytes of high-bandwidth memory, read from the text of a compiled program."""

import importlib.util
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from at_jax import plan
from at_jax.training import compiled_text


def test_an_asynchronous_collective_of_a_tpu_counts_once():
  # As libtpu 0.0.50.1 writes them: one all-gather, in each operation that it overlaps with; two all-reduces.
  piece = '= s8[1,128]{1,0} all-gather(%p), channel_id=3, dimensions={1}, frontend_attributes={chain_id="0"}'
  whole = '= f32[2]{0} all-reduce(%p), channel_id=1, to_apply=%add'
  text = '\n'.join([f'%all-gather.7 {piece}', f'%all-reduce.8 {whole}', f'%all-gather.9 {piece}',
                    f'%all-reduce.10 {whole}', '%tuple.1 = tuple(%all-gather.9, %all-reduce.10)'])
  assert compiled_text.collectives(text) == {'all-gather': 1, 'all-reduce': 2}
  assert compiled_text.collectives(text + '\n' + piece.replace('"0"', '"1"'))['all-gather'] == 2


@pytest.mark.parametrize('function', [lambda a, b, c: a @ b, lambda a, b, c: a.T,
                                      lambda a, b, c: jnp.sin(a) @ b + c, lambda a, b, c: a.T > b @ a])
def test_without_memory_on_the_chip_the_bytes_are_those_of_xlas_own_count(function):
  a, b = jnp.ones((2, 64, 64))
  compiled = jax.jit(function).lower(a, b, jnp.ones(64, jnp.bfloat16)).compile()
  assert compiled_text.hbm_bytes(compiled.as_text()) == compiled.cost_analysis()['bytes accessed'] > 0


# In the words of libtpu 0.0.50.1. The argument is copied to VMEM, a fusion reads it and its first half there,
# and writes its result to HBM: 1,024 numbers of 2 bytes are read once and written once.
LAYERS = '''%fused (p: bf16[1024]) -> bf16[1024] {
  %p = bf16[1024]{0} parameter(0)
}

ENTRY %main (a: bf16[1024]) -> bf16[1024] {
  %a = bf16[1024]{0:T(1024)} parameter(0), metadata={op_name="a"}
  %copy-start = (bf16[1024]{0:T(1024)S(1)}, bf16[1024]{0:T(1024)}, u32[]{:S(2)}) copy-start(%a)
  %copy-done = bf16[1024]{0:T(1024)S(1)} copy-done(%copy-start)
  %slice-start = ((bf16[1024]{0:T(1024)S(1)}), bf16[512]{0:T(1024)S(1)}, s32[]{:S(2)}) slice-start(%copy-done)
  %slice-done = bf16[512]{0:T(1024)S(1)} slice-done(%slice-start)
  ROOT %fusion = bf16[1024]{0:T(1024)} fusion(%copy-done, %slice-done), kind=kLoop, calls=%fused
}
'''


def test_bytes_in_vmem_do_not_count():
  assert compiled_text.hbm_bytes(LAYERS) == 2 * 2048
  # From HBM, a slice reads its own 1,024 bytes and not the whole operand.
  sliced = LAYERS.replace('slice-start(%copy-done)', 'slice-start(%a)').replace(
      '((bf16[1024]{0:T(1024)S(1)})', '((bf16[1024]{0:T(1024)})')
  assert compiled_text.hbm_bytes(sliced) == 2 * 2048 + 1024


def test_the_tuple_of_an_asynchronous_operation_has_its_operands():
  # 2,048 bytes are gathered from two devices to 4,096; the context of the operation is in neither memory.
  gathered = LAYERS.partition('  %copy-start')[0] + '''
  %start = (bf16[1024]{0}, bf16[2048]{0}, u32[]{:S(2)}) all-gather-start(%a), dimensions={0}
  ROOT %done = bf16[2048]{0} all-gather-done(%start)
}'''
  assert compiled_text.hbm_bytes(gathered) == 2048 + 4096
  # One whose result is no tuple reads its operand.
  reduced = re.sub(r'\(bf16.*all-gather-', 'bf16[1024]{0} all-reduce-', gathered)
  assert compiled_text.hbm_bytes(reduced) == 2048 + 2048


def test_the_size_of_a_number_is_in_its_name():
  # pred 1 byte, s4 half a byte, bf16 2, f8e4m3fn 1, c64 8.
  for name, size in {'pred': 1, 's4': .5, 'bf16': 2, 'f8e4m3fn': 1, 'f32': 4, 'c64': 8}.items():
    array = f'{name}[6,2]{{1,0}}'
    text = f'ENTRY %main {{\n  %a = {array} parameter(0)\n  ROOT %b = {array} copy(%a)\n}}'
    assert compiled_text.hbm_bytes(text) == 2 * 12 * size


# As in findings/libtpu_bytes_accessed.sh: layers of 1,024 units in bfloat16. Each array has 2 MiB, and those
# between the first and the last layer stay in VMEM.
TPU_LAYERS = '''
import jax, jax.numpy as jnp
from at_jax import plan
from at_jax.training import compiled_text
chip, = plan._devices('v5e:1x1')
place = jax.sharding.SingleDeviceSharding(chip)
square = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16)
for layers in (1, 4):
  def network(x, w):
    for _ in range(layers):
      x = jnp.tanh(x @ w)
    return x
  compiled = jax.jit(network, in_shardings=place, out_shardings=place).lower(square, square).compile()
  of_hbm, of_all = compiled_text.hbm_bytes(compiled.as_text()), compiled.cost_analysis()['bytes accessed']
  print(of_hbm / 2**20, of_all / 2**20)
'''


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None,
                    reason="needs libtpu: pip install 'at_jax[plan]'")
def test_layers_on_a_tpu_read_their_arguments_once():
  # Closed form: both arguments are read and one output is written, 6 MiB for any number of layers.
  found = subprocess.run([sys.executable, '-c', TPU_LAYERS], text=True, check=True, capture_output=True,
                         env=os.environ | plan._NO_TPU | {'JAX_PLATFORMS': 'cpu'})
  by_layers = [[float(number) for number in line.split()] for line in found.stdout.splitlines()]
  assert [hbm for hbm, _ in by_layers] == [6, 6]
  assert by_layers[0][1] < by_layers[1][1]  # XLA's own count grows
