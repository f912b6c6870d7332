"""ShapesWorld: short clips of moving and bouncing shapes, with captions and sound.

Source: procedural, drawn by vidgen itself from (seed, index); nothing is downloaded.
Licence: CC0-1.0.
Filters: none needed. (shape, colour, motion) triples of the held-out split never occur in training.

    vidgen data build data/shapes_world.py --out DIR --count 8192
    vidgen data build data/shapes_world.py:single --out DIR  # one object, videos and images
    vidgen data build data/shapes_world.py:large --out DIR   # the same, what `make scores` needs
    vidgen data build data/shapes_world.py:cascade --out DIR # the same, for the small Imagen Video

A clip has 64x64 pixels, 16 frames at 8 a second, and mono sound at 48 kHz; a large one 128x128
pixels, 16 frames at 16 a second; one for a cascade 96x160 pixels, 128 frames at 64 a second.
"""

from ml_collections import ConfigDict


def get_recipe(arg: str = "") -> ConfigDict:
  """Everything, or with `arg` "single", "large" or "cascade" what a text-to-video run needs."""
  if arg not in ("", "single", "large", "cascade"):
    raise ValueError("the variants are '', 'single', 'large' and 'cascade'")
  recipe = ConfigDict()
  recipe.name = "shapes_world"
  recipe.source = "procedural: vidgen.shapes_world"
  recipe.licence = "CC0-1.0"
  recipe.filters = "none"
  recipe.generator = "shapes_world"  # or "module:Class", a dataclass of your own beside this file
  world = dict(height=64, width=64, frames=16, fps=8.0, two_objects=0.25)
  # Training samples of each subset, as a multiple of --count.
  recipe.subsets = dict(video=1.0, image=0.5, audio=0.125, edit=0.125, identity=0.125)
  if arg:
    world["two_objects"] = 0.0
    recipe.subsets = dict(video=1.0, image=0.25)
  if arg == "large":
    world |= dict(height=128, width=128, fps=16.0)
    recipe.subsets = dict(video=1.0, image=1.0)
  if arg == "cascade":
    world |= dict(height=96, width=160, frames=128, fps=64.0)
    recipe.subsets = dict(video=1.0, image=2.0)  # a pack of images takes 16 at once
  recipe.fields = dict(world=world)
  return recipe
