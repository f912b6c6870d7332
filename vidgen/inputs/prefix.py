"""What is put before a caption: the clip's frame rate and camera motion, in words.

Movie Gen gives its network the rate as a literal prefix and one of its camera motions before the
caption (section 3.1.3 and 2.1). The same words go before a prompt, after it was rewritten.
"""

import json
import re
from collections.abc import Sequence

from vidgen.inputs.quarantine import BadSample
from vidgen.inputs.samples import Sample

FPS = re.compile(r"FPS-\d+ ")


def fps_prefix(fps: float) -> str:
  """The words for a rate, such as "FPS-16 "."""
  return f"FPS-{round(fps)} "


def camera_prefix(camera: str) -> str:
  """The words for a camera motion, such as "pan left. "; "" for none."""
  return f"{camera.strip().rstrip('.')}. " if camera.strip() else ""


def prefixed(caption: str, *, parts: Sequence[str], fps: float, camera: str = "") -> str:
  """`caption` behind those of "fps" and "camera" that `parts` names, the rate first.

  Each stands there once: what the caption begins with is not repeated, another rate is replaced.
  """
  rate = fps_prefix(fps) if "fps" in parts else ""
  motion = camera_prefix(camera) if "camera" in parts else ""
  while rate and (found := FPS.match(caption)):
    caption = caption[found.end() :]
  if motion and caption.startswith(motion):
    caption = caption[len(motion) :]
  return rate + motion + caption


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
