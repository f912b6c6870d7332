"""Decoding by presentation time, and every way in which media can be bad."""

import io
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image
from shards import frame, jpeg, mp4

from vidgen.inputs.decode import (
  AUDIO_RATE,
  Clip,
  Limits,
  Span,
  TooShort,
  decode_audio,
  decode_video,
  fit,
)
from vidgen.inputs.decode_image import decode_image
from vidgen.inputs.quarantine import BadSample

LEVELS = [20, 60, 100, 140, 180, 220]


def levels(clip: Clip) -> list[int]:
  """Which of LEVELS each flat gray frame shows."""
  means = clip.frames.mean((1, 2, 3))
  assert np.abs(means[:, None] - np.array(LEVELS)[None]).min(1).max() < 6
  return [LEVELS[i] for i in np.abs(means[:, None] - np.array(LEVELS)[None]).argmin(1)]


def noise(count=24, size=64):
  rng = np.random.default_rng(0)
  base = rng.integers(20, 230, (size, size, 3))
  moves = rng.integers(-20, 20, (count, size, size, 3))
  return list(np.clip(base + moves, 0, 255).astype(np.uint8))


def vfr() -> bytes:
  """Six frames shown at 0, 0.1, 0.5, 0.6, 1.2 and 1.3 s, on a clock of 0.1 s."""
  stamps = [0, 1, 5, 6, 12, 13]
  return mp4([frame(level) for level in LEVELS], stamps=stamps, time_base=Fraction(1, 10), fps=10)


# the frame on screen at k / fps: worked out by hand from the times above
GOLDEN = {
  (2.0, 3): [20, 100, 140],  # 0, 0.5, 1.0
  (5.0, 7): [20, 60, 60, 140, 140, 140, 180],  # 0, 0.2, .. 1.2
  (10.0, 8): [20, 60, 60, 60, 60, 100, 140, 140],
}


@pytest.mark.parametrize(("fps", "count"), GOLDEN)
def test_variable_frame_rate_golden(fps, count):
  clip = decode_video(vfr())
  np.testing.assert_allclose(clip.times, [0, 0.1, 0.5, 0.6, 1.2, 1.3], atol=1e-9)
  chosen = Span(fps, count, 0.0).indices(clip.times, duration=clip.duration, tick=clip.tick)
  assert (
    levels(Clip(clip.frames[chosen], clip.times, clip.duration, clip.tick)) == GOLDEN[(fps, count)]
  )


def test_a_coarse_clock_does_not_show_a_frame_late():
  """30 fps on a clock of 1 ms: each frame is its own, though 1 / 30 s lies beside the tick."""
  times = np.round(np.arange(30) / 30, 3)
  chosen = Span(30.0, 30, 0.0).indices(times, duration=1.0, tick=0.001)
  np.testing.assert_array_equal(chosen, np.arange(30))


@pytest.mark.parametrize("draw", [0.0, 0.3, 0.77, 1.0])
@pytest.mark.parametrize("options", [{}, {"preset": "medium", "bf": "3", "g": "8"}])
def test_a_span_gives_the_frames_of_the_whole_clip(draw, options):
  data = mp4(noise(), fps=24, options=options)
  span = Span(fps=10.0, frames=4, draw=draw)
  whole, part = decode_video(data), decode_video(data, span=span)
  assert part.duration == pytest.approx(whole.duration, abs=1e-9)
  assert len(part.frames) <= 4 < len(whole.frames)
  pictures = [
    clip.frames[span.indices(clip.times, duration=clip.duration, tick=clip.tick)]
    for clip in (whole, part)
  ]
  np.testing.assert_array_equal(*pictures)


def test_the_start_moves_over_the_slack_and_no_further():
  times, starts = np.arange(16) / 8, []
  for draw in (0.0, 0.5, 1.0):
    chosen = Span(4.0, 4, draw).indices(times, duration=2.0, tick=1 / 8)
    starts.append(int(chosen[0]))
  assert starts == [0, 4, 8]


def test_a_clip_too_short_for_the_span_is_bad():
  data = mp4([frame(100)] * 4, fps=8)
  with pytest.raises(TooShort, match="0.500 s is too short for 8 frames at 4 fps") as caught:
    decode_video(data, span=Span(4.0, 8, 0.0))
  assert isinstance(caught.value, BadSample) and caught.value.duration == 0.5


def test_what_fits_is_what_can_be_decoded():
  """The last frame asked for must be on screen; one frame can be had of anything."""
  data = mp4([frame(9)] * 4, fps=8)
  for frames in range(1, 8):
    span = Span(8.0, frames, 0.0)
    assert span.fits(0.5) == (frames <= 4)
    if span.fits(0.5):
      assert len(decode_video(data, span=span).frames) == frames
    else:
      with pytest.raises(TooShort):
        decode_video(data, span=span)
  assert Span(8.0, 1, 0.0).fits(0.0)


def test_scaling_is_area_averaging():
  """A fine checkerboard becomes its mean, where picking pixels would keep black or white."""
  board = (np.indices((64, 64)).sum(0) % 2 * 200 + 20).astype(np.uint8)
  picture = np.repeat(board[..., None], 3, 2)
  lossless = {"crf": "0"}
  video = decode_video(
    mp4([picture] * 2, pix_fmt="yuv444p", options=lossless), cover=(16, 16)
  ).frames
  image = decode_image(png(picture), cover=(16, 16)).frames
  assert video.shape == (2, 16, 16, 3) and image.shape == (1, 16, 16, 3)
  assert np.abs(video.astype(int) - 120).max() <= 3
  assert np.abs(image.astype(int) - 120).max() <= 1


@pytest.mark.parametrize("cover", [(24, 40), (6, 10), (3, 5)])
def test_a_clip_made_small_is_the_area_mean_of_the_whole(cover):
  """In colour, too: stages make small clips by means of blocks, others decode to that size."""
  h, w = np.mgrid[:96, :160]
  disc = (np.hypot(h - 40, w - 60) < 28)[..., None]
  data = mp4([np.where(disc, (230, 25, 25), (30, 80, 250)).astype(np.uint8)] * 2)
  whole = decode_video(data).frames.astype(np.float32)
  np.testing.assert_allclose(whole[:, 40, 60], [(230, 25, 25)] * 2, atol=4)
  blocks = whole.reshape(2, cover[0], 96 // cover[0], cover[1], 160 // cover[1], 3).mean((2, 4))
  error = decode_video(data, cover=cover).frames - blocks
  # colours are cut to bytes after the mean, not before, at edges; where two pixels share a colour
  # this is above 8
  assert np.sqrt(np.mean(error**2)) < 1.5 and np.abs(error.mean()) < 0.3


@pytest.mark.parametrize(
  ("width", "height", "cover", "expected"),
  [
    (64.0, 64, (16, 16), (16, 16)),
    (1920.0, 1080, (256, 256), (455, 256)),
    (30.0, 99, (60, 40), (40, 132)),
  ],
)
def test_scaled_pictures_just_cover(width, height, cover, expected):
  assert fit(width, height, cover=cover) == expected


def quadrants() -> np.ndarray:
  """Red above left, green above right, blue below left, white below right; 32 high, 64 wide."""
  picture = np.zeros((32, 64, 3), np.uint8)
  picture[:16, :32, 0] = picture[:16, 32:, 1] = picture[16:, :32, 2] = 255
  picture[16:, 32:] = 255
  return picture


def corners(picture: np.ndarray) -> str:
  """The colours of the four corners, row by row."""
  names = {(1, 0, 0): "r", (0, 1, 0): "g", (0, 0, 1): "b", (1, 1, 1): "w"}
  return "".join(
    names[tuple((picture[y, x] > 128).astype(int).tolist())] for y in (4, -4) for x in (4, -4)
  )


@pytest.mark.parametrize(
  ("rotate", "expected"), [(0, "rgbw"), (90, "gwrb"), (180, "wbgr"), (-90, "brwg")]
)
def test_rotation_metadata_is_applied(rotate, expected):
  """The display matrix turns by `rotate` degrees counter-clockwise."""
  data = mp4([quadrants()] * 2, rotate=rotate)
  for cover in (None, (16, 16)):
    picture = decode_video(data, cover=cover).frames[0]
    assert corners(picture) == expected
    if cover is None:
      assert picture.shape[:2] == ((64, 32) if rotate % 180 else (32, 64))


def test_exif_orientation_is_applied():
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned clockwise by a quarter
  picture = decode_image(jpeg(quadrants(), exif=exif)).frames[0]
  assert picture.shape == (64, 32, 3) and corners(picture) == "brwg"


@pytest.mark.parametrize(
  "odd",
  [
    {"pix_fmt": "yuv420p10le"},
    {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": {"x265-params": "log-level=none"}},
    {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}},
    {"codec": "mpeg4"},
    {"faststart": True},
  ],
  ids=["10-bit", "hevc-10-bit", "vp9", "mpeg4", "faststart"],
)
def test_kinds_of_video_that_are_good(odd):
  clip = decode_video(mp4([frame(level) for level in LEVELS], **odd))
  assert levels(clip) == LEVELS and clip.duration == pytest.approx(6 / 8)


def test_odd_sizes_and_single_frames_are_good():
  clip = decode_video(mp4([quadrants()[:31, :47]], pix_fmt="yuv444p"))
  assert clip.frames.shape == (1, 31, 47, 3) and clip.duration == pytest.approx(1 / 8)


def test_pixels_that_are_not_square_become_so():
  buffer = io.BytesIO()
  with av.open(buffer, "w", format="mp4") as out:
    stream = out.add_stream("libx264", rate=8)
    stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
    stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
    for _ in range(3):
      out.mux(stream.encode(av.VideoFrame.from_ndarray(frame(100), format="rgb24")))
    out.mux(stream.encode(None))
  assert decode_video(buffer.getvalue()).frames.shape == (3, 32, 64, 3)


def test_a_title_that_is_not_utf8_spoils_nothing():
  buffer = io.BytesIO()
  with av.open(buffer, "w", format="mp4") as out:
    out.metadata["title"] = "QQQQQQ"
    stream = out.add_stream("libx264", rate=8)
    stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
    out.mux(stream.encode(av.VideoFrame.from_ndarray(frame(100), format="rgb24")))
    out.mux(stream.encode(None))
  assert b"QQQQQQ" in buffer.getvalue()
  assert (
    len(decode_video(buffer.getvalue().replace(b"QQQQQQ", b"\xff\xfe\xe9\xc3\x28z")).frames) == 1
  )


def png(picture: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(picture).save(buffer, "PNG")
  return buffer.getvalue()


def half(data: bytes) -> bytes:
  return data[: len(data) // 2]


HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
SPAN = Span(fps=8.0, frames=2, draw=0.0)
VIDEOS = {
  "empty": lambda: b"",
  "html": lambda: HTML,
  "moov at end, cut in half": lambda: half(mp4(noise(), fps=24)),
  "faststart, cut in half": lambda: half(mp4(noise(), fps=24, faststart=True)),
  "only the head": lambda: mp4(noise(), fps=24, faststart=True)[:1024],
  "a picture": lambda: jpeg(frame(100))[:50],
}


@pytest.mark.parametrize("span", [None, SPAN], ids=["whole", "span"])
@pytest.mark.parametrize("kind", VIDEOS)
def test_bad_videos(kind, span):
  with pytest.raises(BadSample):
    decode_video(VIDEOS[kind](), span=span)


def test_damage_that_the_decoder_would_paint_over_is_found():
  data = bytearray(mp4(noise(48), fps=24))
  middle = len(data) // 2
  data[middle : middle + 2000] = bytes(2000)
  with pytest.raises(BadSample, match="not decodable"):
    decode_video(bytes(data))


def test_a_video_without_frames_or_without_video_is_bad():
  empty = io.BytesIO()
  with av.open(empty, "w", format="mp4") as out:
    stream = out.add_stream("libx264", rate=8)
    stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
    stream.codec_context.open()
    out.start_encoding()
  for data in (empty.getvalue(), wav(np.zeros(4800))):
    with pytest.raises(BadSample, match="no frames|no video stream|not decodable"):
      decode_video(data)


IMAGES = {
  "empty": lambda: b"",
  "html": lambda: HTML,
  "cut in half": lambda: half(jpeg(noise(1)[0])),
  "png cut in half": lambda: half(png(noise(1)[0])),
  "a format that is not asked for": lambda: bmp(frame(100)),
  "pixel bomb": lambda: bomb(),
}


def bmp(picture):
  buffer = io.BytesIO()
  Image.fromarray(picture).save(buffer, "BMP")
  return buffer.getvalue()


def bomb() -> bytes:
  """A PNG of 12,000 x 12,000 pixels in some kB."""
  buffer = io.BytesIO()
  Image.new("1", (12_000, 12_000)).save(buffer, "PNG")
  return buffer.getvalue()


@pytest.mark.parametrize("kind", IMAGES)
def test_bad_images(kind):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    with pytest.raises(BadSample):
      decode_image(IMAGES[kind]())


def test_thin_pictures_that_would_grow_beyond_the_limit_are_bad():
  with pytest.raises(BadSample, match="pixels"):
    decode_image(png(np.zeros((1, 400, 3), np.uint8)), cover=(256, 256))
  thin = mp4(np.zeros((2, 2, 4000, 3), np.uint8), fps=8)
  for span in (None, Span(fps=8.0, frames=2, draw=0.0)):
    with pytest.raises(BadSample, match="pixels"):
      decode_video(thin, cover=(256, 256), span=span)


def test_good_images():
  for data in (
    jpeg(quadrants()),
    png(quadrants()),
    png(np.dstack([quadrants(), quadrants()[..., 0]])),
  ):
    assert corners(decode_image(data).frames[0]) == "rgbw"


LIMITS = {
  "max_bytes": Limits(max_bytes=100),
  "max_pixels": Limits(max_pixels=63 * 64),
  "frames": Limits(max_frames=23),
  "longer than": Limits(max_seconds=0.9),
}


@pytest.mark.parametrize("span", [None, SPAN], ids=["whole", "span"])
@pytest.mark.parametrize("which", LIMITS)
def test_limits_of_video(which, span):
  data = mp4(noise(), fps=24)
  decode_video(data, span=span)
  with pytest.raises(BadSample, match=which):
    decode_video(data, span=span, limits=LIMITS[which])


def test_limits_must_be_positive():
  with pytest.raises(ValueError, match="max_bytes"):
    Limits(max_bytes=0)


def test_hdr_is_refused():
  data = mp4([frame(100)] * 2, pix_fmt="yuv420p10le", options={"color_trc": "smpte2084"})
  with pytest.raises(BadSample, match="HDR"):
    decode_video(data)


def wav(samples: np.ndarray, *, rate=AUDIO_RATE, layout="mono") -> bytes:
  buffer = io.BytesIO()
  with av.open(buffer, "w", format="wav") as out:
    stream = out.add_stream("pcm_s16le", rate=rate, layout=layout)
    data = (np.clip(samples, -1, 1) * 32767).astype(np.int16).reshape(1, -1)
    picture = av.AudioFrame.from_ndarray(data, format="s16", layout=layout)
    picture.sample_rate = rate
    out.mux(stream.encode(picture))
    out.mux(stream.encode(None))
  return buffer.getvalue()


def test_audio_comes_back_at_48_khz_mono():
  times = np.arange(22_050) / 22_050
  tone = 0.5 * np.sin(2 * np.pi * 440 * times)
  for data in (
    wav(0.5 * np.sin(2 * np.pi * 440 * np.arange(AUDIO_RATE) / AUDIO_RATE)),
    wav(tone, rate=22_050),
    wav(np.repeat(tone, 2), rate=22_050, layout="stereo"),
  ):
    audio = decode_audio(data)
    assert audio.dtype == np.float32 and abs(len(audio) - AUDIO_RATE) <= 64
    assert np.abs(np.fft.rfft(audio)).argmax() == pytest.approx(440, abs=1)
    assert np.abs(audio).max() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("data", [b"", HTML, mp4([frame(1)] * 2)], ids=["empty", "html", "silent"])
def test_bad_audio(data):
  with pytest.raises(BadSample):
    decode_audio(data)


def test_limits_of_audio():
  with pytest.raises(BadSample, match="longer"):
    decode_audio(wav(np.zeros(AUDIO_RATE)), limits=Limits(max_seconds=0.5))
