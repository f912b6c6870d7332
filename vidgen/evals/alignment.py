"""Scores in the space of CLIP: of frames against prompts, and of frames among themselves."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vidgen.errors import DataError
from vidgen.evals import cosines
from vidgen.evals.protocol import Score
from vidgen.evals.scoring import Measured, Session

HESSEL = "A photo depicts "  # what CLIPScore puts before each text


def clip_score(session: Session, name: str) -> Score:
  """CLIPSIM, the plain cosine, or one of the CLIP scores made of it.

  Raises:
    DataError: samples without prompts, or that cannot be read.
  """
  variant = "clipsim" if name == "clipsim" else f"clip_score_{session.own_convention(name)}"
  measured = session.sampled(name)
  prompts = [p.text for p in session.prompts(name, measured)]
  before = HESSEL if variant.endswith("hessel") else ""
  texts = _texts(session, name, [before + p for p in prompts])
  values = cosines.text_scores(texts, _frames(measured))
  return score_of(session, name, {name: values[variant]}, measured, {"variant": variant})


def r_precision(session: Session, name: str) -> Score:
  """The share of clips whose own prompt is nearer than 99 others, drawn by the seed.

  Raises:
    DataError: as `clip_score`, or fewer than 100 different prompts.
  """
  average, seed = session.own_convention(name), session.settings.seed
  measured = session.sampled(name)
  prompts = [p.text for p in session.prompts(name, measured)]
  texts = _texts(session, name, prompts)
  frames = _frames(measured)
  value = cosines.r_precision(texts, frames, prompts=prompts, average=average, seed=seed)
  details = {"average": average, "candidates": 100, "candidates_seed": seed}
  return score_of(session, name, {name: value}, measured, details)


def temporal_consistency(session: Session, name: str) -> Score:
  """Tem-Con: the cosine of consecutive frames, mean over a clip, then over clips.

  Raises:
    DataError: clips of one frame, or that cannot be read.
  """
  measured = session.sampled(name)
  values = [cosines.temporal_consistency(frames) for frames in _frames(measured)]
  return score_of(session, name, {name: float(np.mean(values))}, measured, {})


def _frames(measured: Measured) -> list[np.ndarray]:
  """The rows of each item that was read."""
  return [measured.table[measured.owners == i] for i in np.unique(measured.owners)]


def _texts(session: Session, name: str, texts: list[str]) -> np.ndarray:
  return text_rows(session.extractor(name), texts)


def text_rows(extractor: Any, texts: list[str]) -> np.ndarray:
  """Embeddings [n, d] of texts."""
  if not hasattr(extractor, "text"):
    raise DataError(f"{extractor.name} reads no text")
  return np.asarray(extractor.text(texts)["text_embeds"])


def score_of(
  session: Session,
  name: str,
  values: Mapping[str, float],
  measured: Measured,
  details: Mapping[str, Any],
  *,
  reference: Measured | None = None,
) -> Score:
  """A score of features, with its record."""
  prompts = session.prompts_digest(name)
  if reference is not None:
    details = {**details, "n_real": len(np.unique(reference.owners)),
               "missing_real": reference.facts.missing,
               "unpaired": session.pairs(name)[2], "prompts": prompts}  # fmt: skip
  record = session.record(
    name,
    facts=measured.facts,
    samples=measured.digest,
    reference=reference.digest if reference is not None else prompts,
    extractor=session.extractor(name),
    details={"n_fake": len(np.unique(measured.owners)), "rows": measured.rows_count,
             "cosines": "float64", **details},
  )  # fmt: skip
  return Score(values, record)
