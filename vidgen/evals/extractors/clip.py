"""CLIP for metrics: embeddings of pictures and of captions, by the crops under which numbers have
been published.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from vidgen.errors import ConfigError
from vidgen.evals.extractors import PixelExtractor
from vidgen.evals.extractors.crop import Crop
from vidgen.inputs.text import Tokenizer, tokenize
from vidgen.inputs.tokenizers import load_tokenizer
from vidgen.interop.layouts.clip import clip_from_hf, clip_layout
from vidgen.interop.networks import load_network
from vidgen.interop.text_encoders import build_network, read_config
from vidgen.interop.weight_files import open_weights
from vidgen.models.clip import CLIP

MEAN = 0.48145466, 0.4578275, 0.40821073
STD = 0.26862954, 0.26130258, 0.27577711

# openai: Pillow's bicubic, as CLIP's own code and open_clip; vbench: VBench's, PyTorch's bicubic
# without antialias on bytes; squash: InstructPix2Pix's, straight to the square.
CONVENTIONS = {
  "openai": {"kernel": "pil_bicubic", "fit": "centre", "values": "bytes"},
  "vbench": {"kernel": "bicubic", "fit": "centre", "values": "bytes"},
  "squash": {"kernel": "bicubic", "fit": "squash", "values": "floats"},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPExtractor(PixelExtractor):
  """Both towers: pictures give "image_embeds", `text` gives "text_embeds"; not of unit length.

  Captions are cut to `length` tokens, the end of text kept.
  """

  run_text: Callable[[Any, Any, Any], jax.Array]
  tokenizer: Tokenizer
  length: int

  def text(self, captions: Sequence[str]) -> dict[str, Float[np.ndarray, "n p"]]:
    """float32 embeddings of captions, `batch_size` at a time."""
    parts = []
    for start in range(0, len(captions), self.batch_size):
      batch = list(captions[start : start + self.batch_size])
      filled = batch + [""] * (self.batch_size - len(batch))
      tokens = tokenize(self.tokenizer, filled, length=self.length)
      found = self.run_text(self.params, tokens["text"], tokens["text_mask"])
      parts.append(np.asarray(found)[: len(batch)])
    return {"text_embeds": np.concatenate(parts)}


def crop_of(network: CLIP, name: str) -> Crop:
  """The crop of that name, for the network's picture size.

  Raises:
    ConfigError: there is none.
  """
  if name not in CONVENTIONS:
    raise ConfigError(f"CLIP: unknown crop {name!r}; known are {', '.join(CONVENTIONS)}")
  side = network.vision.image_size
  how: dict[str, Any] = CONVENTIONS[name]
  return Crop(side=side, short_side=side, mean=MEAN, std=STD, **how)


def load_clip(folder: str | Path, *, crop: str = "openai", batch_size: int = 16) -> CLIPExtractor:
  """CLIP of a Hugging Face folder: config, weights and tokenizer of both towers.

  Raises:
    ConfigError: an unknown crop, or no tokenizer there.
    CheckpointError: no CLIP there, or a damaged one.
  """
  folder = Path(folder)
  network: CLIP = build_network(folder, read_config(folder), clip_from_hf, dtype="float32")
  weights = open_weights(folder)
  return clip_extractor(
    network,
    load_network(weights, network, clip_layout(network)),
    digest=weights.digest,
    tokenizer=load_tokenizer(folder),
    crop=crop,
    batch_size=batch_size,
  )


def clip_extractor(
  network: CLIP,
  params: Any,
  *,
  digest: str,
  tokenizer: Tokenizer,
  crop: str = "openai",
  batch_size: int = 16,
) -> CLIPExtractor:
  """As `load_clip`, from parameters at hand."""
  prepared = crop_of(network, crop)

  def run(params: Any, images: jax.Array) -> dict[str, jax.Array]:
    with jax.default_matmul_precision("highest"):
      found: Any = network.vision.apply({"params": params["vision"]}, prepared(images))
    return {"image_embeds": found["embedding"]}

  def run_text(params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):
      found: Any = network.text.apply({"params": params["text"]}, ids, mask)
    return found["embedding"]

  return CLIPExtractor(
    name="clip",
    digest=digest,
    run=jax.jit(run),
    params=params,
    facts={
      "crop": crop,
      **prepared.facts(),
      "activation": network.text.activation,
      "text_length": network.text.max_length,
      "tokenizer_digest": tokenizer.digest,
    },
    batch_size=batch_size,
    rank=4,
    run_text=jax.jit(run_text),
    tokenizer=tokenizer,
    length=network.text.max_length,
  )
