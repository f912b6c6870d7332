"""Clips are pure functions of (seed, split, index), stay in the frame, and the split is clean."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidgen.shapes_world import (
  WorldSpec,
  attributes,
  caption_clip,
  is_held_out,
  render,
  render_many,
  sample_clip,
  triples,
)
from vidgen.shapes_world.captions import (
  PAIR_STATED,
  PAIR_TEMPLATES,
  STATED,
  TEMPLATES,
  VERBS,
  word,
)
from vidgen.shapes_world.render import area_downsample, background, distance
from vidgen.shapes_world.world import (
  BACKGROUNDS,
  COLOURS,
  HOPS,
  MOTIONS,
  SHAPES,
  SIZES,
  SPEEDS,
  Clip,
  Figure,
  floor,
  sample_figure,
)

SPEC = WorldSpec()
seeds, indices = st.integers(0, 2**40), st.integers(0, 2**40)
splits = st.sampled_from(("train", "held_out"))


@given(seeds, splits, indices)
@settings(max_examples=200, deadline=None)
def test_figures_stay_in_the_frame_and_apart(seed, split, index):
  clip = sample_clip(SPEC, seed=seed, split=split, index=index)
  times = np.linspace(0, SPEC.seconds, 201)
  for figure in clip.figures:
    centres, radius = figure.positions(times), SIZES[figure.size] / 2
    assert (centres >= radius).all() and (centres <= 1 - radius).all()
  if len(clip.figures) == 2:
    upper, lower = (figure.positions(times)[:, 1] for figure in clip.figures)
    assert (lower - upper >= SIZES["small"]).all()
    assert clip.figures[0].colour != clip.figures[1].colour


@given(seeds, indices)
@settings(max_examples=100, deadline=None)
def test_only_held_out_triples_are_held_out(seed, index):
  for split in ("train", "held_out"):
    for f in sample_clip(SPEC, seed=seed, split=split, index=index).figures:
      assert is_held_out(f.shape, f.colour, f.motion) == (split == "held_out")


def test_the_split_is_disjoint_covers_all_and_keeps_every_value_on_both_sides():
  train, held = set(triples("train")), set(triples("held_out"))
  assert len(train) + len(held) == len(train | held) == 4 * 6 * 6 and len(held) == 18
  for values, place in ((SHAPES, 0), (tuple(COLOURS), 1), (MOTIONS, 2)):
    for side in (train, held):
      assert {triple[place] for triple in side} == set(values)


def test_a_clip_does_not_depend_on_what_was_drawn_before():
  alone = [sample_clip(SPEC, seed=3, index=i) for i in range(20)]
  backwards = [sample_clip(SPEC, seed=3, index=i) for i in reversed(range(20))]
  assert alone == backwards[::-1]
  assert len({str(clip) for clip in alone}) == 20
  assert alone[0] != sample_clip(SPEC, seed=4, index=0)
  assert alone[0] != sample_clip(SPEC, seed=3, split="held_out", index=0)


def test_all_values_occur_and_a_quarter_of_the_clips_has_two_figures():
  clips = [sample_clip(SPEC, seed=0, index=i) for i in range(600)]
  assert {c.background for c in clips} == set(BACKGROUNDS)
  figures = [f for c in clips for f in c.figures]
  assert {f.shape for f in figures} == set(SHAPES)
  assert {f.motion for f in figures} == set(MOTIONS)
  assert {f.size for f in figures} == set(SIZES)
  assert {f.speed for f in figures} == {None, *SPEEDS}
  assert 0.19 < np.mean([len(c.figures) == 2 for c in clips]) < 0.31
  single = WorldSpec(two_objects=0.0)
  assert all(len(sample_clip(single, seed=0, index=i).figures) == 1 for i in range(100))


@given(st.integers(0, 999).map(lambda k: k / 1000), st.sampled_from(tuple(HOPS)))
@settings(max_examples=50, deadline=None)
def test_impacts_are_the_times_on_the_floor(phase, speed):
  figure = Figure("circle", "red", "bouncing", "small", speed, 0.5, floor("small"), phase)
  impacts = np.array(figure.impacts(2.0))
  assert np.allclose(figure.positions(impacts)[:, 1], figure.y, atol=1e-6)
  assert len(impacts) in (int(2 * HOPS[speed]), int(2 * HOPS[speed]) + 1)
  between = (impacts[1:] + impacts[:-1]) / 2
  assert (figure.positions(between)[:, 1] < figure.y - 0.3).all()


def test_speeds_and_directions_are_as_named():
  for motion, axis, sign in (("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)):
    for speed, value in SPEEDS.items():
      figure = Figure("circle", "red", motion, "small", speed, 0.5, 0.5)
      moved = figure.positions(np.array([0.0, 1.0]))
      expected = np.zeros(2)
      expected[axis] = sign * value
      assert np.allclose(moved[1] - moved[0], expected)


def all_single_clips():
  rng = np.random.default_rng(0)
  for shape, colour, motion in itertools.product(SHAPES, COLOURS, MOTIONS):
    for size, speed in itertools.product(SIZES, SPEEDS):
      figure = sample_figure(rng, (shape, colour, motion), seconds=2.0, size=size, speed=speed)
      for place in BACKGROUNDS:
        yield Clip(place, (figure,))


def test_captions_name_what_they_must_and_are_short_enough():
  for clip in all_single_clips():
    figure = clip.figures[0]
    for length, templates in TEMPLATES.items():
      for template in templates:
        caption = word(clip, template, stated=STATED[length])
        assert len(caption.text.encode()) <= 96
        for part in (figure.shape, figure.colour, VERBS[figure.motion], clip.background):
          assert part in caption.text
        assert ("small" in caption.text or "large" in caption.text) == (
          caption.attributes["size"] is not None
        )
        said = any(w in caption.text.split() or w + "," in caption.text for w in ("slowly", "fast"))
        assert said == (caption.attributes["speed"] is not None)


def test_captions_of_two_figures_are_short_enough():
  longest = 0
  words = itertools.product(("purple", "yellow"), ("triangle",), ("still", "right"))
  figures = [
    Figure(s, c, m, "small", None if m == "still" else "slow", 0.5, 0.3) for c, s, m in words
  ]
  for first, second in itertools.product(figures, figures):
    for length, templates in PAIR_TEMPLATES.items():
      for template in templates:
        clip = Clip("striped", (first, second))
        longest = max(longest, len(word(clip, template, stated=PAIR_STATED[length]).text))
  assert 100 < longest <= 160


def test_the_spec_chooses_the_captions():
  spec = WorldSpec(caption_lengths=("short",), two_objects=0.0)
  for i in range(50):
    clip = sample_clip(spec, seed=0, index=i)
    caption = caption_clip(clip, spec, seed=0, index=i)
    assert len(caption.text) <= 48
    assert caption.attributes["size"] is None and caption.attributes["count"] == 1


def test_frames_show_the_figures_where_they_are():
  figure = Figure("circle", "red", "right", "small", "fast", 0.25, 0.5)
  video = render(Clip("black", (figure,)), SPEC)
  assert video.shape == (16, 64, 64, 3) and video.dtype == np.uint8
  mass = video[..., 0].astype(float)
  x = (mass.sum(axis=1) @ (np.arange(64) + 0.5)) / mass.sum(axis=(1, 2)) / 64
  assert np.allclose(x, figure.positions(np.arange(16) / 8)[:, 0], atol=2e-3)
  # The area of a circle, to the accuracy of 8-bit edges.
  assert np.isclose(mass[0].sum() / 230 / 64**2, np.pi * (SIZES["small"] / 2) ** 2, rtol=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_edges_are_antialiased_like_the_mean_of_fine_samples(shape):
  def draw(size):
    at = (np.arange(size, dtype=np.float32) + 0.5 - size / 2) - np.float32(0.3 * size / 32)
    return np.clip(0.5 - distance(shape, at[None, :], at[:, None], 0.25 * size), 0, 1)

  fine = draw(32 * 16).reshape(32, 16, 32, 16).mean(axis=(1, 3))
  coarse = draw(32)
  assert np.abs(coarse - fine).max() < 0.3 and np.abs(coarse - fine).mean() < 0.01
  assert ((coarse > 0.05) & (coarse < 0.95)).any()


@pytest.mark.parametrize("height", [16, 30, 64])
def test_stripes_have_equal_shares_at_any_height(height):
  stripes = background("striped", height=height, width=16)
  assert np.isclose(stripes.mean(), 128) and stripes.std() > 30


def test_some_frames_are_those_of_the_whole_clip():
  clip = sample_clip(SPEC, seed=2, index=5)
  assert (render(clip, SPEC, frames=[9, 3]) == render(clip, SPEC)[[9, 3]]).all()


def test_two_figures_are_both_drawn_and_do_not_overlap():
  for i in itertools.count():
    clip = sample_clip(WorldSpec(two_objects=1.0), seed=0, index=i)
    if clip.background == "black":
      break
  both = render(clip, SPEC).astype(int)
  alone = [render(Clip("black", (f,)), SPEC).astype(int) for f in clip.figures]
  assert (both == alone[0] + alone[1]).all()
  assert attributes(clip)["count"] == 2 and attributes(clip)["second"]["size"] == "small"


def test_many_clips_at_once_are_the_single_ones_averaged():
  many = render_many(SPEC, seed=1, indices=range(6), size=16, frames=8)
  assert many["video"].shape == (6, 8, 16, 16, 3)
  for i in (5, 2):
    clip = sample_clip(SPEC, seed=1, index=i)
    blocks = render(clip, SPEC)[::2].reshape(8, 16, 4, 16, 4, 3).mean(axis=(2, 4))
    assert np.abs(many["video"][i] - blocks).max() <= 0.5
    assert many["captions"][i] == caption_clip(clip, SPEC, seed=1, index=i)
  with pytest.raises(ValueError, match="whole blocks"):
    area_downsample(many["video"], size=5, frames=8)


@pytest.mark.parametrize(
  "fields",
  [
    {"height": 15},
    {"frames": 0},
    {"fps": 4.0},
    {"two_objects": 1.5},
    {"caption_lengths": ("huge",)},
  ],
)
def test_impossible_worlds_are_refused(fields):
  with pytest.raises(ValueError):
    WorldSpec(**fields)
