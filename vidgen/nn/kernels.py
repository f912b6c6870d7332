"""Attention kernels: one function each, on the arrays of one device; `attention` chooses.

All compute softmax(q k^T / sqrt(k)) v with float32 scores, over the keys that `mask` [b, l] and
equal `ids` ([b, s] and [b, l]) allow, and zero for a query without keys. The result has the dtype
of `q`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from vidgen.nn.flash import RESIDUALS, flash, visible

NOBODY, UNSEEN = -(2**31), -(2**31) + 1  # segments of filled-up queries and of keys not to be seen
LANES = 128  # of a TPU's vector unit: its kernels take multiples

__all__ = ["KERNELS", "cudnn", "dense", "flash", "splash"]


def dense(q, k, v, mask, ids, bias=None, scale=None):
  """Plain einsum: fastest where the scores are small.

  It alone adds a `bias` [n or 1, s, l] to them, and takes a `scale` other than 1 / sqrt(k).
  """
  scores = jnp.einsum("bsnk,blnk->bnsl", q, k, preferred_element_type=jnp.float32)
  scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
  if bias is not None:
    scores = scores + bias.astype(jnp.float32)
  seen = visible(ids, mask)
  if seen is not None:
    # A finite minimum keeps a fully masked row free of NaN; the second `where` makes it zero.
    scores = jnp.where(seen[:, None], scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores, axis=-1)
  if seen is not None:
    weights = jnp.where(seen[:, None], weights, 0.0)
  return jnp.einsum("bnsl,blnk->bsnk", weights.astype(v.dtype), v)


def cudnn(q, k, v, mask, ids):
  """NVIDIA's fused kernel, for bfloat16 and float16 on Ampere and later.

  It takes a number of keys an example but no mask of them, so those to attend to are moved to the
  front, which softmax does not notice. Segments cost an array of queries by keys.
  """
  options: dict[str, Any] = {}
  if ids is not None:
    seen = (ids[0][:, :, None] == ids[1][:, None]) & (True if mask is None else mask[:, None])
    options = {"mask": seen[:, None]}
  elif mask is not None:
    order = jnp.argsort(~mask, axis=1, stable=True)[:, :, None, None]
    k, v = jnp.take_along_axis(k, order, axis=1), jnp.take_along_axis(v, order, axis=1)
    count = jnp.maximum(mask.sum(axis=1, dtype=jnp.int32), 1)  # where there is none, zeroed below
    options = {"key_value_seq_lengths": count}
  out = jax.nn.dot_product_attention(q, k, v, **options, implementation="cudnn")
  return _zero_without_keys(out, mask, ids)


def _zero_without_keys(out, mask, ids):
  seen = visible(ids, mask)
  return out if seen is None else jnp.where(seen.any(-1)[:, :, None, None], out, 0)


def splash(q, k, v, mask, ids, *, block: int = 512, block_kv: int = 1024, interpret: bool = False):
  """The Pallas kernel for TPUs, with tokens and head size filled up to what it takes."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as sk
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as sm

  (b, s, n, size), length = q.shape, k.shape[1]
  wide = -(-size // LANES) * LANES
  # of wide heads fewer keys at a time: with 1024 of 512 the backward pass took 18 MiB of the 16 MiB
  # of VMEM that a v5p gives a kernel
  most = min(block_kv, LANES * max(1, 2048 // wide))
  bq, bk = _block(s, block), _block(length, most)
  rows, keys = -(-s // bq) * bq, -(-length // bk) * bk
  if mask is None and ids is None and (rows, keys) != (s, length):
    mask = jnp.ones((b, length), bool)
  compute = _block(bk, 512) if bk % 512 == 0 else bk
  blocks = sk.BlockSizes(
    block_q=bq, block_kv=bk, block_kv_compute=compute, block_q_dkv=bq, block_kv_dkv=bk,
    block_kv_dkv_compute=compute, block_q_dq=bq, block_kv_dq=bk,
  )  # fmt: skip
  kernel = sk.make_splash_mha(
    sm.MultiHeadMask([sm.FullMask((rows, keys))] * n),
    head_shards=1,
    q_seq_shards=1,
    block_sizes=blocks,
    residual_checkpoint_name=RESIDUALS,
    interpret=interpret,
  )
  q, k, v = (
    jnp.pad(x, ((0, 0), (0, full - x.shape[1]), (0, 0), (0, wide - size))).swapaxes(1, 2)
    for x, full in ((q * size**-0.5, rows), (k, keys), (v, keys))
  )
  if mask is None and ids is None:
    out: Any = jax.vmap(kernel)(q, k, v)
    return out.swapaxes(1, 2)[:, :s, :, :size]
  q_ids, kv_ids = ids or (jnp.zeros((b, s), jnp.int32), jnp.zeros((b, length), jnp.int32))
  kv_ids = kv_ids if mask is None else jnp.where(mask, kv_ids, UNSEEN)
  q_ids = jnp.pad(q_ids, ((0, 0), (0, rows - s)), constant_values=NOBODY)
  kv_ids = jnp.pad(kv_ids, ((0, 0), (0, keys - length)), constant_values=UNSEEN)
  out = jax.vmap(kernel)(q, k, v, sk.SegmentIds(q_ids, kv_ids))
  # a row that sees no key has scores of one finite value, and so a finite result, to be made zero
  return _zero_without_keys(out.swapaxes(1, 2)[:, :s, :, :size], mask, ids)


def _block(length: int, most: int) -> int:
  """The block for so many tokens: a multiple of the lanes, at most `most`."""
  return min(most, -(-length // LANES) * LANES)


KERNELS = {"dense": dense, "flash": flash, "cudnn": cudnn, "splash": splash}
