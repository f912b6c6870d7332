"""What is put before a caption: the clip's frame rate and camera motion, in words.

Movie Gen gives its network the rate as a literal prefix and one of its camera motions before the
caption (section 3.1.3 and 2.1). The same words go before a prompt, after it was rewritten.
"""

import re
from collections.abc import Sequence

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
