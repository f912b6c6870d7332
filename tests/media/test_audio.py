"""WAV: what is written is read back, by this reader and by the standard library's."""

import io
import wave

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidgen.errors import DataError
from vidgen.media.audio import decode_wav, encode_wav


@given(
  st.integers(0, 200), st.integers(1, 3), st.sampled_from((8_000, 48_000)), st.integers(0, 2**31)
)
@settings(max_examples=40, deadline=None)
def test_round_trip(length, channels, rate, seed):
  audio = np.random.default_rng(seed).uniform(-1, 1, (length, channels)).astype(np.float32)
  exact = decode_wav(encode_wav(audio, sample_rate=rate, sample_format="float32"))
  assert (exact.samples == audio).all() and exact.sample_rate == rate
  near = decode_wav(encode_wav(audio, sample_rate=rate))
  assert near.samples.shape == audio.shape
  assert not length or np.abs(near.samples - audio).max() <= 0.5 / 32767 + 1e-7


def test_the_standard_library_reads_the_same():
  audio = np.array([0.0, 0.5, -1.0, 1.0, 7.0], np.float32)
  with wave.open(io.BytesIO(encode_wav(audio, sample_rate=16_000))) as file:
    assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16_000)
    samples = np.frombuffer(file.readframes(5), "<i2")
  assert samples.tolist() == [0, 16384, -32767, 32767, 32767]


def test_damaged_files_are_refused():
  good = encode_wav(np.zeros(100, np.float32))
  for bad in (b"", b"<html>not a sound</html>", good[:60], good[:20], good[:-1]):
    with pytest.raises(DataError):
      decode_wav(bad)
  eight_bits = good[:34] + b"\x08" + good[35:]
  with pytest.raises(DataError, match="only 16-bit and 32-bit float"):
    decode_wav(eight_bits)
  with pytest.raises(ValueError, match="sample format"):
    encode_wav(np.zeros(3, np.float32), sample_format="int24")
