"""What is put before a caption: the clip's frame rate and camera motion, in words.

Movie Gen gives its network the rate as a literal prefix and one of its camera motions before the
caption (section 3.1.3 and 2.1). The same words go before a prompt, after it was rewritten.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

from vidgen.inputs.config import Bucket, InputConfig
from vidgen.inputs.quarantine import BadSample
from vidgen.inputs.samples import Sample, caption_of

FPS = re.compile(r"FPS-\d+ ")


def fps_prefix(fps: float) -> str:
  """The words for a rate, such as "FPS-16 "."""
  return f"FPS-{round(fps)} "


def camera_prefix(camera: str) -> str:
  """The words for a camera motion, such as "pan left. "; "" for none."""
  return f"{camera.strip().rstrip('.')}. " if camera.strip() else ""


def parts_of(parts: Sequence[str], *, frames: int) -> tuple[str, ...]:
  """What goes before the caption of a clip of so many frames: an image has no rate."""
  return tuple(part for part in parts if part != "fps" or frames > 1)


def prefixed(caption: str, *, parts: Sequence[str], fps: float, camera: str = "") -> str:
  """`caption` behind those of "fps" and "camera" that `parts` names, the rate first.

  Each stands there once: what the caption begins with is not repeated, another rate is replaced.
  """
  return _behind(
    fps_prefix(fps) if "fps" in parts else "",
    camera_prefix(camera) if "camera" in parts else "",
    caption,
  )


def _behind(rate: str, motion: str, caption: str) -> str:
  while rate and (found := FPS.match(caption)):
    caption = caption[found.end() :]
  if motion and caption.startswith(motion):
    caption = caption[len(motion) :]
  return rate + motion + caption


@dataclasses.dataclass(frozen=True)
class Prefix:
  """What goes before the captions of clips of one rate: its words, "" for none, and the camera
  motion that a sample's json names with at least this `confidence`, None for none."""

  rate: str = ""
  confidence: float | None = None

  @property
  def folder(self) -> str:
    """Such as "FPS-16-camera"; "" where captions stay as they are."""
    return "-".join(
      [self.rate.strip()] * bool(self.rate) + ["camera"] * (self.confidence is not None)
    )

  @property
  def identity(self) -> dict[str, Any]:
    """What of a cache of captions' embeddings hangs on it; nothing where captions stay."""
    return {"prefix": dataclasses.asdict(self)} if self.folder else {}

  def caption(self, sample: Sample) -> str:
    """The caption of a sample behind it.

    Raises:
      BadSample: as `caption_of` and `camera_of`.
    """
    caption = caption_of(sample)
    if self.confidence is None:
      return _behind(self.rate, "", caption)
    return _behind(self.rate, camera_prefix(camera_of(sample, confidence=self.confidence)), caption)


def bucket_prefix(config: InputConfig, bucket: Bucket, *, fps: float | None = None) -> Prefix:
  """What goes before the captions of a bucket, for clips of `fps` (default: the bucket's)."""
  parts = parts_of(config.prefix, frames=bucket.frames)
  return Prefix(
    fps_prefix(bucket.fps if fps is None else fps) if "fps" in parts else "",
    config.camera_confidence if "camera" in parts else None,
  )


def camera_of(sample: Sample, *, confidence: float) -> str:
  """The camera motion that a sample's json names as "camera"; "" for none.

  One whose "camera_confidence" is below `confidence` counts as none.

  Raises:
    BadSample: the json is damaged, or the two are no text and number.
  """
  try:
    facts = json.loads(sample.get("json", b"{}"))
    camera, sure = facts.get("camera") or "", facts.get("camera_confidence", 1.0)
    if not isinstance(camera, str) or not isinstance(sure, int | float):
      raise ValueError(f"camera {camera!r} with confidence {sure!r}")
  except (ValueError, AttributeError, RecursionError) as error:
    raise BadSample(f"its json names no camera motion: {error}") from error
  return camera if sure >= confidence else ""
