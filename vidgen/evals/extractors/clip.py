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

from vidgen.errors import CheckpointError, ConfigError
from vidgen.evals.extractors import PixelExtractor
from vidgen.evals.extractors.crop import Crop
from vidgen.inputs.text import Tokenizer, tokenize
from vidgen.inputs.tokenizers import load_tokenizer
from vidgen.interop.layouts.clip import clip_from_hf, clip_layout
from vidgen.interop.layouts.open_clip import Unfused, clip_from_open_clip, open_clip_layout
from vidgen.interop.networks import load_network
from vidgen.interop.text_encoders import CONFIG, build_network, read_config
from vidgen.interop.weight_files import open_weights
from vidgen.models.clip import CLIP

OPEN_CLIP = "open_clip_config.json"
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
  """CLIP of a folder from the hub: config, weights and tokenizer of both towers.

  The config is transformers' config.json or, where that is missing, open_clip's.

  Raises:
    ConfigError: an unknown crop, or no tokenizer there.
    CheckpointError: no CLIP there, a damaged one, or one that pictures reach by another mean.
  """
  folder = Path(folder)
  weights = open_weights(folder)
  if (folder / OPEN_CLIP).is_file() and not (folder / CONFIG).is_file():
    network: CLIP = build_network(folder, _open_clip(folder), clip_from_open_clip, dtype="float32")
    params = load_network(Unfused(weights), network, open_clip_layout(network))
  else:
    network = build_network(folder, read_config(folder), clip_from_hf, dtype="float32")
    params = load_network(weights, network, clip_layout(network))
  return clip_extractor(
    network,
    params,
    digest=weights.digest,
    tokenizer=load_tokenizer(folder),
    crop=crop,
    batch_size=batch_size,
  )


def _open_clip(folder: Path) -> dict[str, Any]:
  config = read_config(folder, file=OPEN_CLIP)
  model, pictures = config.get("model_cfg"), config.get("preprocess_cfg", {})
  if not isinstance(model, dict) or not isinstance(pictures, dict):
    raise CheckpointError(f"{folder / OPEN_CLIP}: no model_cfg and preprocess_cfg in it")
  for key, known in (("mean", MEAN), ("std", STD)):
    if pictures.get(key, list(known)) != list(known):
      raise CheckpointError(f"{folder / OPEN_CLIP}: its {key} is not that of CLIP's pictures")
  return model


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
