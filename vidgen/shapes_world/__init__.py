"""ShapesWorld: a procedural world of moving shapes whose every fact can be read back from pixels.

A clip is a pure function of (seed, split, index): one or two flat shapes over a background, moving
or bouncing, with a caption and the sound of every impact. `world` says what may happen, `render`
draws it, `captions` words it, `sound` makes it heard, `edits` and `identity` give the sets for
editing and personalisation, and `samples` puts it all into files.
"""

from vidgen.shapes_world.captions import Caption, caption_clip
from vidgen.shapes_world.render import render, render_many
from vidgen.shapes_world.world import (
  Clip,
  Figure,
  WorldSpec,
  attributes,
  is_held_out,
  sample_clip,
  triples,
)

__all__ = [
  "Caption",
  "Clip",
  "Figure",
  "WorldSpec",
  "attributes",
  "caption_clip",
  "is_held_out",
  "render",
  "render_many",
  "sample_clip",
  "triples",
]
