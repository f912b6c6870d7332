"""The probe is right on real clips after MP4 and on worn ones, and says so when one is wrong."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from test_samples import write
from test_shapes_accuracy import write_reference

from vidgen.evals import shapes_accuracy, shapes_probe
from vidgen.evals.sample_files import CRF
from vidgen.evals.samples import read_samples
from vidgen.inputs.decode import decode_video
from vidgen.media.video import encode_mp4
from vidgen.shapes_world import Clip, Figure, WorldSpec, attributes, render, render_many
from vidgen.shapes_world.render import area_downsample

COUNT = 200
SPEC = WorldSpec()


@pytest.fixture(scope="module")
def real(tmp_path_factory):
  """Clips after MP4 at both sizes, their attributes, and a folder of both as samples."""
  folder = tmp_path_factory.mktemp("real")
  drawn = render_many(SPEC, seed=11, indices=range(COUNT))
  wanted = [attributes(clip) for clip in drawn["clips"]]
  write(folder / "full", COUNT, videos=drawn["video"], fps=8.0, crf=18)
  full = [video.frames for video in read_samples(folder / "full").videos()]
  small = [area_downsample(video, size=16, frames=8) for video in full]
  write(folder / "small", COUNT, videos=small, fps=4.0, crf=CRF)
  lines = [
    {"key": f"key{i}", "prompt": f"prompt {i}", "attributes": a} for i, a in enumerate(wanted)
  ]
  write_reference(folder, lines)
  return {"full": full, "small": small, "attributes": wanted, "folder": folder}


def shares(videos, wanted, *, fps):
  """Of the clips for which an attribute is asked, the share in which it is right; by attribute."""
  right = collections.defaultdict(list)
  for video, asked in zip(videos, wanted, strict=True):
    for name, value in shapes_probe.judge(shapes_probe.read_clip(video, fps=fps), asked).items():
      right[name].append(value)
  return {name: float(np.mean(values)) for name, values in right.items()}


NAMES = {"shape", "colour", "motion", "background", "all", "size", "speed", "count"}


# The small ones are here compressed twice, which their outlines do not quite survive.
@pytest.mark.parametrize(
  ("size", "side", "frames", "fps", "least"),
  [("full", 64, 16, 8.0, 0.99), ("small", 16, 8, 4.0, 0.97)],
)
def test_the_scorer_finds_each_attribute_of_real_clips_right(real, size, side, frames, fps, least):
  samples = read_samples(real["folder"] / size)
  result = shapes_accuracy.score(samples, reference=real["folder"] / "data")
  assert set(result.values) == NAMES
  assert min(result.values.values()) >= least, result.values
  protocol = result.protocol
  assert protocol.metric == "shapes_probe"
  assert protocol.extractor_version == str(shapes_probe.VERSION)
  assert (protocol.height, protocol.width, protocol.frames) == (side, side, frames)
  assert (protocol.fps, protocol.count, protocol.missing) == (fps, COUNT, 0)


def test_at_least_99_percent_of_each_attribute_of_small_real_clips_is_right(real):
  values = shares(real["small"], real["attributes"], fps=4.0)
  assert set(values) == NAMES
  assert min(values.values()) >= 0.99, values


def test_clips_shrunk_while_decoding_read_as_well(real):
  drawn = render_many(SPEC, seed=12, indices=range(60))
  clips = [decode_video(encode_mp4(v, fps=8.0), cover=(16, 16)).frames[::2] for v in drawn["video"]]
  wanted = [attributes(clip) for clip in drawn["clips"]]
  assert min(shares(clips, wanted, fps=4.0).values()) >= 0.98


def test_wide_clips_of_a_cascade_are_all_read_right():
  """After MP4 at 96 x 160, and their area means at 24 x 40, at several rates over the same time."""
  spec = WorldSpec(height=96, width=160, frames=128, fps=64.0, two_objects=0.0)
  drawn = render_many(spec, seed=13, split="held_out", indices=range(8))
  wanted = [attributes(clip) for clip in drawn["clips"]]
  full = np.stack([decode_video(encode_mp4(v, fps=64.0)).frames for v in drawn["video"]])
  small = full.reshape(8, 128, 24, 4, 40, 4, 3).mean((3, 5), dtype=np.float32) / 127.5 - 1
  assert min(shares(full[:2], wanted[:2], fps=64.0).values()) == 1
  for step in (1, 4):
    assert min(shares(small[:, ::step], wanted, fps=64.0 / step).values()) == 1


def wear(video, *, noise=0.0, blur=0.0, gain=1.0, shift=0.0):
  """An imperfect clip, floats in [-1, 1]."""
  rng = np.random.default_rng(int(video.sum()) % 2**31)
  video = video.astype(np.float32) / 127.5 - 1
  video = video + rng.normal(0, noise, video.shape).astype(np.float32)
  return (gaussian_filter(video, (0, blur, blur, 0)) if blur else video) * gain + shift


@pytest.mark.parametrize(
  "how",
  [{"noise": 0.2}, {"blur": 0.7}, {"noise": 0.15, "blur": 0.6, "gain": 0.85, "shift": 0.05}],
  ids=["noisy", "blurred", "worn"],
)
def test_small_worn_clips_are_still_read(real, how):
  clips = [wear(v, **how) for v in real["small"]]
  values = shares(clips, real["attributes"], fps=4.0)
  assert min(values.values()) >= 0.97, values


def test_a_drawing_with_a_blotch_and_a_wrong_frame_is_still_read():
  figure = Figure("triangle", "green", "right", "large", "slow", 0.3, 0.5)
  clip = Clip("white", (figure,))
  video = area_downsample(render(clip, SPEC), size=16, frames=8).copy()
  video[3] = 255
  video[:, 0:2, 12:14] = (200, 180, 230)
  assert shapes_probe.judge(shapes_probe.read_clip(video, fps=4.0), attributes(clip))["all"]


def test_noise_is_right_by_chance_only(real):
  rng = np.random.default_rng(0)
  clips = rng.uniform(-1, 1, (COUNT, 8, 16, 16, 3)).astype(np.float32)
  values = shares(clips, real["attributes"], fps=4.0)
  assert values["shape"] < 0.4 and values["colour"] < 0.35 and values["motion"] < 0.35
  assert values["background"] < 0.4 and values["all"] < 0.02


def test_clips_of_other_prompts_are_wrong(real):
  wanted = real["attributes"][1:] + real["attributes"][:1]
  values = shares(real["small"], wanted, fps=4.0)
  assert values["all"] < 0.03
  assert max(values[name] for name in shapes_probe.ASKED) < 0.4


@pytest.mark.parametrize(
  ("name", "other"),
  [
    ("shape", "square"),
    ("colour", "blue"),
    ("motion", "right"),
    ("background", "gray"),
    ("size", "large"),
    ("speed", "fast"),
    ("count", 2),
  ],
)
def test_one_wrong_attribute_is_seen_and_no_other(name, other):
  figure = Figure("circle", "red", "left", "small", "slow", 0.6, 0.5)
  clip = Clip("black", (figure,))
  wanted = {**attributes(clip), name: other}
  right = shapes_probe.judge(shapes_probe.read_clip(render(clip, SPEC), fps=8.0), wanted)
  assert [key for key, value in right.items() if not value] == (
    [name, "all"] if name in shapes_probe.ASKED else [name]
  )


def test_what_a_prompt_does_not_say_is_not_judged():
  figure = Figure("cross", "cyan", "still", "large", None, 0.5, 0.5)
  clip = Clip("navy", (figure,))
  reading = shapes_probe.read_clip(render(clip, SPEC), fps=8.0)
  wanted = {**attributes(clip), "size": None, "count": None}
  assert set(shapes_probe.judge(reading, wanted)) == {*shapes_probe.ASKED, "all"}


def test_two_figures_are_told_apart_and_both_must_be_right():
  upper = Figure("circle", "red", "left", "small", "fast", 0.7, 0.25)
  lower = Figure("cross", "green", "still", "small", None, 0.5, 0.75)
  clip, wanted = Clip("striped", (upper, lower)), attributes(Clip("striped", (upper, lower)))
  reading = shapes_probe.read_clip(render(clip, SPEC), fps=8.0)
  assert reading.attributes() == wanted
  assert all(shapes_probe.judge(reading, wanted).values())
  swapped = {**wanted, **wanted["second"], "second": {k: wanted[k] for k in wanted["second"]}}
  right = shapes_probe.judge(reading, swapped)
  assert not right["shape"] and not right["colour"] and right["size"] and right["count"]
  alone = shapes_probe.judge(reading, attributes(Clip("striped", (upper,))))
  assert not alone["count"]


def test_an_empty_clip_shows_a_background_and_nothing_right():
  video = render(Clip("navy", ()), SPEC)
  reading = shapes_probe.read_clip(video, fps=8.0)
  assert reading.background == "navy" and not reading.figures
  wanted = attributes(Clip("navy", (Figure("circle", "red", "still", "small", None, 0.5, 0.5),)))
  right = shapes_probe.judge(reading, wanted)
  assert right["background"] and not any(right[n] for n in ("shape", "colour", "motion", "all"))


@given(st.sampled_from([(8, 16, 16), (9, 20, 20), (12, 48, 48), (16, 128, 128), (10, 24, 32)]))
@settings(max_examples=5, deadline=None)
def test_other_sizes_and_lengths_are_read(shape):
  frames, height, width = shape
  spec = WorldSpec(height=height, width=width, frames=frames, fps=frames / 2)
  figure = Figure("triangle", "purple", "up", "large", "fast", 0.5, 0.7)
  clip = Clip("gray", (figure,))
  reading = shapes_probe.read_clip(render(clip, spec), fps=spec.fps)
  assert shapes_probe.judge(reading, attributes(clip))["all"]


def test_bytes_and_floats_read_the_same_and_not_a_number_does_not_matter(real):
  video = real["small"][0]
  floats = video.astype(np.float32) / 127.5 - 1
  expected = shapes_probe.read_clip(video, fps=4.0).attributes()
  assert shapes_probe.read_clip(floats, fps=4.0).attributes() == expected
  floats[2, 3, 4] = np.nan
  assert shapes_probe.read_clip(floats, fps=4.0).attributes() == expected


def test_clips_it_cannot_read_are_refused():
  for shape in ((7, 16, 16, 3), (8, 15, 16, 3), (8, 16, 16, 1)):
    with pytest.raises(ValueError, match="clip of shape"):
      shapes_probe.read_clip(np.zeros(shape, np.uint8), fps=8.0)
