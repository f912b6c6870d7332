"""Scores of embeddings: every variant of a name is its own formula, and 0/0 is counted."""

import numpy as np
import pytest

from vidgen.errors import DataError
from vidgen.evals.cosines import (
  cosines,
  edit_scores,
  frame_accuracy_of_frames,
  frame_accuracy_of_prompts,
  r_precision,
  similarity,
  temporal_consistency,
  text_scores,
)

RNG = np.random.default_rng(0)


def at(*degrees):
  """Embeddings at these angles, of several lengths."""
  radians = np.deg2rad(np.array(degrees, np.float64))
  lengths = 1 + np.arange(radians.size).reshape(radians.shape) % 3
  return (lengths[..., None] * np.stack([np.cos(radians), np.sin(radians)], -1)).astype(np.float32)


def test_cosines_are_of_angles():
  np.testing.assert_allclose(cosines(at(0, 10, 90), at(60, 100, 90)), [0.5, 0, 1], atol=1e-7)


def test_the_four_clip_scores_are_four_formulas():
  frames = [at(60, 120), at(180, 90)]  # cosines 0.5, -0.5 and -1, 0
  found = text_scores(at(0, 0), frames)
  np.testing.assert_allclose(found["clipsim"], -0.25, atol=1e-7)
  np.testing.assert_allclose(found["clip_score_x100"], -25, atol=1e-5)
  assert found["clip_score_torchmetrics"] == 0
  np.testing.assert_allclose(found["clip_score_hessel"], 2.5 * 0.25 / 2, atol=1e-6)
  positive = text_scores(at(0), [at(60)])
  np.testing.assert_allclose(positive["clip_score_torchmetrics"], 50, atol=1e-4)


def test_every_video_counts_the_same_however_long():
  found = text_scores(at(0, 0), [at(0), at(90, 90, 90)])
  np.testing.assert_allclose(found["clipsim"], 0.5, atol=1e-7)


def prompts(n):
  return [f"prompt {i}" for i in range(n)]


def test_r_precision_of_perfect_and_of_random_embeddings():
  texts = RNG.normal(size=(120, 16)).astype(np.float32)
  perfect = texts[:, None] + 0.01 * RNG.normal(size=(120, 3, 16)).astype(np.float32)
  assert r_precision(texts, perfect, prompts=prompts(120)) == 1
  wrong = np.roll(perfect, 1, axis=0)
  assert r_precision(texts, wrong, prompts=prompts(120)) < 0.1
  of_four = [
    r_precision(texts, wrong, prompts=prompts(120), candidates=4, seed=s) for s in range(20)
  ]
  assert 0.15 < np.mean(of_four) < 0.35  # one in four by chance


def test_r_precision_follows_the_seed_and_the_place_alone():
  texts = RNG.normal(size=(40, 4)).astype(np.float32)
  frames = texts[:, None] + RNG.normal(size=(40, 2, 4)).astype(np.float32)
  found = [r_precision(texts, frames, prompts=prompts(40), candidates=9, seed=s) for s in range(8)]
  assert len(set(found)) > 1
  assert found[3] == r_precision(texts, frames, prompts=prompts(40), candidates=9, seed=3)


def test_averaging_embeddings_and_averaging_cosines_are_two_metrics():
  # Two frames of the first text and a long one of the second.
  texts, frames = at(0, 90), [np.stack([at(0)[0], at(0)[0], 9 * at(90)[0]]), at(90)]
  options = {"prompts": prompts(2), "candidates": 2}
  assert r_precision(texts, frames, **options, average="cosines") == 1
  assert r_precision(texts, frames, **options, average="embeddings") == 0.5


def test_a_tie_is_a_miss_and_equal_prompts_are_no_candidates():
  texts, frames = at(0, 0, 90), [at(0), at(0), at(90)]
  assert r_precision(texts, frames, prompts=["a", "b", "c"], candidates=3) == 1 / 3
  # With one text twice, its second row competes with the other text only.
  assert r_precision(texts, frames, prompts=["a", "a", "c"], candidates=2) == 1
  with pytest.raises(DataError, match="100 different prompts, there are 2"):
    r_precision(texts, frames, prompts=["a", "a", "c"])


def test_edit_scores_are_those_of_the_plane():
  found = edit_scores(
    source=at(0, 0), edited=at(90, 60), source_text=at(0, 0), target_text=at(90, 60)
  )
  np.testing.assert_allclose(found.clip_dir, 1, atol=1e-6)
  np.testing.assert_allclose(found.clip_im, 0.25, atol=1e-6)
  np.testing.assert_allclose(found.clip_out, 1, atol=1e-6)
  opposite = edit_scores(source=at(90), edited=at(0), source_text=at(0), target_text=at(90))
  np.testing.assert_allclose(opposite.clip_dir, -1, atol=1e-6)


def test_directions_are_of_unit_embeddings():
  """Lengths differ in `at`; subtracting before normalising would turn the direction."""
  found = edit_scores(source=at(0, 45, 90), edited=at(30, 75, 120), source_text=at(0, 45, 90),
                      target_text=at(30, 75, 120)[[0, 1, 2]] * 7)  # fmt: skip
  np.testing.assert_allclose(found.clip_dir, 1, atol=1e-6)


def test_an_edit_without_direction_is_left_out_and_counted():
  found = edit_scores(
    source=at(0, 0, 0), edited=at(90, 90, 0), source_text=at(0, 5, 0), target_text=at(90, 5, 90)
  )
  assert (found.count, found.undirected) == (3, 2)
  np.testing.assert_allclose(found.clip_dir, 1, atol=1e-6)
  none = edit_scores(source=at(0), edited=at(90), source_text=at(5), target_text=at(5))
  assert none.clip_dir is None and none.undirected == 1
  np.testing.assert_allclose(none.clip_im, 0, atol=1e-6)


def test_frames_that_change_are_less_consistent():
  np.testing.assert_allclose(temporal_consistency(at(0, 60, 0)), 0.5, atol=1e-6)
  np.testing.assert_allclose(temporal_consistency(at(7, 7, 7)), 1, atol=1e-12)
  with pytest.raises(DataError, match="two frames"):
    temporal_consistency(at(7))


def test_the_two_frame_accuracies_are_two_metrics():
  source, target = at(0)[0], at(90)[0]
  edited, before = at(30, 60, 80), at(20, 70, 85)
  assert frame_accuracy_of_prompts(edited, source_text=source, target_text=target) == 2 / 3
  assert frame_accuracy_of_frames(edited, source_frames=before, target_text=target) == 1 / 3
  unchanged = frame_accuracy_of_frames(edited, source_frames=edited, target_text=target)
  assert unchanged == 0


def test_zero_lengths_nan_and_unequal_numbers_are_refused():
  with pytest.raises(DataError, match="zero or not finite"):
    similarity(at(0, 1), np.zeros((2, 2), np.float32))
  with pytest.raises(DataError, match="zero or not finite"):
    similarity(at(0, 1), np.full((2, 2), np.nan, np.float32))
  with pytest.raises(DataError, match=r"not \[2, 1\]"):
    text_scores(at(0, 1), [at(0)])
