"""MP4: H.264 and AAC as tagged, right in time and colour, and the same bytes every time."""

import hashlib
import io
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from vidgen.inputs.decode import decode_audio, decode_video
from vidgen.media.video import encode_mp4, to_uint8, write_mp4
from vidgen.shapes_world import WorldSpec, render_many

ROOT = Path(__file__).resolve().parents[2]
FRAMES = render_many(WorldSpec(), seed=0, indices=range(1))["video"][0]
TONE = (0.5 * np.sin(np.arange(96_000) * 2 * np.pi * 440 / 48_000)).astype(np.float32)


def test_streams_durations_and_tags():
  with av.open(io.BytesIO(encode_mp4(FRAMES, fps=8.0, audio=TONE))) as container:
    video, audio = container.streams.video[0], container.streams.audio[0]
    assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
    assert video.duration * video.time_base == 2 and audio.duration * audio.time_base == 2
    assert video.codec_context.pix_fmt == "yuv420p"
    assert (video.codec_context.colorspace, video.codec_context.color_range) == (1, 1)
    assert (video.codec_context.color_primaries, video.codec_context.color_trc) == (1, 1)
    assert (audio.rate, audio.layout.name) == (48_000, "mono")
    times = [frame.pts * frame.time_base for frame in container.decode(video)]
    assert [float(t) for t in times] == [k / 8 for k in range(16)]


def test_the_index_comes_first_so_that_players_can_start():
  data = encode_mp4(FRAMES, fps=8.0)
  assert 0 < data.find(b"moov") < data.find(b"mdat")


def decode(data):
  with av.open(io.BytesIO(data)) as container:
    return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def test_colours_survive():
  for colour in ((230, 25, 25), (25, 190, 50), (30, 80, 250), (255, 255, 255), (0, 0, 0)):
    flat = np.broadcast_to(np.array(colour, np.uint8), (3, 32, 48, 3))
    assert np.abs(decode(encode_mp4(flat, fps=4.0)).astype(int) - flat).max() <= 4


def test_a_lower_crf_is_nearer_to_the_input_and_larger():
  fine, coarse = (encode_mp4(FRAMES, fps=8.0, crf=crf) for crf in (10, 40))
  error = [np.abs(decode(d).astype(int) - FRAMES).mean() for d in (fine, coarse)]
  assert error[0] < error[1] and len(fine) > len(coarse)


@pytest.mark.parametrize("size", [(16, 24), (17, 23)])
def test_without_a_crf_nothing_is_lost(size):
  """Noise of any parity of sides, in pieces, comes back bit for bit; at crf 0 colour is lost."""
  video = np.random.default_rng(0).integers(0, 256, (6, *size, 3), np.uint8)
  data = encode_mp4(iter([video[:2], video[2:]]), fps=8.0, crf=None)
  np.testing.assert_array_equal(decode_video(data).frames, video)
  assert data == encode_mp4(video, fps=8.0, crf=None)
  if not any(side % 2 for side in size):
    assert (decode_video(encode_mp4(video, fps=8.0, crf=0)).frames != video).any()


def test_sound_keeps_its_place_and_level():
  sound = np.zeros(96_000, np.float32)
  sound[24_000:36_000] = TONE[:12_000]
  heard = decode_audio(encode_mp4(FRAMES, fps=8.0, audio=sound))
  loud = np.flatnonzero(np.abs(heard) > 0.05)
  assert abs(loud[0] - 24_000) < 100 and abs(loud[-1] - 36_000) < 300
  assert np.abs(heard[24_500:35_500] - sound[24_500:35_500]).mean() < 0.02


def test_the_same_input_gives_the_same_bytes_in_a_cluttered_process_and_in_another():
  expected = encode_mp4(FRAMES, fps=8.0, audio=TONE)
  rng = np.random.default_rng(0)
  for _ in range(25):  # memory that is not cleared shows itself when it held something else
    clutter = [rng.bytes(int(rng.integers(100, 90_000))) for _ in range(20)]
    assert encode_mp4(FRAMES, fps=8.0, audio=TONE) == expected and clutter
  code = (
    "import hashlib, sys; sys.path.insert(0, '.'); from tests.media.test_video import *;"
    "print(hashlib.sha256(encode_mp4(FRAMES, fps=8.0, audio=TONE)).hexdigest())"
  )
  other = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
  )
  assert other.stdout.strip() == hashlib.sha256(expected).hexdigest()


def test_the_file_and_the_bytes_are_one(tmp_path):
  write_mp4(tmp_path / "clip.mp4", FRAMES, fps=8.0)
  assert (tmp_path / "clip.mp4").read_bytes() == encode_mp4(FRAMES, fps=8.0)
  assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def test_fractional_rates_keep_their_time():
  with av.open(io.BytesIO(encode_mp4(FRAMES, fps=30_000 / 1001))) as container:
    assert container.streams.video[0].average_rate == pytest.approx(29.97, abs=1e-3)


def test_what_cannot_be_encoded_is_refused():
  for shape in ((0, 16, 16, 3), (2, 15, 16, 3), (2, 16, 17, 3)):
    with pytest.raises(ValueError, match="even height and width"):
      encode_mp4(np.zeros(shape, np.uint8), fps=8.0)


def test_floats_become_the_nearest_bytes():
  values = np.array([[-1.0, 1.0, 0.0, 2.0, -3.0]], np.float32)
  assert to_uint8(values).tolist() == [[0, 255, 128, 255, 0]]
  every = np.arange(256, dtype=np.uint8)
  assert (to_uint8(every.astype(np.float32) / 127.5 - 1) == every).all()
