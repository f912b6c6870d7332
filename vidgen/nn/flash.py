"""Attention in plain XLA whose memory grows with the tokens, not with their square.

Queries are taken in chunks, one head at a time, and the backward pass computes each chunk's scores
again from the log-sum-exp of the forward one (Dao et al. 2022, FlashAttention, section 3.1 and
appendix B.2; Rabe and Staats 2021). It needs no kernel, so it runs on every platform.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

SCORES = 1 << 23  # elements of one chunk's scores at most: 32 MiB


@jax.custom_vjp
def flash(
  q: Float[Array, "b s n k"],
  k: Float[Array, "b l n k"],
  v: Float[Array, "b l n k"],
  mask: Bool[Array, "b l"] | None,
) -> Float[Array, "b s n k"]:
  """softmax(q k^T / sqrt(k)) v over the keys that `mask` allows; zero where it allows none."""
  return _forward(q, k, v, mask)[0]


def _forward(q, k, v, mask):
  """The attention in q's dtype, and the log-sum-exp of every row's scores, float32 [n, b, s]."""

  def one(q, k, v):
    scores = _scores(q, k, mask)
    top = jnp.max(scores, axis=-1, keepdims=True)
    top = jnp.where(jnp.isfinite(top), top, 0.0)  # a row without keys has -inf only
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum("bsl,blk->bsk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out = out / jnp.where(total == 0, 1.0, total)
    return (out.astype(q.dtype), (jnp.log(total) + top)[..., 0]), ()

  (out, lse), _ = _over_chunks(one, q, k, v)
  return jnp.moveaxis(out, 0, 2), lse


def _forward_rule(q, k, v, mask):
  out, lse = _forward(q, k, v, mask)
  return out, (q, k, v, mask, out, lse)


def _backward_rule(residuals, grad):
  q, k, v, mask, out, lse = residuals
  scale = q.shape[-1] ** -0.5
  # sum_j p_j dp_j of each row (Dao et al. 2022, equation 4)
  inner = jnp.einsum("bsnk,bsnk->nbs", grad, out, preferred_element_type=jnp.float32)
  lse = jnp.where(jnp.isfinite(lse), lse, jnp.inf)  # where there is no key, every weight is zero

  def one(q, k, v, grad, lse, inner):
    weights = jnp.exp(_scores(q, k, mask) - lse[..., None])
    low = weights.astype(v.dtype)
    dv = jnp.einsum("bsl,bsk->blk", low, grad, preferred_element_type=jnp.float32)
    dp = jnp.einsum("bsk,blk->bsl", grad, v, preferred_element_type=jnp.float32)
    ds = (weights * (dp - inner[..., None]) * scale).astype(q.dtype)
    dq = jnp.einsum("bsl,blk->bsk", ds, k, preferred_element_type=jnp.float32)
    dk = jnp.einsum("bsl,bsk->blk", ds, q, preferred_element_type=jnp.float32)
    return (dq.astype(q.dtype),), (dk, dv)

  (dq,), (dk, dv) = _over_chunks(one, q, k, v, jnp.moveaxis(grad, 2, 0), lse, inner)
  dq, dk, dv = (jnp.moveaxis(x, 0, 2) for x in (dq, dk.astype(k.dtype), dv.astype(v.dtype)))
  return dq, dk, dv, None


flash.defvjp(_forward_rule, _backward_rule)


def _scores(q, k, mask):
  scores = jnp.einsum("bsk,blk->bsl", q, k, preferred_element_type=jnp.float32)
  scores = scores * (q.shape[-1] ** -0.5)
  return scores if mask is None else jnp.where(mask[:, None], scores, -jnp.inf)


def _over_chunks(one: Callable[..., Any], q, k, v, *rows):
  """Calls `one` for each head and chunk of queries.

  `one` gets q [b, c, k], k and v [b, l, k], and its part of each of `rows` [n, b, s, ...]. It
  returns what belongs to the queries, which is put together again, and what belongs to the keys,
  which is summed; both come back with the heads in front.
  """
  (b, s, _, _), length = q.shape, k.shape[1]
  size = max(1, min(s, SCORES // (b * length)))
  count = -(-s // size)

  def cut(x):  # [b, s, ..] to [count, b, size, ..], the last chunk filled up with zeros
    x = jnp.pad(x, [(0, 0), (0, count * size - s)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(b, count, size, *x.shape[2:]), 1, 0)

  def join(x):
    return jnp.moveaxis(x, 0, 1).reshape(b, count * size, *x.shape[3:])[:, :s]

  def head(arrays):
    q, k, v, *rows = arrays
    if count == 1:
      return one(q, k, v, *rows)

    def chunk(total, parts):
      queries, sums = one(parts[0], k, v, *parts[1:])
      return jax.tree.map(jnp.add, total, sums), queries

    parts = [cut(x) for x in (q, *rows)]
    shapes = jax.eval_shape(lambda first: one(first[0], k, v, *first[1:])[1], [x[0] for x in parts])
    sums, queries = jax.lax.scan(chunk, jax.tree.map(jnp.zeros_like, shapes), parts)
    return jax.tree.map(join, queries), sums

  return jax.lax.map(head, tuple(jnp.moveaxis(x, 2, 0) for x in (q, k, v)) + rows)
