"""Scores of embeddings by their cosines: text against frames, edits, frames among themselves.

Embeddings are [.., d], of any length: they are brought to length 1 here, in float64. Where papers
use one name for several things, each thing has its own name.
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from vidgen.errors import DataError

STILL = 1e-6  # a difference of unit embeddings so short has no direction


def unit(x: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
  """float64 embeddings of length 1.

  Raises:
    DataError: an embedding of length 0, or one that is not finite.
  """
  x = x.astype(np.float64)
  length = np.linalg.norm(x, axis=-1, keepdims=True)
  if not np.isfinite(length).all() or not length.all():
    raise DataError("an embedding is zero or not finite, and so has no cosine")
  return x / length


def cosines(a: Float[np.ndarray, "*n d"], b: Float[np.ndarray, "*m d"]) -> Float[np.ndarray, "*k"]:
  """Of a with b, one by one; shapes broadcast."""
  return np.sum(unit(a) * unit(b), axis=-1)


def text_scores(texts: Float[np.ndarray, "n d"], frames: Collection[Any]) -> dict[str, float]:
  """CLIP scores of n videos, `frames[i]` [t, d] against its text; an image has one frame.

  clipsim: mean over frames, then videos, of the cosine (GODIVA, Make-A-Video).
  clip_score_x100: 100 times that (Imagen Video).
  clip_score_torchmetrics: the same, 0 where it is negative.
  clip_score_hessel: the mean of 2.5 max(cosine, 0) (CLIPScore; its texts begin "A photo depicts ").
  """
  _same_number(texts, frames)
  found = [cosines(text[None], video) for text, video in zip(texts, frames, strict=True)]
  mean = float(np.mean([c.mean() for c in found]))
  return {
    "clipsim": mean,
    "clip_score_x100": 100 * mean,
    "clip_score_torchmetrics": max(100 * mean, 0.0),
    "clip_score_hessel": float(np.mean([2.5 * np.maximum(c, 0).mean() for c in found])),
  }


def r_precision(
  texts: Float[np.ndarray, "n d"],
  frames: Collection[Any],
  *,
  prompts: Sequence[str],
  average: Literal["embeddings", "cosines"] = "cosines",
  candidates: int = 100,
  seed: int = 0,
) -> float:
  """The share of videos that are nearer to their own text than to all of 99 others, in [0, 1].

  The others are drawn from the prompts that differ from its own, by (seed, place) alone. A tie
  counts as a miss. The average over frames is of "cosines", or of "embeddings" as the network gives
  them, where a longer one weighs more, before one cosine.

  Raises:
    DataError: too few different prompts to draw from.
  """
  _same_number(texts, frames)
  texts = unit(texts)
  distinct = {prompt: i for i, prompt in reversed(list(enumerate(prompts)))}  # its first place
  if len(distinct) < candidates:
    raise DataError(f"R-precision needs {candidates} different prompts, there are {len(distinct)}")
  hits = 0
  for i, (prompt, video) in enumerate(zip(prompts, frames, strict=True)):
    others = np.array([j for text, j in distinct.items() if text != prompt])
    random = np.random.Generator(np.random.PCG64([seed, i]))
    others = random.choice(others, candidates - 1, replace=False)
    # A mean of cosines is the product with a mean of unit embeddings.
    query = (unit(video) if average == "cosines" else video.astype(np.float64)).mean(axis=0)
    # Sums row by row: a matrix product may round equal rows differently, and break ties.
    cosines = (texts[[i, *others]] * query).sum(axis=1)
    hits += bool(cosines[0] > np.max(cosines[1:], initial=-np.inf))
  return hits / len(texts)


@dataclasses.dataclass(frozen=True)
class EditScores:
  """Means over edits: cosines of the change of image with the change of text, of the edited image
  with its input, and of it with the text of the result.

  undirected: edits whose texts or images do not differ, and which `clip_dir` leaves out; it is None
  when there are no others.
  """

  clip_dir: float | None
  clip_im: float
  clip_out: float
  count: int
  undirected: int


def edit_scores(
  *,
  source: Float[np.ndarray, "n d"],
  edited: Float[np.ndarray, "n d"],
  source_text: Float[np.ndarray, "n d"],
  target_text: Float[np.ndarray, "n d"],
) -> EditScores:
  """Of n edits; embeddings have length 1 before they are subtracted (InstructPix2Pix).

  Raises:
    DataError: no edit, or arrays of different lengths.
  """
  _same_number(source, edited, source_text, target_text)
  if not len(source):
    raise DataError("no edit to score")
  moved, asked = unit(edited) - unit(source), unit(target_text) - unit(source_text)
  lengths = np.minimum(np.linalg.norm(moved, axis=1), np.linalg.norm(asked, axis=1))
  directed = lengths > STILL
  return EditScores(
    clip_dir=float(cosines(moved[directed], asked[directed]).mean()) if directed.any() else None,
    clip_im=similarity(source, edited),
    clip_out=similarity(edited, target_text),
    count=len(source),
    undirected=int(np.sum(~directed)),
  )


def similarity(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"]) -> float:
  """The mean cosine of pairs: CLIP-I, CLIP-T or DINO, by what made the embeddings."""
  _same_number(a, b)
  return float(cosines(a, b).mean())


def temporal_consistency(frames: Float[np.ndarray, "t d"]) -> float:
  """Tem-Con of one video: the mean cosine of consecutive frames.

  Raises:
    DataError: fewer than two frames.
  """
  if len(frames) < 2:
    raise DataError("consistency over time needs two frames")
  return float(cosines(frames[:-1], frames[1:]).mean())


def frame_accuracy_of_prompts(
  frames: Float[np.ndarray, "t d"],
  *,
  source_text: Float[np.ndarray, "d"],
  target_text: Float[np.ndarray, "d"],
) -> float:
  """Frame-Acc as FateZero has it: edited frames that are nearer to the target than to the source.

  A share, in [0, 1]; a tie is no success.
  """
  return float(np.mean(cosines(frames, target_text[None]) > cosines(frames, source_text[None])))


def frame_accuracy_of_frames(
  frames: Float[np.ndarray, "t d"],
  *,
  source_frames: Float[np.ndarray, "t d"],
  target_text: Float[np.ndarray, "d"],
) -> float:
  """Frame-Acc by the input: frames that are nearer to the target's text than before the edit."""
  before = cosines(source_frames, target_text[None])
  return float(np.mean(cosines(frames, target_text[None]) > before))


def _same_number(*sets: Collection[Any]) -> None:
  if len({len(x) for x in sets}) != 1:
    raise DataError(f"embeddings belong together one by one, not {[len(x) for x in sets]}")
