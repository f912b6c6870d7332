"""Signal metrics against auraloss, pyloudnorm, the tables of BS.1770 and closed forms."""

import math
from pathlib import Path

import numpy as np
import pytest
from conformance import Case, check, measure
from fixtures.sounds import sounds

from vidgen.errors import DataError
from vidgen.evals.signal_distances import (
  k_weighting,
  log_spectral_distance,
  loudness,
  multi_resolution_stft,
  si_sdr,
)

FIXTURE = np.load(Path(__file__).parents[1] / "fixtures" / "audio_networks.npz")
AURALOSS = "auraloss==0.4.0"


def both():
  made = sounds(16_000, 6000)
  return made["chirp"].astype(np.float64), made["clipped"].astype(np.float64)


def si_sdr_pairs():
  real, fake = both()
  return {
    m: (si_sdr(real, fake + 0.1, mean=m), FIXTURE[f"si_sdr/{m}"]) for m in ("kept", "removed")
  }


def stft_pairs():
  return {"distance": (multi_resolution_stft(*both()), FIXTURE["stft_distance"])}


def quiet_then_loud(rate):
  samples = sounds(rate, rate)["chirp"].astype(np.float64)
  samples[: rate // 2] *= 0.01
  return np.stack([samples, 0.5 * samples], axis=1)


def loudness_pairs():
  return {
    str(rate): (loudness(quiet_then_loud(rate), sample_rate=rate), FIXTURE[f"loudness/{rate}"])
    for rate in (16_000, 48_000)
  }


ROOM = "evals.signal_distances"
STFT = f"{AURALOSS}, MultiResolutionSTFTLoss"
METER = "pyloudnorm==0.2.0, DeMan"
CASES = [
  Case(f"{ROOM}.si_sdr", f"{AURALOSS}, SISDRLoss", "mean kept and removed", 1e-6, si_sdr_pairs),
  Case(f"{ROOM}.multi_resolution_stft", STFT, "defaults", 1e-6, stft_pairs),
  Case(f"{ROOM}.loudness", METER, "16 and 48 kHz, gated", 1e-9, loudness_pairs),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.module)
def test_parity(case):
  check(case)


def test_the_filters_at_48_khz_are_those_of_the_standards_tables():
  shelf, high_pass = k_weighting(48_000)
  np.testing.assert_allclose(
    np.array(shelf) / shelf[1][0],
    [
      [1.53512485958697, -2.69169618940638, 1.19839281085285],
      [1, -1.69065929318241, 0.73248077421585],
    ],
    atol=1e-12,
  )
  np.testing.assert_allclose(
    high_pass[1] / high_pass[1][0], [1, -1.99004745483398, 0.99007225036621], atol=1e-12
  )


def test_a_full_scale_tone_of_997_hz_has_the_standards_loudness():
  t = np.arange(3 * 48_000) / 48_000
  tone = np.sin(2 * np.pi * 997 * t)[:, None]
  assert loudness(tone, sample_rate=48_000) == pytest.approx(-3.01, abs=0.01)


def test_loudness_follows_the_gain_and_silence_has_none():
  sound = quiet_then_loud(16_000)
  found = [loudness(sound * gain, sample_rate=16_000) for gain in (1.0, 0.1)]
  assert found[0] - found[1] == pytest.approx(20, abs=1e-9)
  assert loudness(np.zeros([16_000, 1]), sample_rate=16_000) == -math.inf


def test_silence_beside_a_sound_is_gated():
  sound = np.tile(quiet_then_loud(16_000)[8000:], [8, 1])
  silence = np.zeros([3 * len(sound), 2])
  plain = loudness(sound, sample_rate=16_000)
  found = loudness(np.concatenate([silence, sound]), sample_rate=16_000)
  assert found == pytest.approx(plain, abs=0.5)  # 6 less without the gate


def test_loudness_of_a_moment_or_of_many_channels_is_refused():
  for shape in ([100, 1], [16_000, 6]):
    with pytest.raises(DataError):
      loudness(np.zeros(shape), sample_rate=16_000)


def test_si_sdr_does_not_hear_a_gain_and_knows_white_noise():
  real = np.random.default_rng(0).standard_normal(100_000)
  assert si_sdr(real, 3 * real) > 250
  noise = np.random.default_rng(1).standard_normal(100_000)
  assert si_sdr(real, real + 0.1 * noise) == pytest.approx(20, abs=0.1)


def test_si_sdr_of_silence_is_refused():
  with pytest.raises(DataError, match="silent"):
    si_sdr(np.zeros(9), np.ones(9))


def test_a_gain_of_ten_is_twenty_decibels_of_log_spectral_distance():
  noise = np.random.default_rng(0).standard_normal(9000)
  assert log_spectral_distance(noise, 10 * noise) == pytest.approx(20, abs=1e-9)
  assert log_spectral_distance(noise, noise) == 0


def test_stft_distance_of_equal_sounds_is_zero_and_one_resolution_is_not_three():
  real, _ = both()
  assert multi_resolution_stft(real, real) == 0
  one = multi_resolution_stft(*both(), resolutions=[(1024, 120, 600)])
  assert measure({"": (one, FIXTURE["stft_distance"])}).relative > 1e-3


@pytest.mark.parametrize("distance", [si_sdr, multi_resolution_stft, log_spectral_distance])
def test_sounds_of_two_lengths_or_not_finite_are_refused(distance):
  with pytest.raises(DataError, match="9 and 8"):
    distance(np.ones(9), np.ones(8))
  with pytest.raises(DataError, match="not finite"):
    distance(np.full(9000, np.nan), np.ones(9000))
