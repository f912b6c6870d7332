"""Scores of items against the ones of the same names: PSNR, SSIM, L1, LPIPS."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vidgen.errors import DataError
from vidgen.evals import pixels
from vidgen.evals.blocks import gathered_json
from vidgen.evals.features import (
  FPS_TOLERANCE,
  Facts,
  Visited,
  clip_shape,
  visit,
)
from vidgen.evals.folders import Frames, read_frames
from vidgen.evals.protocol import Score
from vidgen.evals.scoring import Session
from vidgen.inputs.quarantine import BadSample

# Frames that are equal have no ratio of signal to noise; they count as this many dB.
EXACT_DB = 100.0


@dataclasses.dataclass(frozen=True)
class Pair:
  """A sample and what it is held against."""

  fake: Frames
  real: Frames


def psnr(session: Session, name: str) -> Score:
  """PSNR in dB, mean over the frames of a clip, then over clips."""

  def measure(fake: np.ndarray, real: np.ndarray) -> dict[str, float]:
    value = pixels.psnr(fake, real, peak=255, exact="cap", cap=EXACT_DB)
    whole = min(pixels.psnr_of_mean_error(fake, real, peak=255), EXACT_DB)
    return {"psnr": value, "psnr_of_mean_error": whole}

  return _score(session, name, measure, {"peak": 255, "equal_frames_db": EXACT_DB})


def ssim(session: Session, name: str) -> Score:
  """SSIM over RGB, averaged, or over the gray picture."""
  channels = session.own_convention(name)

  def measure(fake: np.ndarray, real: np.ndarray) -> dict[str, float]:
    return {"ssim": float(pixels.ssim(fake, real, peak=255, channels=channels))}

  details = {"peak": 255, "channels": channels, "window": "Gaussian 11, 1.5"}
  return _score(session, name, measure, details)


def l1(session: Session, name: str) -> Score:
  """Mean absolute difference of pixels in [0, 1], and the mean squared one."""

  def measure(fake: np.ndarray, real: np.ndarray) -> dict[str, float]:
    return {"l1": pixels.l1(fake, real, peak=255), "l2": pixels.l2(fake, real, peak=255)}

  return _score(session, name, measure, {"scale": "0 to 1"})


def lpips(session: Session, name: str) -> Score:
  """LPIPS 0.1, mean over frames, then over clips."""
  extractor = session.extractor(name)

  def measure(fake: np.ndarray, real: np.ndarray) -> dict[str, float]:
    return {"lpips": float(np.mean(np.asarray(extractor(fake, real), np.float64)))}

  return _score(session, name, measure, {}, extractor=extractor)


def _score(
  session: Session,
  name: str,
  measure: Callable[[np.ndarray, np.ndarray], Mapping[str, float]],
  details: Mapping[str, Any],
  *,
  extractor: Any = None,
) -> Score:
  """The mean over pairs of what `measure` finds in one.

  Raises:
    DataError: items cannot be read, or the two of a pair differ in size, length or rate; named.
  """
  fake, real, unpaired = session.pairs(name)
  settings = session.settings
  found: dict[int, dict[str, float]] = {}
  rule = settings.clip

  def read(index: int) -> Pair:
    try:
      other = read_frames(real.items[index], rule)
    except BadSample as bad:
      raise BadSample(f"its reference {real.items[index].label}: {bad.reason}") from bad
    return Pair(read_frames(fake.items[index], rule), other)

  def act(indices: list[int], pairs: list[Pair]) -> Visited:
    values = {}
    for index, pair in zip(indices, pairs, strict=True):
      _same(pair, fake.items[index].label)
      values[index] = dict(measure(pair.fake.frames, pair.real.frames))
    shapes = [clip_shape(i, pair.fake) for i, pair in zip(indices, pairs, strict=True)]
    return Visited(shapes, values)

  facts = visit(
    fake, rule, [act], keep=found.update, each="frame", allow_missing=settings.allow_missing,
    read=read, **session.progress(),
  )  # fmt: skip
  everything = {int(i): v for part in gathered_json(found) for i, v in part.items()}
  ordered = [everything[i] for i in sorted(everything)]
  values = {k: _mean([v[k] for v in ordered]) for k in ordered[0]}
  record = session.record(
    name,
    facts=_counted(facts, unpaired),
    samples=fake.digest,
    reference=real.digest,
    extractor=extractor,
    details={
      "resize": "none",
      "statistics": "float64",
      "n_fake": len(ordered),
      "n_real": len(ordered),
      "pairs": len(ordered),
      "unpaired": unpaired,
      "mean": "frames, then clips",
      **details,
    },  # fmt: skip
  )
  return Score(values, record)


def _counted(facts: Facts, unpaired: int) -> Facts:
  return dataclasses.replace(facts, count=facts.count + unpaired, missing=facts.missing + unpaired)


def _mean(values: list[float]) -> float:
  return float(np.mean(np.asarray(values, np.float64)))


def _same(pair: Pair, label: str) -> None:
  shapes = [x.frames.shape for x in (pair.fake, pair.real)]
  if shapes[0] != shapes[1]:
    raise DataError(f"{label}: {shapes[0]} frames, height, width, against {shapes[1]} of its pair")
  rates = [x.fps for x in (pair.fake, pair.real)]
  if all(rates) and abs(rates[0] - rates[1]) > FPS_TOLERANCE * max(rates):
    raise DataError(f"{label}: {rates[0]:g} frames a second, {rates[1]:g} in its pair; use --fps")
