"""Spectra and mel filters against sums written out."""

import jax.numpy as jnp
import numpy as np
import pytest

from vidgen.nn.spectrogram import (
  frame_count,
  frames,
  hann,
  htk_mel,
  mel_filters,
  slaney_hertz,
  slaney_mel,
  spectra,
)


def test_the_hann_window_is_periodic():
  window = hann(8)
  assert window[0] == 0 and window[4] == 1
  np.testing.assert_allclose(window[1:], window[:0:-1])
  np.testing.assert_allclose(hann(8) + np.roll(hann(8), 4), 1)


def test_only_whole_windows_become_frames():
  assert [frame_count(n, window=4, hop=3) for n in (3, 4, 6, 7)] == [0, 1, 1, 2]
  np.testing.assert_array_equal(
    frames(jnp.arange(8.0)[None], window=4, hop=3), [[[0, 1, 2, 3], [3, 4, 5, 6]]]
  )


def test_spectra_are_the_sums_of_fourier():
  x = np.random.default_rng(0).standard_normal(20).astype(np.float32)
  found = np.asarray(spectra(jnp.asarray(x)[None], window=6, hop=5, fft=8))[0]
  window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(6) / 6)
  for t in range(3):
    for f in range(5):
      turns = np.exp(-2j * np.pi * f * np.arange(6) / 8)
      wanted = np.sum(x[5 * t : 5 * t + 6] * window * turns)
      assert abs(found[t, f] - wanted) < 1e-5


def test_mel_scales_have_their_known_points():
  assert abs(float(htk_mel(1000)) - 999.99) < 0.05  # HTK's scale puts 1 kHz at 1000
  np.testing.assert_allclose(slaney_mel([0, 500, 1000, 6400]), [0, 7.5, 15, 42], atol=1e-12)
  hertz = np.array([20.0, 999, 1001, 14_000])
  np.testing.assert_allclose(slaney_hertz(slaney_mel(hertz)), hertz, rtol=1e-12)


def test_slaney_filters_have_area_one_and_htk_filters_peak_at_one():
  where = {"sample_rate": 32_000, "fft": 16_384, "mels": 20, "low": 50.0, "high": 14_000.0}
  areas = mel_filters(**where, scale="slaney").sum(axis=0) * 32_000 / 16_384
  np.testing.assert_allclose(areas, 1, rtol=2e-2)
  peaks = mel_filters(**where, scale="htk").max(axis=0)
  assert (peaks > 0.97).all() and (peaks <= 1).all()


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_nothing_outside_of_low_and_high_is_heard(scale):
  filters = mel_filters(sample_rate=16_000, fft=512, mels=64, low=125.0, high=7500.0, scale=scale)
  heard = np.flatnonzero(filters.sum(axis=1)) * 16_000 / 512
  assert heard.min() > 125 and heard.max() < 7500
