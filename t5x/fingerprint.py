"""A short name for the exact values of a set of arrays.

Used to notice that a frozen model is not the one a prompt was trained on. The
arrays are reduced where they live, so that eleven billion parameters never
leave the device, and whole-number arithmetic makes the result independent of
the sharding. It detects mistakes; it is not a defence against forgery.
"""

from collections.abc import Mapping
import functools
import hashlib
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

_GOLDEN = 0x9E3779B9  # 2^32 over the golden ratio spreads neighbouring indices.


def _mixed(x: UInt32[Array, '*n']) -> UInt32[Array, '*n']:
  """Austin Appleby's MurmurHash3 finaliser: every input bit moves every bit."""
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    x = (x ^ (x >> jnp.uint32(shift))) * jnp.uint32(factor)
  return x ^ (x >> jnp.uint32(16))


@functools.partial(jax.jit, static_argnames='lanes')
def _checksums(x: Array, lanes: int = 4) -> UInt32[Array, ' lanes']:
  """Sums of hashed (index, bits) pairs; one independent sum per lane."""
  width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
  bits = jax.lax.bitcast_convert_type(x, width).astype(jnp.uint32)
  place = jnp.zeros(x.shape, jnp.uint32)
  for axis in range(x.ndim):
    stride = math.prod(x.shape[axis + 1:]) % 2**32
    index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    place = place + index * jnp.uint32(stride)
  hashed = _mixed(bits ^ _mixed(place * jnp.uint32(_GOLDEN)))
  return jnp.stack([
      jnp.sum(_mixed(hashed ^ jnp.uint32(lane + 1)), dtype=jnp.uint32)
      for lane in range(lanes)
  ])


def fingerprint(arrays: Mapping[str, Array]) -> str:
  """Names a dictionary of arrays by names, shapes, dtypes and every value.

  Args:
    arrays: from name to array, sharded or not.

  Returns:
    64 hexadecimal digits.

  Raises:
    TypeError: for arrays whose elements have not one, two or four bytes; JAX
      would round them.
  """
  digest = hashlib.sha256()
  for name in sorted(arrays):
    x = arrays[name]
    if x.dtype.kind not in 'fiuV' or x.dtype.itemsize > 4:
      raise TypeError(
          f'fingerprint: {name} has dtype {x.dtype}; expected numbers of at '
          'most 32 bits.')
    sums = [int(s) for s in jax.device_get(_checksums(x))]
    digest.update(f'{name} {x.shape} {x.dtype} {sums}\n'.encode())
  return digest.hexdigest()
