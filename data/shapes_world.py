"""ShapesWorld: short clips of moving and bouncing shapes, with captions and sound.

Source: procedural, drawn by vidgen itself from (seed, index); nothing is downloaded.
Licence: CC0-1.0.
Filters: none needed. (shape, colour, motion) triples of the held-out split never occur in training.

    vidgen data build data/shapes_world.py --out DIR --count 8192
    vidgen data build data/shapes_world.py:single --out DIR      # one object, video and image only

A clip has 64x64 pixels, 16 frames at 8 a second, and mono sound at 48 kHz.
"""

from ml_collections import ConfigDict


def get_recipe(arg: str = "") -> ConfigDict:
  """Everything, or with `arg` "single" what a first text-to-video run needs."""
  if arg not in ("", "single"):
    raise ValueError("the variants are '' and 'single'")
  recipe = ConfigDict()
  recipe.name = "shapes_world"
  recipe.source = "procedural: vidgen.shapes_world"
  recipe.licence = "CC0-1.0"
  recipe.filters = "none"
  recipe.generator = "shapes_world"  # or "module:Class", a dataclass of your own beside this file
  world = dict(height=64, width=64, frames=16, fps=8.0, two_objects=0.25)
  # Training samples of each subset, as a multiple of --count.
  recipe.subsets = dict(video=1.0, image=0.5, audio=0.125, edit=0.125, identity=0.125)
  if arg == "single":
    world["two_objects"] = 0.0
    recipe.subsets = dict(video=1.0, image=0.25)
  recipe.fields = dict(world=world)
  return recipe
