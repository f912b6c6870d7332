"""Attention in plain XLA whose memory grows with the tokens, not with their square.

Queries are taken in chunks, one head at a time, and the backward pass computes each chunk's scores
again from the log-sum-exp of the forward one (Dao et al. 2022, FlashAttention, section 3.1 and
appendix B.2; Rabe and Staats 2021). It runs on every platform, needs no kernel, and its two halves,
`forward` and `backward`, are also one turn of ring attention.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

SCORES = 1 << 23  # elements of one chunk's scores at most: 32 MiB
RESIDUALS = "attention_residuals"  # what a remat policy keeps so that attention runs once

Ids = tuple[Int[Array, "b s"], Int[Array, "b l"]] | None


def visible(ids: Ids, mask: Bool[Array, "b l"] | None) -> Bool[Array, "b _ l"] | None:
  """Which keys each query attends to; None for all, one row where all queries see the same."""
  if ids is None:
    return None if mask is None else mask[:, None]
  same = ids[0][:, :, None] == ids[1][:, None]
  return same if mask is None else same & mask[:, None]


@jax.custom_vjp
def flash(
  q: Float[Array, "b s n k"],
  k: Float[Array, "b l n k"],
  v: Float[Array, "b l n k"],
  mask: Bool[Array, "b l"] | None = None,
  ids: Ids = None,
) -> Float[Array, "b s n k"]:
  """softmax(q k^T / sqrt(k)) v over the keys that `mask` and equal `ids` allow; zero for no key."""
  return forward(q, k, v, mask, ids)[0].astype(q.dtype)


def forward(
  q: Float[Array, "b s n k"],
  k: Float[Array, "b l n k"],
  v: Float[Array, "b l n k"],
  mask: Bool[Array, "b l"] | None,
  ids: Ids,
) -> tuple[Float[Array, "b s n k"], Float[Array, "b n s"]]:
  """The attention, float32, and the log-sum-exp of every row's scores (-inf for no key)."""

  def one(q, k, v, seen):
    scores = _scores(q, k, seen)
    top = jnp.max(scores, axis=-1, keepdims=True)
    safe = jnp.where(jnp.isfinite(top), top, 0.0)
    weights = jnp.exp(scores - safe)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum("bsl,blk->bsk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out = out / jnp.where(total == 0, 1.0, total)
    return (out, (jnp.log(total) + safe)[..., 0]), ()

  (out, lse), _ = _over_chunks(one, q, k, v, seen=visible(ids, mask))
  return jnp.moveaxis(out, 0, 2), jnp.moveaxis(lse, 0, 1)


def _scores(q, k, seen):
  scores = jnp.einsum("bsk,blk->bsl", q, k, preferred_element_type=jnp.float32)
  scores = scores * (q.shape[-1] ** -0.5)
  return scores if seen is None else jnp.where(seen, scores, -jnp.inf)


def backward(
  q: Float[Array, "b s n k"],
  k: Float[Array, "b l n k"],
  v: Float[Array, "b l n k"],
  mask: Bool[Array, "b l"] | None,
  ids: Ids,
  out: Float[Array, "b s n k"],
  lse: Float[Array, "b n s"],
  grad: Float[Array, "b s n k"],
) -> tuple[Float[Array, "b s n k"], Float[Array, "b l n k"], Float[Array, "b l n k"]]:
  """Gradients, float32, for q, k and v.

  `out` and `lse` are those of the whole row: k and v may be a part of its keys, as in a ring.
  """
  scale = q.shape[-1] ** -0.5
  # sum_j p_j dp_j of each row (Dao et al. 2022, equation 4)
  inner = jnp.einsum("bsnk,bsnk->bns", grad.astype(jnp.float32), out.astype(jnp.float32))
  lse = jnp.where(jnp.isfinite(lse), lse, jnp.inf)  # rows without keys: every weight is zero

  def one(q, k, v, seen, grad, lse, inner):
    weights = jnp.exp(_scores(q, k, seen) - lse[..., None])
    low = weights.astype(v.dtype)
    dv = jnp.einsum("bsl,bsk->blk", low, grad, preferred_element_type=jnp.float32)
    dp = jnp.einsum("bsk,blk->bsl", grad, v, preferred_element_type=jnp.float32)
    ds = (weights * (dp - inner[..., None]) * scale).astype(q.dtype)
    dq = jnp.einsum("bsl,blk->bsk", ds, k, preferred_element_type=jnp.float32)
    dk = jnp.einsum("bsl,bsk->blk", ds, q, preferred_element_type=jnp.float32)
    return (dq,), (dk, dv)

  rows = (
    jnp.moveaxis(grad.astype(q.dtype), 2, 0),
    jnp.moveaxis(lse, 1, 0),
    jnp.moveaxis(inner, 1, 0),
  )
  (dq,), (dk, dv) = _over_chunks(one, q, k, v, *rows, seen=visible(ids, mask))
  return jnp.moveaxis(dq, 0, 2), jnp.moveaxis(dk, 0, 2), jnp.moveaxis(dv, 0, 2)


def _over_chunks(one, q, k, v, *rows, seen):
  """Calls `one` for each head and chunk of queries; arrays lead with the heads, [n, b, ...].

  `one` gets q [b, c, k], k and v [b, l, k], what the chunk sees, and its part of `rows`
  [n, b, s, ...]. It returns what belongs to the queries, which is put together again, and what
  belongs to the keys, which is summed.
  """
  (b, s, _, _), length = q.shape, k.shape[1]
  size = max(1, min(s, SCORES // (b * length)))
  count = -(-s // size)
  by_row = seen is not None and seen.shape[1] > 1

  def cut(x, axis):  # [.., s, ..] to [count, .., size, ..], the last chunk filled up
    filled = [(0, 0)] * x.ndim
    filled[axis] = (0, count * size - s)
    x = jnp.pad(x, filled).reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)

  def join(x):  # the inverse, for [count, b, size, ..]
    return jnp.moveaxis(x, 0, 1).reshape(b, count * size, *x.shape[3:])[:, :s]

  def head(arrays):
    q, k, v, *rows = arrays
    if count == 1:
      return one(q, k, v, seen, *rows)

    def chunk(total, parts):
      seen_here, q, *rows = parts
      mine, shared = one(q, k, v, seen_here if by_row else seen, *rows)
      return shared if total is None else jax.tree.map(jnp.add, total, shared), mine

    parts = (cut(seen, 1) if by_row else None, cut(q, 1), *(cut(row, 1) for row in rows))
    # of the keys' sums, whatever they are: zeros to start from
    shapes = jax.eval_shape(lambda p: chunk(None, p)[0], jax.tree.map(lambda x: x[0], parts))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    shared, mine = jax.lax.scan(chunk, zero, parts)
    return jax.tree.map(join, mine), shared

  lead = [jnp.moveaxis(x, 2, 0) for x in (q, k, v)]
  return jax.lax.map(head, (*lead, *rows))


def _forward_rule(q, k, v, mask, ids):
  out, lse = forward(q, k, v, mask, ids)
  out = checkpoint_name(out.astype(q.dtype), RESIDUALS)
  lse = checkpoint_name(lse, RESIDUALS)
  return out, (q, k, v, mask, ids, out, lse)


def _backward_rule(residuals, grad):
  q, k, v, mask, ids, out, lse = residuals
  dq, dk, dv = backward(q, k, v, mask, ids, out, lse, grad)
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


flash.defvjp(_forward_rule, _backward_rule)
