"""The choice of samples by buckets, over facts that were drawn."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidgen.config import build
from vidgen.errors import ConfigError
from vidgen.inputs.choice import choose, shares
from vidgen.inputs.clip_index import ROW, ClipIndex
from vidgen.inputs.config import Bucket, InputConfig
from vidgen.inputs.quarantine import BadSample

SHAPES = [(64, 64), (48, 84), (84, 48), (56, 72), (72, 56)]  # height, width
LENGTHS = {(4.0, 8.0): 128, (8.0, 12.0): 192, (12.0, 0.0): 256}
VIDEOS = [
  Bucket(
    name=f"{frames}x{h}x{w}", frames=frames, height=h, width=w, fps=16.0, rate="spread",
    min_seconds=low, max_seconds=high, min_rate=16.0,
  )
  for (low, high), frames in LENGTHS.items()
  for h, w in SHAPES
]  # fmt: skip
IMAGES = [Bucket(name=f"1x{h}x{w}", subset="image", frames=1, height=h, width=w) for h, w in SHAPES]
CONFIG = InputConfig(buckets=(*VIDEOS, *IMAGES), aspect_tolerance=0.25, max_upsampling=1.0)

SIDES = st.integers(16, 2000)
CLIPS = st.tuples(SIDES, SIDES, st.floats(0.1, 30), st.floats(1, 70))
STILLS = st.tuples(SIDES, SIDES, st.just(0.0), st.just(0.0))
BAD = st.just((0, 0, 0.0, 0.0))
FACTS = st.lists(st.one_of(CLIPS, STILLS, BAD), min_size=1, max_size=60)


def index_of(facts):
  bad = {i: BadSample("damaged", key=str(i)) for i, one in enumerate(facts) if not one[0]}
  return ClipIndex(np.array(facts, ROW), bad)


def split(*, bounds, facts, **fields):
  """Names of the buckets that get each clip; `bounds` are fields of a bucket each."""
  buckets = tuple(Bucket(**{"name": name, **own}) for name, own in bounds.items())
  choice = choose(index_of(facts), InputConfig(buckets=buckets, **fields), subset="video")
  return [{n for n, found in choice.chosen.items() if i in found} for i in range(len(facts))]


@given(FACTS)
@settings(max_examples=200, deadline=None)
def test_every_sample_is_in_some_bucket_or_dropped_for_one_reason(facts):
  choice = choose(index_of(facts), CONFIG, subset="video")
  chosen = set(itertools.chain.from_iterable(n.tolist() for n in choice.chosen.values()))
  dropped = list(itertools.chain.from_iterable(n.tolist() for n in choice.dropped.values()))
  assert len(dropped) == len(set(dropped)) and not chosen & set(dropped)
  assert chosen | set(dropped) == set(range(len(facts)))
  assert {int(bad.key) for bad in choice.bad} == set(choice.dropped.get("unreadable", ()))


@given(FACTS, st.sampled_from(["video", "image"]))
@settings(max_examples=200, deadline=None)
def test_what_a_bucket_gets_is_within_all_of_its_bounds(facts, subset):
  choice = choose(index_of(facts), CONFIG, subset=subset)
  aspects = [{} for _ in facts]
  for bucket in CONFIG.buckets:
    for i in choice.chosen.get(bucket.name, np.zeros(0, int)):
      width, height, seconds, rate = facts[i]
      aspects[i].setdefault(bucket.width / bucket.height, set()).add(bucket.frames)
      assert width >= bucket.width and height >= bucket.height
      if rate:
        assert bucket.min_seconds - 0.006 < seconds
        assert seconds < (bucket.max_seconds or math.inf) + 0.006
        assert rate >= 0.99 * bucket.min_rate
      else:
        assert bucket.frames == 1
  for found, (width, height, _, rate) in zip(aspects, facts, strict=True):
    assert len(found) <= 1  # no sample is cut to two aspect ratios
    for aspect, frames in found.items():
      gap = abs(math.log(aspect * height / width))
      assert gap <= math.log(1.25) + 1e-12
      assert gap <= min(abs(math.log(w / h * height / width)) for h, w in SHAPES) + 1e-12
      assert len(frames) == 1 or not rate  # these lengths do not overlap


def test_lengths_that_overlap_share_a_clip_and_gaps_drop_it():
  seconds = [3.99, 4.0, 7.99, 8.0, 9.0, 10.0, 12.0]
  bounds = {
    "a": {"min_seconds": 4.0, "max_seconds": 8.0, "frames": 2},
    "b": {"min_seconds": 7.0, "max_seconds": 9.0, "frames": 2},
    "c": {"min_seconds": 10.0, "max_seconds": 12.0, "frames": 2},
  }
  facts = [(64, 64, s, 30.0) for s in seconds]
  assert split(bounds=bounds, facts=facts) == [set(), {"a"}, {"a", "b"}, {"b"}, set(), {"c"}, set()]
  config = InputConfig(buckets=tuple(Bucket(name=n, **own) for n, own in bounds.items()))
  dropped = choose(index_of(facts), config, subset="video").dropped
  assert {reason: n.tolist() for reason, n in dropped.items()} == {
    "too short": [0],
    "between lengths": [4],
    "too long": [6],
  }


def test_each_reason_is_told_where_it_is_the_first_to_leave_no_bucket():
  facts = [
    (0, 0, 0.0, 0.0),
    (64, 64, 0.0, 0.0),
    (64, 64, 3.0, 30.0),
    (64, 64, 5.0, 15.0),
    (640, 64, 5.0, 30.0),
    (63, 63, 5.0, 30.0),
    (64, 64, 5.0, 30.0),
  ]
  dropped = choose(index_of(facts), CONFIG, subset="video").dropped
  assert {reason: n.tolist() for reason, n in dropped.items()} == {
    "unreadable": [0],
    "an image": [1],
    "too short": [2],
    "rate too low": [3],
    "aspect beyond tolerance": [4],
    "too small": [5],
  }


def test_bounds_hold_to_a_hundredth_of_a_second_and_a_hundredth_part_of_a_rate():
  bounds = {"long": {"min_seconds": 256 / 24, "min_rate": 24.0, "frames": 256, "fps": 24.0}}
  facts = [(64, 64, s, r) for s, r in [(10.6666, 24.0), (10.667, 23.976), (10.65, 24), (11, 23.5)]]
  assert split(bounds=bounds, facts=facts) == [{"long"}, {"long"}, set(), set()]


def test_a_bucket_of_one_rate_does_not_get_clips_that_end_before_its_last_frame():
  bounds = {"long": {"frames": 16, "fps": 8.0, "min_seconds": 1.0}}
  facts = [(64, 64, seconds, 30.0) for seconds in (1.5, 1.875, 1.9)]
  assert split(bounds=bounds, facts=facts) == [set(), set(), {"long"}]


@pytest.mark.parametrize(
  ("row", "frames", "fps", "bounds", "clips"),
  [
    ("middle of 10.67-12 s", 256, 24.0, {"min_seconds": 10.67, "max_seconds": 12.0},
     {10.67: 24, 11.9: 24, 12.0: None}),
    ("middle 16 s", 256, 16.0, {"min_seconds": 16.0}, {15.9: None, 16.0: 16, 40.0: 16}),
    ("12-16 s", 256, 16.0, {"min_seconds": 12.0, "rate": "spread"},
     {11.9: None, 12.0: 64 / 3, 14.0: 128 / 7, 16.0: 16}),
    ("8-12 s", 192, 16.0, {"min_seconds": 8.0, "max_seconds": 12.0, "rate": "spread"},
     {8.0: 24, 10.0: 19.2, 12.0: None}),
    ("4-8 s", 128, 16.0, {"min_seconds": 4.0, "max_seconds": 8.0, "rate": "spread"},
     {4.0: 32, 5.0: 25.6, 8.0: None}),
  ],
)  # fmt: skip
def test_the_rows_of_movie_gens_table_can_be_said(row, frames, fps, bounds, clips):
  own = {"frames": frames, "fps": fps, **bounds}
  facts = [(64, 64, seconds, 32.0) for seconds in clips]
  taken = split(bounds={row: own}, facts=facts)
  assert [bool(found) for found in taken] == [rate is not None for rate in clips.values()]
  span = Bucket(name=row, **own).span()
  for seconds, rate in clips.items():
    if rate is not None:
      assert span.rate(seconds) == pytest.approx(rate, rel=1e-3)


def test_no_frame_is_shown_twice_where_frames_are_spread():
  """128 frames of 4 s and more: of clips that have as many."""
  bounds = {"short": {"frames": 128, "fps": 16.0, "min_seconds": 4.0, "rate": "spread"}}
  facts = [
    (64, 64, s, r) for s, r in [(4.0, 24.0), (5.0, 24.0), (5.4, 24.0), (4.3, 30.0), (9.0, 15.0)]
  ]
  assert split(bounds=bounds, facts=facts) == [set(), set(), {"short"}, {"short"}, set()]


@given(st.floats(0.05, 40), st.integers(2, 300), st.floats(1, 60), st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_spread_frames_lie_evenly_within_the_clip_and_cover_a_short_one(seconds, frames, fps, draw):
  span = Bucket(frames=frames, fps=fps, rate="spread").span(draw)
  native = 240
  times = np.arange(math.ceil(seconds * native)) / native
  rate = span.rate(seconds)
  assert rate >= fps * (1 - 1e-12) and frames / rate <= seconds * (1 + 1e-12)
  shown = times[span.indices(times, duration=seconds, tick=1e-6)]
  start = span.slack(seconds) * draw
  np.testing.assert_allclose(shown, start + np.arange(frames) / rate, atol=1.5 / native + 1e-5)
  if seconds <= frames / fps:
    assert rate == frames / seconds and start == 0


@given(st.lists(st.integers(0, 50), min_size=6, max_size=6).filter(any))
def test_shares_are_by_weight_between_groups_and_by_samples_within_one(counts):
  groups = ["fast"] * 2 + ["slow"] * 3 + [""]
  buckets = [Bucket(name=str(i), weight=1.0 + i, group=g) for i, g in enumerate(groups)]
  samples = {bucket.name: count for bucket, count in zip(buckets, counts, strict=True)}
  found = shares(buckets, samples)
  assert sum(found.values()) == pytest.approx(1)
  assert all((share == 0) == (samples[name] == 0) for name, share in found.items())
  totals = {"fast": 1 + 2, "slow": 3 + 4 + 5, "": 6}
  there = {g: sum(c for c, h in zip(counts, groups, strict=True) if h == g) for g in totals}
  whole = sum(totals[g] for g in totals if there[g])
  for bucket in buckets:
    if there[bucket.group]:
      part = samples[bucket.name] / there[bucket.group]
      assert found[bucket.name] == pytest.approx(totals[bucket.group] / whole * part)


def test_without_bounds_no_bucket_chooses():
  plain = InputConfig(buckets=(Bucket(), Bucket(name="other", subset="image", frames=1)))
  assert not plain.chooses("video") and not plain.chooses("image")
  assert dataclasses.replace(plain, aspect_tolerance=0.1).chooses("image")
  spread = dataclasses.replace(plain, buckets=(Bucket(rate="spread"), *plain.buckets[1:]))
  assert spread.chooses("video") and not spread.chooses("image")


@pytest.mark.parametrize(
  ("tree", "match"),
  [
    ({"buckets": [{"min_seconds": 8.0, "max_seconds": 8.0}]}, "max_seconds must be more"),
    ({"buckets": [{"min_rate": -1}]}, "must not be negative"),
    ({"buckets": [{"rate": "even"}]}, "'even' is not one of fixed, spread"),
    ({"aspect_tolerance": -0.1}, "aspect_tolerance must not be negative"),
  ],
)
def test_bounds_that_mean_nothing_are_refused(tree, match):
  with pytest.raises(ConfigError, match=match):
    build(InputConfig, tree)
