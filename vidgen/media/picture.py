"""One picture of a folder of samples, for a README or a talk."""

from pathlib import Path

import numpy as np

from vidgen.errors import DataError
from vidgen.evals.samples import SampleSet, read_samples
from vidgen.media.sheet import contact_sheet


def samples_picture(
  samples: Path, *, count: int = 10, across: int = 2, columns: int = 8, frame_size: int = 48
) -> bytes:
  """The first `count` samples that `vidgen sample` wrote to a folder, as a PNG under their prompts.

  They are the first ones, not the best. With the defaults a sample of 8 frames of 16 x 16 takes
  400 pixels, so that two beside each other fill the width of a README.

  Raises:
    DataError: the folder holds no samples, or one of these is missing, changed or unreadable.
  """
  found = read_samples(samples)
  shown = SampleSet(found.directory, found.records[:count])
  videos = [video.frames for video in shown.videos() if video.frames is not None]
  if not videos:
    raise DataError(f"{samples}: count {count} leaves no sample")
  return contact_sheet(
    np.stack(videos),
    captions=[record.prompt for record in shown.records],
    columns=columns,
    across=across,
    frame_size=frame_size,
  )


def write_samples_picture(
  samples: Path,
  *,
  path: Path,
  count: int = 10,
  across: int = 2,
  columns: int = 8,
  frame_size: int = 48,
) -> None:
  """Writes `samples_picture` to a file."""
  png = samples_picture(samples, count=count, across=across, columns=columns, frame_size=frame_size)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(png)
