"""Thresholds of predicted data, and the quantile they need."""

import jax.numpy as jnp
import numpy as np
import pytest

from vidgen.diffusion.thresholding import dynamic_threshold, quantile, static_threshold


def clips(scale=1.0, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(scale * rng.standard_normal((3, 2, 4, 4, 3)), jnp.float32)


@pytest.mark.parametrize("share", [0.0, 0.31, 0.995, 1.0])
@pytest.mark.parametrize("count", [1, 301])
def test_the_quantile_is_numpys(count, share):
  x = np.abs(np.random.default_rng(0).standard_normal((2, count))).astype(np.float32)
  x[1] = np.round(x[1], 1)  # many are equal
  wanted = np.quantile(x.astype(np.float64), share, axis=1)
  np.testing.assert_allclose(quantile(jnp.asarray(x), share=share), wanted, rtol=1e-5, atol=1e-6)


def test_a_share_above_one_is_refused():
  with pytest.raises(ValueError, match="99.5"):
    quantile(jnp.ones((1, 3)), share=99.5)


@pytest.mark.parametrize("threshold", [static_threshold, dynamic_threshold])
def test_values_within_bounds_stay_as_they_are(threshold):
  x = jnp.clip(clips(), -1, 1)
  np.testing.assert_array_equal(threshold(x), x)


@pytest.mark.parametrize("threshold", [static_threshold, dynamic_threshold])
def test_results_are_always_within_bounds(threshold):
  assert jnp.abs(threshold(clips(scale=30))).max() == 1


def test_the_dynamic_threshold_divides_by_the_percentile():
  x = clips(scale=5)
  scale = np.quantile(np.abs(np.asarray(x, np.float64)).reshape(3, -1), 0.995, axis=1)
  scale = scale.reshape(3, 1, 1, 1, 1)
  np.testing.assert_allclose(dynamic_threshold(x), np.clip(x, -scale, scale) / scale, atol=1e-6)


def test_a_clip_is_thresholded_by_itself_and_as_a_whole():
  x = clips(scale=5)
  other = dynamic_threshold(x.at[1].mul(10))
  np.testing.assert_array_equal(other[::2], dynamic_threshold(x)[::2])
  brighter = dynamic_threshold(x.at[0, 1].mul(10))  # a frame of the clip changes its others
  assert not np.allclose(brighter[0, 0], dynamic_threshold(x)[0, 0])
