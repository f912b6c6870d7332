"""CLIP as OpenAI's own files, open_clip and MetaCLIP have it: other names, queries, keys and values
in one matrix.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vidgen.errors import CheckpointError
from vidgen.interop.layout import Layout, Source
from vidgen.interop.layouts.clip import norm_sources, patch_source, transformer_sources
from vidgen.interop.tensors import TensorSpec, Weights
from vidgen.models.clip import CLIP, CLIPText, CLIPVision
from vidgen.nn.linear import Activation

FUSED = "attn.in_proj_"
PARTS = ("query", "key", "value")
_BLOCK = {
  "attention/query": f"{FUSED}query",
  "attention/key": f"{FUSED}key",
  "attention/value": f"{FUSED}value",
  "attention/out": "attn.out_proj",
  "attention_norm": "ln_1",
  "mlp_norm": "ln_2",
  "mlp/up": "mlp.c_fc",
  "mlp/down": "mlp.c_proj",
}
# What a model's config may say here; any other key means another network.
_VISION = {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size"}
_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}


class Unfused:
  """Weights whose fused matrices appear as three, in thirds of their first axis."""

  def __init__(self, weights: Weights):
    self.where, self._weights = weights.where, weights
    self.specs: dict[str, TensorSpec] = {}
    self._parts: dict[str, tuple[str, int]] = {}
    for name, spec in weights.specs.items():
      before, fused, kind = name.rpartition(FUSED)
      if not fused:
        self.specs[name] = spec
        continue
      if not spec.shape or spec.shape[0] % 3:
        raise CheckpointError(f"{self.where}: {name} of shape {spec.shape} is not three in one")
      for place, part in enumerate(PARTS):
        split = f"{before}{fused}{part}.{kind}"
        self.specs[split] = TensorSpec((spec.shape[0] // 3, *spec.shape[1:]), spec.dtype)
        self._parts[split] = name, place

  @property
  def digest(self) -> str:
    """The digest of the weights and of this way to read them."""
    return hashlib.sha256(f"{self._weights.digest}\0unfused".encode()).hexdigest()

  def read(self, name: str) -> np.ndarray:
    """The array, or its third of a fused one."""
    if name not in self._parts:
      return self._weights.read(name)
    fused, place = self._parts[name]
    return np.split(self._weights.read(fused), 3)[place]


def clip_from_open_clip(config: Mapping[str, Any], *, dtype: str = "float32") -> CLIP:
  """The network of a model's config of open_clip (its `model_configs`, or `model_cfg` of a file).

  Raises:
    CheckpointError: a key that means another network, or one that is missing.
  """
  try:
    return _clip(config, dtype)
  except (KeyError, TypeError) as error:
    raise CheckpointError(f"no config of open_clip: {error}") from error


def _clip(config: Mapping[str, Any], dtype: str) -> CLIP:
  vision, text = config["vision_cfg"], config["text_cfg"]
  for given, known in (
    (config, {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}),
    (vision, _VISION),
    (text, _TEXT),
  ):
    if more := set(given) - known:
      raise CheckpointError(f"a config of open_clip with {', '.join(sorted(more))} is not known")
  activation: Activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
  common: dict[str, Any] = {
    "projection": config["embed_dim"],
    "activation": activation,
    "dtype": dtype,
  }
  return CLIP(
    text=CLIPText(
      vocabulary=text["vocab_size"],
      width=text["width"],
      layers=text["layers"],
      heads=text["heads"],
      mlp_width=int(text["width"] * text.get("mlp_ratio", 4)),
      max_length=text["context_length"],
      **common,
    ),
    vision=CLIPVision(
      image_size=vision["image_size"],
      patch=vision["patch_size"],
      width=vision["width"],
      layers=vision["layers"],
      heads=vision["width"] // vision.get("head_width", 64),
      mlp_width=int(vision["width"] * vision.get("mlp_ratio", 4)),
      **common,
    ),
  )


def open_clip_layout(network: CLIP) -> Layout:
  """Of the whole; the weights go through `Unfused`. Counts that OpenAI's files hold are ignored."""
  text = {
    "embedding": Source(("token_embedding.weight",)),
    "positions": Source(("positional_embedding",)),
    "projection/kernel": Source(("text_projection",)),
    **norm_sources("out_norm", "ln_final"),
    **_blocks(network.text, "transformer"),
  }
  vision = {
    "patch_tokens/class_token": Source(("visual.class_embedding",)),
    "patch_tokens/patch/kernel": patch_source("visual.conv1", network.vision),
    "patch_tokens/positions": Source(("visual.positional_embedding",)),
    "projection/kernel": Source(("visual.proj",)),
    **norm_sources("in_norm", "visual.ln_pre"),
    **norm_sources("out_norm", "visual.ln_post"),
    **_blocks(network.vision, "visual.transformer"),
  }
  sources = {f"text/{path}": source for path, source in text.items()}
  sources |= {f"vision/{path}": source for path, source in vision.items()}
  sources["logit_scale"] = Source(("logit_scale",), " -> 1")
  return Layout(sources, ignored=("input_resolution", "context_length", "vocab_size", "attn_mask"))


def _blocks(network: CLIPText | CLIPVision, prefix: str) -> dict[str, Source]:
  prefix = f"{prefix}.resblocks.{{}}."
  return transformer_sources(prefix, _BLOCK, layers=network.layers, heads=network.heads)
