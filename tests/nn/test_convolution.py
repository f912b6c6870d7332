"""Convolutions and pools against XLA's own, over every padding, stride and number of dimensions."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vidgen.nn import convolution
from vidgen.nn.convolution import (
  Convolution,
  FrozenBatchNorm,
  average_pool,
  convolve,
  max_pool,
  pads,
)

PADDINGS = ["SAME", "VALID", [(0, 1), (2, 0), (1, 1)]]


def random(*shape):
  return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("size", range(4, 13))
@pytest.mark.parametrize("window, stride", [(7, 2), (3, 2), (3, 1), (2, 2), (1, 1)])
def test_same_is_the_padding_that_xla_calls_same(size, window, stride):
  expected = lax.padtype_to_pads((size,), (window,), (stride,), "SAME")
  assert pads((size,), window=(window,), strides=(stride,), padding="SAME") == expected


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize(
  "kernel, strides",
  [((3, 3, 3), (1, 1, 1)), ((5, 3, 2), (2, 2, 2)), ((1, 1, 1), (1, 1, 1)), ((1, 3, 3), (2, 1, 1))],
  ids=str,
)
def test_convolution_over_time_is_the_same_by_either_way(kernel, strides, padding):
  """What CPUs run is XLA's own convolution in three dimensions, and so are its gradients."""
  x, w = random(2, 8, 6, 7, 5), random(*kernel, 5, 4)
  around = pads(x.shape[1:-1], window=kernel, strides=strides, padding=padding)

  @functools.partial(jax.jit, static_argnums=0)
  def both(of, x, w):
    value, back = jax.vjp(lambda x, w: of(x, w, strides, around), x, w)
    return value, back(jnp.cos(value))

  found = both(convolution._taps_as_channels, x, w)
  expected = both(convolution._direct, x, w)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("padding", ["SAME", "VALID", [(0, 1), (2, 0)]], ids=str)
@pytest.mark.parametrize("outputs", [4, 6], ids="{} of 5 channels".format)
@pytest.mark.parametrize(
  "kernel, strides", [((3, 3), (1, 1)), ((2, 3), (1, 1)), ((5, 2), (2, 3)), ((1, 1), (2, 2))]
)
def test_gradients_over_the_plane_are_those_of_xlas_convolution(
  kernel, strides, outputs, padding, dtype
):
  x, w = random(3, 8, 7, 5).astype(dtype), random(*kernel, 5, outputs).astype(dtype)
  around = tuple(pads(x.shape[1:-1], window=kernel, strides=strides, padding=padding))

  @functools.partial(jax.jit, static_argnums=0)
  def both(of, x, w):
    value, back = jax.vjp(lambda x, w: of(x, w, strides, around), x, w)
    return value, back(jnp.cos(value))

  found, expected = both(convolution._plane, x, w), both(convolution._direct, x, w)
  rtol = 1e-5 if dtype == jnp.float32 else 2e-2  # two roundings of bfloat16
  close = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=10 * rtol)
  jax.tree.map(close, *jax.tree.map(lambda a: np.asarray(a, np.float32), (found, expected)))


def test_other_platforms_get_a_convolution_in_three_dimensions():
  x, w = random(1, 4, 6, 6, 3), random(3, 3, 3, 3, 4)
  lowered = jax.jit(convolve).trace(x, w)
  letters = {}
  for platform in ("cpu", "tpu", "cuda"):
    text = lowered.lower(lowering_platforms=(platform,)).as_text()
    letters[platform] = re.findall(r"convolution\(.*?x\[(.*?), i, o\]", text)
  assert letters == {"cpu": ["0, 1"], "tpu": ["0, 1, 2"], "cuda": ["0, 1, 2"]}


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_convolution_has_as_many_dimensions_as_its_kernel(n):
  network = Convolution(4, (3,) * n, (2,) * n)
  x = random(2, *(7, 6, 5)[:n], 3)
  params = {"params": {"kernel": random(*(3,) * n, 3, 4), "bias": random(4)}}
  y = network.apply(params, x)
  assert y.shape == (2, *(4, 3, 3)[:n], 4)
  plain = convolve(x, params["params"]["kernel"], strides=(2,) * n)
  np.testing.assert_array_equal(y, plain + params["params"]["bias"])
  with pytest.raises(ValueError, match="for a kernel of"):
    network.apply(params, x[..., None])


def test_float32_is_convolved_at_the_highest_precision():
  """Accelerators would else round the inputs to bfloat16, which a metric must not."""
  x, w = random(1, 4, 6, 6, 3), random(3, 3, 3, 3, 4)
  text = str(jax.make_jaxpr(lambda x, w: convolution._direct(x, w, (1, 1, 1), [(1, 1)] * 3))(x, w))
  assert "HIGHEST" in text
  half = jnp.asarray(x, jnp.bfloat16)
  assert convolve(half, jnp.asarray(w)).dtype == jnp.bfloat16


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize(
  "window, strides", [((3, 3, 3), (1, 1, 1)), ((2, 3, 1), (2, 2, 1))], ids=str
)
def test_pools_are_those_of_xla(window, strides, padding):
  x = random(2, 6, 7, 5, 3) - 3  # all below zero: padding must not win
  around = pads(x.shape[1:-1], window=window, strides=strides, padding=padding)
  whole = [(0, 0), *around, (0, 0)]
  dimensions = ((1, *window, 1), (1, *strides, 1), whole)
  arguments = {"window": window, "strides": strides, "padding": padding}
  largest = lax.reduce_window(x, -np.inf, lax.max, *dimensions)
  np.testing.assert_array_equal(max_pool(x, **arguments), largest)
  total = lax.reduce_window(x, 0.0, lax.add, *dimensions)
  count = lax.reduce_window(np.ones_like(x), 0.0, lax.add, *dimensions)
  size = np.prod(window)
  np.testing.assert_allclose(average_pool(x, **arguments), total / size, rtol=1e-5)
  inside = average_pool(x, **arguments, divisor="inside")
  np.testing.assert_allclose(inside, total / count, rtol=1e-5)


def test_a_pool_larger_than_its_input_is_refused():
  with pytest.raises(ValueError, match="a window of 3 is longer than the 2"):
    max_pool(random(1, 2, 4, 1), window=(3, 3))


@pytest.mark.parametrize("use_scale", [False, True])
def test_batch_norm_is_its_formula_and_holds_nothing_it_does_not_use(use_scale):
  network = FrozenBatchNorm(1e-3, use_scale=use_scale)
  x = random(2, 3, 4)
  given = {"mean": random(4), "variance": random(4) ** 2, "bias": random(4) + 1}
  scale = random(4) + 2
  if use_scale:
    given["scale"] = scale
  made = network.init(jax.random.key(0), x)["params"]
  assert set(made) == set(given)
  expected = (x - given["mean"]) / np.sqrt(given["variance"] + 1e-3)
  expected = expected * (scale if use_scale else 1) + given["bias"]
  np.testing.assert_allclose(network.apply({"params": given}, x), expected, rtol=1e-5, atol=1e-5)
