"""Systems: one folder a paper. `make_stage` is the one way from a config to a stage."""

import importlib
from collections.abc import Mapping
from typing import Any

from vidgen.errors import ConfigError
from vidgen.systems.stage import ArraySpec, SampleSettings, Stage

__all__ = ["ArraySpec", "SampleSettings", "Stage", "make_stage", "stage_config"]

# stage name -> (module, config dataclass, function from that dataclass to a Stage)
STAGES = {
  "imagen_video": (
    "vidgen.systems.imagen_video.stage",
    "ImagenVideoConfig",
    "ImagenVideoStage",
  ),
  "movie_gen/tae": ("vidgen.systems.movie_gen.tae", "TAEConfig", "TAEStage"),
  "movie_gen/t2v": ("vidgen.systems.movie_gen.t2v", "T2VConfig", "T2VStage"),
  "movie_gen/upsampler": (
    "vidgen.systems.movie_gen.upsampler",
    "UpsamplerConfig",
    "UpsamplerStage",
  ),
}


def stage_config(name: str, fields: Mapping[str, Any]) -> Any:
  """The typed, complete config of stage `name`.

  Raises:
    ConfigError: no such stage, or a key or value its dataclass does not take.
  """
  from vidgen.config import build

  if name not in STAGES:
    raise ConfigError(f"config.stage.name: unknown stage {name!r}; known are {', '.join(STAGES)}")
  module, config, _ = STAGES[name]
  return build(getattr(importlib.import_module(module), config), fields, path="config.stage.fields")


def make_stage(name: str, fields: Mapping[str, Any]) -> Stage:
  """Builds stage `name` from its config fields."""
  config = stage_config(name, fields)
  module, _, stage = STAGES[name]
  return getattr(importlib.import_module(module), stage)(config)
