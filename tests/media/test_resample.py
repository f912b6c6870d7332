"""Resampling keeps what is below the lower Nyquist frequency, and nothing else."""

import math
from pathlib import Path

import numpy as np
import pytest
from conformance import Case, check
from fixtures.sounds import sounds
from scipy.signal import resample_poly

from vidgen.errors import DataError
from vidgen.media.audio import Sound
from vidgen.media.resample import BEST, SincFilter, resample, to_mono

FIXTURE = np.load(Path(__file__).parents[1] / "fixtures" / "audio_networks.npz")
RATES = [(44_100, 16_000), (48_000, 16_000), (22_050, 32_000), (16_000, 32_000)]


def scipys(samples, source, target):
  """SciPy's polyphase resampling, given the taps of BEST at the common multiple of both rates."""
  shared = math.gcd(source, target)
  up, down = target // shared, source // shared
  half = BEST.zeros * max(up, down)
  t = np.arange(-half, half + 1) / max(up, down)
  window = np.i0(BEST.beta * np.sqrt(1 - (t / BEST.zeros) ** 2)) / np.i0(BEST.beta)
  taps = min(1, up / down) / up * BEST.rolloff * np.sinc(BEST.rolloff * t) * window
  return resample_poly(samples, up, down, window=taps)


def against_scipy():
  pairs = {}
  for source, target in RATES:
    samples = sounds(source, 3000)["chirp"].astype(np.float64)
    ours = resample(samples, source=source, target=target)
    pairs[f"{source} to {target}"] = ours, scipys(samples, source, target)[: len(ours)]
  return pairs


def against_resampy(pairs_of_rates):
  pairs = {}
  for source, target in pairs_of_rates:
    ours = resample(sounds(source, 3000)["chirp"], source=source, target=target)[:1200]
    pairs[f"{source} to {target}"] = ours, FIXTURE[f"resample/{source}/{target}"]
  return pairs


RESAMPY = "resampy==0.4.3, kaiser_best"
CASES = [
  Case("media.resample", "scipy==1.17.1, resample_poly", "the same taps", 1e-6, against_scipy),
  Case("media.resample", RESAMPY, "to a higher rate", 1e-6, lambda: against_resampy(RATES[2:])),
  # Downwards resampy rounds its step through a table of taps, which moves the cutoff by 0.02%.
  Case("media.resample", RESAMPY, "to a lower rate", 2e-3, lambda: against_resampy(RATES[:2])),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.reference} {c.config}")
def test_parity(case):
  check(case)


def test_a_filter_of_other_constants_is_told_apart_from_scipys():
  samples = sounds(48_000, 3000)["chirp"].astype(np.float64)
  ours = resample(samples, source=48_000, target=16_000, filter=SincFilter(rolloff=1.0))
  assert np.abs(ours - scipys(samples, 48_000, 16_000)[: len(ours)]).max() > 1e-3


@pytest.mark.parametrize(("source", "target"), RATES)
def test_a_tone_below_both_nyquist_frequencies_stays_as_it_is(source, target):
  n = 4000
  tone = np.sin(2 * np.pi * 3000 * np.arange(n) / source)
  found = resample(tone, source=source, target=target)
  wanted = np.sin(2 * np.pi * 3000 * np.arange(len(found)) / target)
  assert len(found) == n * target // source
  inside = slice(300, -300)  # the ends meet silence
  np.testing.assert_allclose(found[inside], wanted[inside], atol=2e-5)


def test_a_tone_above_the_new_nyquist_frequency_goes():
  tone = np.sin(2 * np.pi * 9000 * np.arange(9000) / 48_000)
  assert np.abs(resample(tone, source=48_000, target=16_000)[300:-300]).max() < 1e-4


def test_the_same_rate_changes_nothing():
  samples = sounds(16_000, 100)["chirp"]
  np.testing.assert_array_equal(resample(samples, source=16_000, target=16_000), samples)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_the_shortest_sounds_have_the_length_they_should(count):
  samples = np.ones(count, np.float32)
  assert len(resample(samples, source=48_000, target=32_000)) == count * 2 // 3


def test_mixing_down_is_the_mean_of_the_channels():
  left = sounds(16_000, 100)["chirp"]
  sound = Sound(np.stack([left, 3 * left], axis=1), 16_000)
  np.testing.assert_allclose(to_mono(sound, sample_rate=16_000), 2 * left, rtol=1e-6)


def test_a_rate_out_of_bounds_is_refused():
  with pytest.raises(DataError, match="sample rate 7"):
    resample(np.zeros(8), source=7, target=16_000)


def test_samples_that_are_not_finite_are_refused():
  samples = np.zeros([8, 1], np.float32)
  samples[3] = np.nan
  with pytest.raises(DataError, match="not finite"):
    to_mono(Sound(samples, 16_000), sample_rate=16_000)


def test_rates_that_share_no_factor_do_not_take_gigabytes():
  """767,999 and 16,000 would need 16,000 filters of 4,803 taps."""
  with pytest.raises(DataError, match="sample rate 767999: too odd"):
    resample(np.zeros(8), source=767_999, target=16_000)
  assert len(resample(np.zeros(8), source=44_099, target=16_000)) == 2
