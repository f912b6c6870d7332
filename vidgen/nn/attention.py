"""Attention. `attention` is the one entry: the choice of kernel is made here and nowhere else."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vidgen.nn.flash import flash
from vidgen.nn.norm import RMSNorm
from vidgen.nn.weights import fan_in, weight

# Above so many scores a head, `flash` is used: less memory, and on CPU less time (with gradients
# 418 against 643 ms, the best of 9 at batch 2, 1024 x 1024, 8 heads of 64, on two EPYC cores).
LONG = 512 * 1024


def attention(
  q: Float[Array, "b s n k"],
  k: Float[Array, "b l n k"],
  v: Float[Array, "b l n k"],
  *,
  mask: Bool[Array, "b l"] | None = None,
) -> Float[Array, "b s n k"]:
  """softmax(q k^T / sqrt(k)) v, bidirectional; scores and softmax are float32.

  `mask` is True for the keys to attend to. A row none of whose keys is True gets zeros, so that
  a conditioning sequence may be absent altogether. The result has the dtype of `q`.
  """
  if q.shape[1] * k.shape[1] < LONG:
    return _attend(q, k, v, mask)
  return flash(q, k, v, mask)


def _attend(q, k, v, mask=None):
  scores = jnp.einsum("bsnk,blnk->bnsl", q, k, preferred_element_type=jnp.float32)
  scores = scores * (q.shape[-1] ** -0.5)
  if mask is not None:
    # A finite minimum keeps a fully masked row free of NaN; the second `where` makes it zero.
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores, axis=-1)
  if mask is not None:
    weights = jnp.where(mask[:, None, None], weights, 0.0)
  return jnp.einsum("bnsl,blnk->bsnk", weights.astype(v.dtype), v)


class MultiHeadAttention(nn.Module):
  """Projections without biases around `attention`; self-attention when `context` is `x` itself.

  `qk_norm` is an RMSNorm over each head of the queries and the keys.
  """

  heads: int
  head_size: int
  qk_norm: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b s d"],
    context: Float[Array, "b l c"],
    *,
    mask: Bool[Array, "b l"] | None = None,
  ) -> Float[Array, "b s d"]:
    """Attends from `x` to the keys of `context` that `mask` allows; computes in x's dtype."""
    q = jnp.einsum("bsd,dnk->bsnk", x, self._projection("query", x))
    k = jnp.einsum("blc,cnk->blnk", context, self._projection("key", context))
    v = jnp.einsum("blc,cnk->blnk", context, self._projection("value", context))
    if self.qk_norm:
      q = RMSNorm(axis_name="kv", name="query_norm")(q)
      k = RMSNorm(axis_name="kv", name="key_norm")(k)
    out = weight(
      self,
      "out",
      shape=[self.heads, self.head_size, x.shape[-1]],
      axes=["heads", "kv", "embed"],
      init=fan_in(2),
    )
    return jnp.einsum("bsnk,nkd->bsd", attention(q, k, v, mask=mask), out.astype(x.dtype))

  def _projection(self, name: str, x: jax.Array) -> jax.Array:
    shape = [x.shape[-1], self.heads, self.head_size]
    kernel = weight(self, name, shape=shape, axes=["embed", "heads", "kv"], init=fan_in())
    return kernel.astype(x.dtype)
