"""Windows cover a clip, their weights sum to 1, and windowed sampling is one sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidgen.diffusion import flow
from vidgen.diffusion.windows import (
  merge,
  multi_diffusion,
  window_shares,
  window_starts,
  window_weights,
)

KINDS = ("uniform", "linear", "triangle")


def test_the_reports_windows():
  """UP-5: 256 frames are 26 windows of 14 with overlap 4, the last at 242; its tiles are 15."""
  starts = window_starts(256, size=14, overlap=4)
  assert len(starts) == 26 and starts[:2] == (0, 10) and starts[-1] == 242
  assert window_starts(14, size=14, overlap=4) == (0,)
  assert window_starts(15, size=14, overlap=4) == (0, 1)
  assert len(window_starts(32, size=4, overlap=2)) == 15  # of the autoencoder's decoder


@pytest.mark.parametrize("kind", KINDS)
def test_shares_sum_to_one_at_every_frame_of_any_length(kind):
  """UP-5. No weight is 0, at an end either, where one window may be all there is."""
  for length in range(1, 40):
    size = min(length, 14)
    weights = window_weights(size, overlap=min(4, size - 1), kind=kind)
    assert (weights > 0).all() and (weights == weights[::-1]).all()
    starts = window_starts(length, size=size, overlap=min(4, size - 1))
    shares = window_shares(starts, length=length, weights=weights)
    total = np.zeros(length)
    for start, share in zip(starts, shares, strict=True):
      total[start : start + size] += share
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_linear_weights_rise_for_the_later_window():
  """Two neighbours' weights add up to 1, and the later one's grows along the overlap."""
  weights = window_weights(14, overlap=4)
  np.testing.assert_allclose(weights[-4:] + weights[:4], 1, atol=1e-7)
  assert (np.diff(weights[:5]) > 0).all() and (weights[4:10] == 1).all()


def test_a_gap_or_an_overhang_is_refused():
  """A frame that no window covers would be 0 / 0, one beyond the end nothing at all."""
  weights = window_weights(4, overlap=1)
  for starts in ((0, 5), (0, 7), (0,)):
    with pytest.raises(ValueError, match="do not cover"):
      window_shares(starts, length=9, weights=weights)
  with pytest.raises(ValueError, match="positive"):
    window_shares((0, 2), length=6, weights=np.array([0, 1, 1, 0], np.float32))
  with pytest.raises(ValueError, match="overlap"):
    window_starts(9, size=4, overlap=4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_merging_cut_windows_gives_the_whole(axis):
  """Windows cut from one array merge to that array, along any axis, the uncovered twice exactly."""
  whole = np.random.default_rng(0).normal(size=(11, 11, 11)).astype(np.float32)
  starts, weights = window_starts(11, size=5, overlap=2), window_weights(5, overlap=2)
  cut = np.stack([np.take(whole, range(s, s + 5), axis) for s in starts])
  merged = np.asarray(merge(jnp.asarray(cut), starts=starts, length=11, weights=weights, axis=axis))
  np.testing.assert_allclose(merged, whole, atol=1e-6)
  alone = np.take(merged, range(3), axis) == np.take(whole, range(3), axis)
  assert alone.all()


@pytest.mark.parametrize("at_once", [1, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_windows_of_a_field_that_acts_on_frames_change_nothing(kind, at_once):
  """UP-2: for such a field windowed Euler is global Euler, whatever the weights; so are its text
  and its condition, frame by frame, of the right example."""
  t, b = 23, 2
  keys = jax.random.split(jax.random.key(1), 3)
  noise = jax.random.normal(keys[0], (b, t, 3, 2))
  condition = jax.random.normal(keys[1], (b, t, 3, 1))
  text = jax.random.normal(keys[2], (b, 2))
  times = flow.linear_quadratic_times(6, linear_steps=20)

  def field(x, time, text, condition):
    return jnp.tanh(x * text[:, None, None] + condition) - time.value[:, None, None, None] * x

  starts, weights = window_starts(t, size=7, overlap=2), window_weights(7, overlap=2, kind=kind)
  windowed = multi_diffusion(
    field, shared=text, framed=condition, starts=starts, weights=weights, at_once=at_once
  )
  whole = flow.euler(lambda x, time: field(x, time, text, condition), noise, times=times)
  np.testing.assert_allclose(flow.euler(windowed, noise, times=times), whole, atol=2e-6)


def test_windows_that_agree_give_what_they_agree_on():
  """UP-1: where every window says the same, so does their mean, even of unlike weights."""
  x = jnp.zeros((1, 23, 2))
  velocity = multi_diffusion(
    lambda x, time, shared, framed: jnp.full_like(x, 0.3),
    shared=(), framed=(), starts=window_starts(23, size=7, overlap=3),
    weights=np.array([1, 9, 2, 5, 3, 7, 0.1], np.float32), at_once=2,
  )  # fmt: skip
  np.testing.assert_allclose(velocity(x, flow.FlowTime(jnp.zeros(1))), 0.3, rtol=1e-6)


def test_windows_agree_on_their_overlap_at_every_step():
  """The state is one clip: a field that differs by window leaves no two values for a frame, and
  the overlap moves by the weighted mean of what its windows want."""
  starts, weights = (0, 3), np.array([1, 1, 1, 3, 1], np.float32)
  velocity = multi_diffusion(
    lambda x, time, shared, framed: jnp.broadcast_to(framed[:, :1], x.shape),
    shared=(), framed=jnp.arange(8.0)[None], starts=starts, weights=weights,
  )  # fmt: skip
  out = velocity(jnp.zeros((1, 8)), flow.FlowTime(jnp.zeros(1)))[0]
  want = [0, 0, 0, 3 * 1 / 4, 3 * 1 / 2, 3, 3, 3]  # weights 3 : 1 at frame 3, 1 : 1 at frame 4
  np.testing.assert_allclose(out, want, atol=1e-6)
