"""What can be known of a clip or an image without decoding it: its size, length and frame rate."""

import dataclasses

from vidgen.inputs.decode import (
  HDR,
  IMAGE,
  VIDEO,
  Limits,
  check_pixels,
  decode_video,
  duration_of,
  frame_stamps,
  open_video,
  quarter_turns,
  square_width,
)
from vidgen.inputs.decode_image import open_image, upright_size
from vidgen.inputs.quarantine import BadSample
from vidgen.inputs.samples import Sample


@dataclasses.dataclass(frozen=True)
class ClipFacts:
  """`width` and `height` upright, in square pixels; `seconds` from the first frame to the end.

  `rate` is the mean of the clip's own frames per second; of an image it is 0, and so are `seconds`.
  """

  width: int
  height: int
  seconds: float = 0.0
  rate: float = 0.0


def measure_sample(sample: Sample, *, limits: Limits) -> ClipFacts:
  """The facts of the clip or image that a bucket would take of a sample.

  Raises:
    BadSample: it has neither, or its headers, packets or first frame are damaged or above a limit.
  """
  for suffix in VIDEO:
    if suffix in sample:
      return measure_video(sample[suffix], limits=limits)
  for suffix in IMAGE:
    if suffix in sample:
      with open_image(sample[suffix], limits=limits) as image:
        return ClipFacts(*upright_size(image))
  raise BadSample("neither video nor image")


def measure_video(data: bytes, *, limits: Limits) -> ClipFacts:
  """The facts of a video, by its packets; its first frame is decoded, which knows its rotation.

  Raises:
    BadSample: as `decode_video`, as far as that shows here.
  """
  with open_video(data, limits=limits) as (container, stream):
    stamps = frame_stamps(container, stream, limits)
    frame = next(container.decode(stream), None)
    if frame is None:
      raise BadSample("no frames")
    check_pixels(frame.width, frame.height, limits)
    if frame.color_trc in HDR:
      raise BadSample("HDR video; tone-map it to SDR first")
    width = max(1, round(square_width(frame, stream.sample_aspect_ratio)))
    sides = (frame.height, width) if quarter_turns(frame) % 2 else (width, frame.height)
    seconds, count = (duration_of(stamps, stream, limits), len(stamps)) if stamps else (0.0, 0)
  if not stamps:  # packets without times: only decoding tells
    clip = decode_video(data, cover=(16, 16), limits=limits)
    seconds, count = clip.duration, len(clip.times)
  if seconds <= 0:
    raise BadSample("its frames last no time")
  return ClipFacts(*sides, seconds, count / seconds)
