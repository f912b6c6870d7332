"""Text embeddings beside a data set: written once, read in place of the encoder.

  OUT/<stream>/identity.json            what made them: encoder, tokenizer, length, ...
  OUT/<stream>/<shard>.arrays           one array [tokens, width], bfloat16, for each sample

Of captions behind a prefix (`inputs.prefix`) the same lies in OUT/<stream>/<prefix>, such as
FPS-16-camera. They are cut to the true length of the text. An `array_cache`, of which each array
says of which text it is.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidgen.inputs.array_cache import ArrayCache, CacheKind
from vidgen.inputs.config import EncoderSource
from vidgen.inputs.samples import Source

FOLDER = "embeddings"  # in a data set, unless another is named
STORED = "bfloat16"
KIND = CacheKind(
  name="embeddings",
  remedy="run `vidgen data embed` again",
  keys="config.inputs.encoders",
  fields={"width": int},
)
_QUOTED = re.compile(r'"([^"]*)"|\u201c([^\u201d]*)\u201d')


def text_of(caption: str, *, reads: str) -> str:
  """What an encoder reads of a caption: all, or its words in double quotes, straight or curly."""
  if reads == "caption":
    return caption
  return " ".join(quoted(caption))


def quoted(caption: str) -> list[str]:
  """What stands in double quotes, straight or curly, in order."""
  return [one or other for one, other in _QUOTED.findall(caption)]


def identity_of(
  source: EncoderSource, *, encoder: str, tokenizer: str, width: int
) -> dict[str, Any]:
  """What the numbers of embeddings hang on, by digests, wherever the encoder lies."""
  return {
    "encoder": encoder,
    "tokenizer": tokenizer,
    "length": source.length,
    "width": width,
    "reads": source.reads,
    "dtype": source.dtype,
    "stored": STORED,
  }


class CachedText(ArrayCache):
  """The embeddings of one source's captions, by the number of the sample; sent to workers small.

  Raises:
    DataError: a file is missing, damaged, of other shards than there are, or of another encoder.
  """

  def __init__(self, folder: Path, source: Source, *, reads: str, identity: Mapping[str, Any]):
    self._reads, self.width = reads, int(identity["width"])
    super().__init__(folder, source, identity=identity, kind=KIND)

  def __call__(self, index: int, caption: str) -> np.ndarray:
    """The embedding, bfloat16 [tokens, width], of sample `index`, which has this caption.

    Raises:
      DataError: it is not of this caption, or damaged.
    """
    shard, row = self.place(index)
    return shard.read(row, source=source_bytes(text_of(caption, reads=self._reads)))


def source_bytes(text: str) -> bytes:
  """What an embedding's hash of its source is over."""
  return text.encode("utf-8", "backslashreplace")
