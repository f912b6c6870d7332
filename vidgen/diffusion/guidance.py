"""Classifier-free guidance. A scale of 1 means off."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

Scale = Float[Array, ""] | Float[Array, " b"]
Conditioned = Callable[[Array, PyTree, PyTree], Array]


def guided(
  predict: Conditioned, *, conditional: PyTree, null: PyTree, scale: float | Scale
) -> Callable[[Array, PyTree], Array]:
  """`null + scale * (conditional - null)` as a function of (x [b, ...], time).

  `predict(x, time, condition)` is called once a step, with both passes in one batch of 2b; at
  scale 1 the null pass is skipped, at scale 0 the conditional one. All arguments are pytrees with
  a leading batch axis. A scale that is an array, for all or one an example, is not looked at: both
  passes run whatever it is.
  """
  if isinstance(scale, float | int) and scale in (0, 1):
    return lambda x, time: predict(x, time, conditional if scale else null)
  both = _stack(conditional, null)

  def prediction(x: Array, time: PyTree) -> Array:
    pairs = predict(_stack(x, x), _stack(time, time), both)
    pairs = pairs.reshape(-1, 2, *pairs.shape[1:])
    factor = jnp.reshape(scale, (-1, *(1,) * (x.ndim - 1)))
    return pairs[:, 1] + factor * (pairs[:, 0] - pairs[:, 1])

  return prediction


def _stack(a: PyTree, b: PyTree) -> PyTree:
  """Both passes of an example side by side, so that a batch that is split over devices stays so."""
  return jax.tree.map(lambda x, y: jnp.stack([x, y], axis=1).reshape(-1, *x.shape[1:]), a, b)
