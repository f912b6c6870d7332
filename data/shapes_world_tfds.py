"""ShapesWorld as a TFDS dataset: the same clips as `shapes_world.py`, prepared without TensorFlow.

Source: procedural, drawn by vidgen itself from (seed, index); nothing is downloaded.
Licence: CC0-1.0.
Filters: none needed. (shape, colour, motion) triples of the held-out split never occur in training.

    builder = ShapesWorldTfds(data_dir=DIR, file_format="array_record", config="default")
    builder.download_and_prepare()
    clips = tfds.data_source("shapes_world_tfds", data_dir=DIR, split="train")

ArrayRecord must be asked for: TFDS writes and reads its default, TFRecord, with TensorFlow only.
"""

import dataclasses
import json
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vidgen.shapes_world.files import ShapesWorldFiles
from vidgen.shapes_world.world import WorldSpec


@dataclasses.dataclass(eq=False, kw_only=True)
class ShapesWorldConfig(tfds.core.BuilderConfig):
  """How many clips of each split, from which seed; `two_objects`: their share with two figures."""

  seed: int = 0
  train: int = 8192
  held_out: int = 512
  two_objects: float = 0.25


class ShapesWorldTfds(tfds.core.GeneratorBasedBuilder):
  """Clips with their captions; features are named like the suffixes of the tar shards."""

  VERSION = tfds.core.Version("1.0.0")
  BUILDER_CONFIGS = [
    ShapesWorldConfig(name="default"),
    ShapesWorldConfig(name="single", two_objects=0.0),
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    features = {
      "key": tfds.features.Text(),
      "mp4": tfds.features.Tensor(shape=(), dtype=np.object_),
      "txt": tfds.features.Text(),
      "json": tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description="Short clips of moving and bouncing shapes, with captions and sound.",
      license="CC0-1.0",
      features=tfds.features.FeaturesDict(features),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing to download
    config: Any = self.builder_config
    counts = {"train": config.train, "held_out": config.held_out}
    return {split: self._generate_examples(split, count) for split, count in counts.items()}

  def _generate_examples(self, split: str, count: int):
    config: Any = self.builder_config
    files = ShapesWorldFiles(WorldSpec(two_objects=config.two_objects))
    for index in range(count):
      key = f"{index:09d}"
      record = files.record("video", seed=config.seed, split=split, index=index, key=key)
      example = {"key": key, "mp4": record.files["mp4"], "txt": record.caption}
      yield key, {**example, "json": json.dumps(record.metadata())}
