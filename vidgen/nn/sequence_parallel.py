"""Attention over tokens that are split over devices: three ways to bring keys to queries.

All run within `shard_map`, on one device's part: its examples, its heads, its share of the tokens.

* `ulysses`: an all-to-all gives every device all tokens of a share of its heads, and another gives
  the result back (Jacobs et al. 2023, DeepSpeed Ulysses). Heads must divide by the devices.
* `gather`: keys and values are gathered, queries stay (Movie Gen, section 3.1.6: its own way).
* `ring`: keys and values travel around the devices, so that no device holds all of them
  (Liu et al. 2023, Ring Attention); computed in plain XLA.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vidgen.nn import flash

Kernel = Callable[..., jax.Array]


def gather_keys(kernel: Kernel, q, k, v, mask, ids, *, axes):
  """Attends from this device's queries to everybody's keys."""
  whole = {"axis_name": axes, "axis": 1, "tiled": True}
  k, v = jax.lax.all_gather(k, **whole), jax.lax.all_gather(v, **whole)
  if mask is not None:
    mask = jax.lax.all_gather(mask, **whole)
  if ids is not None:
    ids = ids[0], jax.lax.all_gather(ids[1], **whole)
  return kernel(q, k, v, mask, ids)


def ulysses(kernel: Kernel, q, k, v, mask, ids, *, axes):
  """Swaps the split of the tokens for one of the heads, attends, and swaps back."""
  exchange = functools.partial(jax.lax.all_to_all, axis_name=axes, tiled=True)
  if q.shape == k.shape:  # one exchange for all three: the same bytes, and one latency
    q, k, v = exchange(jnp.stack([q, k, v]), split_axis=3, concat_axis=2)
  else:
    q, k, v = (exchange(x, split_axis=2, concat_axis=1) for x in (q, k, v))
  if mask is not None:
    mask = jax.lax.all_gather(mask, axes, axis=1, tiled=True)
  if ids is not None:
    ids = tuple(jax.lax.all_gather(x, axes, axis=1, tiled=True) for x in ids)
  out = kernel(q, k, v, mask, ids)
  return exchange(out, split_axis=1, concat_axis=2)


def ring(kernel: Kernel, q, k, v, mask, ids, *, axes):
  """Attends to one device's keys after another's while they travel around."""
  del kernel  # the parts of a row are put together by their log-sum-exp, which kernels keep

  def turn(arrays):
    count = jax.lax.axis_size(axes)
    steps = [(i, (i + 1) % count) for i in range(count)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axes, steps), arrays)

  def part_ids(ids, keys):
    return None if ids is None else (ids[0], keys)

  @jax.custom_vjp
  def attend(q, k, v, mask, ids):
    return run_forward(q, k, v, mask, ids)[0].astype(q.dtype)

  def run_forward(q, k, v, mask, ids):
    keys = None if ids is None else ids[1]

    def body(state, _):
      out, lse, (k, v, mask, keys) = state
      here, here_lse = flash.forward(q, k, v, mask, part_ids(ids, keys))
      both = jnp.logaddexp(lse, here_lse)
      safe = jnp.where(jnp.isfinite(both), both, 0.0)
      old, new = (jnp.moveaxis(jnp.exp(x - safe), 1, 2)[..., None] for x in (lse, here_lse))
      return (out * old + here * new, both, turn((k, v, mask, keys))), None

    b, s, n, _ = q.shape
    start = jnp.zeros(q.shape, jnp.float32), jnp.full((b, n, s), -jnp.inf, jnp.float32)
    count = jax.lax.axis_size(axes)
    (out, lse, _), _ = jax.lax.scan(body, (*start, (k, v, mask, keys)), length=count)
    return out, lse

  def forward_rule(q, k, v, mask, ids):
    out, lse = run_forward(q, k, v, mask, ids)
    out = flash.checkpoint_name(out.astype(q.dtype), flash.RESIDUALS)
    lse = flash.checkpoint_name(lse, flash.RESIDUALS)
    return out, (q, k, v, mask, ids, out, lse)

  def backward_rule(residuals, grad):
    q, k, v, mask, ids, out, lse = residuals
    keys = None if ids is None else ids[1]

    def body(state, _):
      dq, (k, v, mask, keys, dk, dv) = state
      more = flash.backward(q, k, v, mask, part_ids(ids, keys), out, lse, grad)
      moving = (k, v, mask, keys, dk + more[1], dv + more[2])
      return (dq + more[0], turn(moving)), None

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (q, k, v)]
    start = (zeros[0], (k, v, mask, keys, zeros[1], zeros[2]))
    count = jax.lax.axis_size(axes)
    (dq, (*_, dk, dv)), _ = jax.lax.scan(body, start, length=count)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None

  attend.defvjp(forward_rule, backward_rule)
  return attend(q, k, v, mask, ids)


METHODS = {"ulysses": ulysses, "gather": gather_keys, "ring": ring}
