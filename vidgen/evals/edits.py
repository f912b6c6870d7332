"""Scores of edits: the samples are edited pictures or clips, the reference their inputs.

An edit's prompt says what the result shows; its attribute "source", in the file of prompts, what
the input shows. Where both say the same, or a picture did not change, a direction does not exist:
such edits are left out of `clip_dir` and counted in its record.
"""

import numpy as np

from vidgen.errors import DataError
from vidgen.evals import cosines
from vidgen.evals.alignment import score_of, text_rows
from vidgen.evals.protocol import Score
from vidgen.evals.scoring import Measured, Session


def clip_direction(session: Session, name: str) -> Score:
  """CLIP_dir of frames; of a clip every frame is an edit.

  Raises:
    DataError: no edit has a direction, or inputs, samples and prompts do not belong together.
  """
  edited, source = _both(session, name)
  source_text, target_text = _texts(session, name, edited)
  found = cosines.edit_scores(
    source=source.table, edited=edited.table, source_text=source_text, target_text=target_text
  )
  if found.clip_dir is None:
    raise DataError(f"{name}: none of {found.count} edits has a direction")
  details = {"edits": found.count, "undirected": found.undirected}
  return score_of(session, name, {name: found.clip_dir}, edited, details, reference=source)


def similarity(session: Session, name: str) -> Score:
  """CLIP_im or DINO: the cosine of edited frames and those of their input.

  Raises:
    DataError: inputs and samples do not belong together.
  """
  edited, source = _both(session, name)
  value = cosines.similarity(edited.table, source.table)
  return score_of(session, name, {name: value}, edited, {}, reference=source)


def clip_output(session: Session, name: str) -> Score:
  """CLIP_out: the cosine of edited frames and the prompt of the result.

  Raises:
    DataError: samples without prompts.
  """
  edited = session.sampled(name)
  prompts = {i: p.text for i, p in zip(_items(edited), session.prompts(name, edited), strict=True)}
  texts = text_rows(session.extractor(name), list(prompts.values()))
  places = np.searchsorted(_items(edited), edited.owners)
  return score_of(
    session, name, {name: cosines.similarity(edited.table, texts[places])}, edited, {}
  )


def frame_accuracy(session: Session, name: str) -> Score:
  """Frame-Acc as FateZero has it: frames nearer to the result's prompt than to the input's.

  Raises:
    DataError: samples without both prompts.
  """
  edited = session.sampled(name)
  source_text, target_text = _texts(session, name, edited)
  values = [
    cosines.frame_accuracy_of_prompts(
      edited.table[mine], source_text=source_text[mine][0], target_text=target_text[mine][0]
    )
    for mine in (edited.owners == item for item in _items(edited))
  ]
  return score_of(session, name, {name: float(np.mean(values))}, edited, {})


def frame_accuracy_of_input(session: Session, name: str) -> Score:
  """Frame-Acc by the input: frames nearer to the result's prompt than they were before.

  Raises:
    DataError: as `clip_direction`.
  """
  edited, source = _both(session, name)
  _, target_text = _texts(session, name, edited)
  values = [
    cosines.frame_accuracy_of_frames(
      edited.table[mine], source_frames=source.table[mine], target_text=target_text[mine][0]
    )
    for mine in (edited.owners == item for item in _items(edited))
  ]
  return score_of(session, name, {name: float(np.mean(values))}, edited, {}, reference=source)


def _items(measured: Measured) -> np.ndarray:
  return np.unique(measured.owners)


def _both(session: Session, name: str) -> tuple[Measured, Measured]:
  edited, source = session.sampled(name), session.referenced(name)
  if not np.array_equal(edited.owners, source.owners):
    raise DataError(
      f"{name}: edits and their inputs have other numbers of frames, or some cannot be read"
    )
  return edited, source


def _texts(session: Session, name: str, edited: Measured) -> tuple[np.ndarray, np.ndarray]:
  """Embeddings of the input's and the result's prompt for every row."""
  prompts = session.prompts(name, edited)
  sources = []
  for prompt in prompts:
    source = (prompt.attributes or {}).get("source")
    if not isinstance(source, str):
      raise DataError(
        f'{name}: prompt {prompt.text[:60]!r} has no "source" in its attributes; give --prompts'
      )
    sources.append(source)
  rows = text_rows(session.extractor(name), [*sources, *(p.text for p in prompts)])
  places = np.searchsorted(_items(edited), edited.owners)
  return rows[: len(prompts)][places], rows[len(prompts) :][places]
