"""Text streams of a batch: what frozen text encoders read of captions, or made of them before.

A stream NAME of length l becomes two arrays of a batch. Where the encoder runs on every batch, NAME
is its token ids, int32 [b, l], and whoever trains encodes them. Where embeddings are cached, NAME
is float32 [b, l, width], zero past the end of the text. NAME_mask, bool [b, l], is the same for
both.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidgen.config import digest
from vidgen.errors import CheckpointError, ConfigError
from vidgen.inputs.array_cache import check_identity
from vidgen.inputs.config import EncoderSource, InputConfig
from vidgen.inputs.embeddings import KIND, CachedText, identity_of, text_of
from vidgen.inputs.prefix import Prefix, bucket_prefix
from vidgen.inputs.samples import Source
from vidgen.inputs.storage import file_sha256
from vidgen.inputs.text import Tokenizer, encode_padded, token_mask
from vidgen.inputs.tokenizers import load_tokenizer


class TokenText:
  """Captions to an encoder's token ids."""

  def __init__(self, tokenizer: Tokenizer, source: EncoderSource):
    self.tokenizer, self._source = tokenizer, source

  def __call__(self, index: int, caption: str) -> np.ndarray:
    """The ids, int32 [l], of what the encoder reads of a caption."""
    del index
    text = text_of(caption, reads=self._source.reads)
    return encode_padded(self.tokenizer, text, length=self._source.length)


StreamText = TokenText | CachedText


@dataclasses.dataclass(frozen=True)
class Streams:
  """The text streams of a config on one data set; `identities` say what makes each.

  Exactly one of `tokenizers` and `folders` has the streams: encoders run, or a cache is read, of
  captions behind what `prefixes` say of each bucket.
  """

  sources: Mapping[str, EncoderSource]
  identities: Mapping[str, Mapping[str, Any]]
  tokenizers: Mapping[str, Tokenizer]
  folders: Mapping[str, Path]
  prefixes: Mapping[str, Prefix]

  def of(self, source: Source, *, bucket: str) -> dict[str, StreamText]:
    """What to call for each sample of `source`, with its number and its caption in that bucket.

    Raises:
      DataError: a cache is not of this source's shards.
    """
    return {
      name: self._cached(name, source, self.prefixes[bucket])
      if name in self.folders
      else TokenText(self.tokenizers[name], one)
      for name, one in self.sources.items()
    }

  def _cached(self, name: str, source: Source, prefix: Prefix) -> CachedText:
    return CachedText(
      self.folders[name] / prefix.folder,
      source,
      reads=self.sources[name].reads,
      identity={**self.identities[name], **prefix.identity},
    )

  def collate(
    self, rows: Sequence[Mapping[str, np.ndarray]], *, dropped: np.ndarray
  ) -> dict[str, np.ndarray]:
    """The arrays of a batch; rows that are `dropped`, bool [b], have no token at all.

    That is the null caption of a stage that reads embeddings, in its guidance, too.
    """
    batch = {}
    for name, source in self.sources.items():
      arrays = [row[name] for row in rows]
      if name in self.tokenizers:
        values = np.stack(arrays)
        mask = token_mask(values, end=self.tokenizers[name].end)
      else:
        width = int(self.identities[name]["width"])
        values, mask = padded(arrays, length=source.length, width=width)
        values[dropped] = 0
      mask[dropped] = False
      batch |= {name: values, f"{name}_mask": mask}
    return batch


def padded(
  arrays: Sequence[np.ndarray], *, length: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
  """Embeddings [tokens, width] of each text as float32 [b, length, width], and the mask of them."""
  values = np.zeros((len(arrays), length, width), np.float32)
  mask = np.zeros((len(arrays), length), bool)
  for row, array in enumerate(arrays):
    values[row, : len(array)] = array
    mask[row, : len(array)] = True
  return values, mask


def open_streams(config: InputConfig, directory: str | os.PathLike[str]) -> Streams:
  """The text streams of `config` for a data set; none where the config names no encoders.

  Raises:
    ConfigError: an encoder's folder is not there.
    CheckpointError: one is damaged.
    DataError: the cache is missing, or was made by something else than the config says.
  """
  identities: dict[str, Mapping[str, Any]] = {}
  tokenizers: dict[str, Tokenizer] = {}
  folders: dict[str, Path] = {}
  prefixes = {bucket.name: bucket_prefix(config, bucket) for bucket in config.buckets}
  for name, source in config.encoders.items():
    if source.folder:
      tokenizers[name] = tokenizer_of(source)
      identities[name] = encoder_identity(source, tokenizers[name])
    if config.embeddings:
      folders[name] = Path(directory) / config.embeddings / name
      wanted = identities.get(name, _stated(source))
      for prefix in dict.fromkeys(prefixes.values()):  # those of all buckets from one encoder
        stated = {**wanted, **(prefix.identity or {"prefix": None})}
        found = check_identity(folders[name] / prefix.folder, stated, kind=KIND)
        wanted = {key: value for key, value in found.items() if key != "prefix"}
      identities[name] = wanted
  if config.embeddings:
    tokenizers = {}
  return Streams(config.encoders, identities, tokenizers, folders, prefixes)


def _stated(source: EncoderSource) -> dict[str, Any]:
  """What a config without the encoder's folder says of its embeddings."""
  return {"length": source.length, "reads": source.reads, "dtype": source.dtype}


def tokenizer_of(source: EncoderSource) -> Tokenizer:
  """The tokenizer of an encoder, with its prefix."""
  return load_tokenizer(source.tokenizer or source.folder, prefix=source.prefix)


def encoder_identity(source: EncoderSource, tokenizer: Tokenizer) -> dict[str, Any]:
  """What the embeddings of an encoder hang on; reads all of its weights, once in a process.

  Raises:
    ConfigError: there is no such folder.
    CheckpointError: its config or its weights are damaged.
  """
  config, network = encoder_network(source)
  return identity_of(
    source,
    encoder=digest({"weights": _weights_digest(source.folder), "config": config}),
    tokenizer=tokenizer.digest,
    width=network.width,
  )


def encoder_network(source: EncoderSource) -> tuple[dict[str, Any], Any]:
  """The config.json of an encoder, and the network it describes, without its weights.

  Raises:
    ConfigError: there is no such folder or file.
    CheckpointError: it is damaged, or of an architecture that is not known.
  """
  from vidgen.interop.text_encoders import KINDS, build_network, read_config

  folder = Path(source.folder)
  if not (folder / "config.json").is_file():
    raise ConfigError(f"text encoder {folder}: no such folder, or no config.json in it")
  config = read_config(folder)
  kind = KINDS.get(str(config.get("model_type")))
  if kind is None:
    raise CheckpointError(f"{folder}/config.json: its model_type is none of {', '.join(KINDS)}")
  return config, build_network(folder, config, kind.network, dtype=source.dtype)


@functools.lru_cache(maxsize=64)
def _weights_digest(folder: str) -> str:
  from vidgen.interop.weight_cache import cache_folder, remembering
  from vidgen.interop.weight_files import open_weights

  store = cache_folder(None)
  digest_of_file = remembering(store) if store else file_sha256
  return open_weights(folder, file_digest=digest_of_file).digest
