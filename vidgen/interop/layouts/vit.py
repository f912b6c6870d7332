"""Vision transformers (DINO) as Hugging Face files have them."""

from collections.abc import Mapping
from typing import Any

from vidgen.errors import CheckpointError
from vidgen.interop.layout import Layout, Source
from vidgen.interop.layouts.clip import (
  activation_of,
  norm_sources,
  patch_source,
  transformer_sources,
)
from vidgen.models.vit import ViT

_BLOCK = {
  "attention/query": "attention.attention.query",
  "attention/key": "attention.attention.key",
  "attention/value": "attention.attention.value",
  "attention/out": "attention.output.dense",
  "attention_norm": "layernorm_before",
  "mlp_norm": "layernorm_after",
  "mlp/up": "intermediate.dense",
  "mlp/down": "output.dense",
}
_DEFAULTS = {
  "hidden_size": 768,
  "intermediate_size": 3072,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "image_size": 224,
  "patch_size": 16,
  "hidden_act": "gelu",
  "layer_norm_eps": 1e-12,
}


def vit_from_hf(config: Mapping[str, Any], *, dtype: str = "float32") -> ViT:
  """The network of a config.json of a ViTModel.

  Raises:
    CheckpointError: another model type, an unknown activation, or no biases of queries and keys.
  """
  if config.get("model_type") != "vit":
    raise CheckpointError(f"model_type {config.get('model_type')!r} is not 'vit'")
  c = _DEFAULTS | dict(config)
  if not c.get("qkv_bias", True) or c.get("num_channels", 3) != 3:
    raise CheckpointError("qkv_bias must be true and num_channels 3")
  return ViT(
    image_size=c["image_size"],
    patch=c["patch_size"],
    width=c["hidden_size"],
    layers=c["num_hidden_layers"],
    heads=c["num_attention_heads"],
    mlp_width=c["intermediate_size"],
    activation=activation_of(c),
    norm_epsilon=c["layer_norm_eps"],
    dtype=dtype,
  )


def vit_layout(network: ViT) -> Layout:
  """`embeddings`, `encoder.layer.N` and `layernorm`; a pooler is left alone."""
  embeddings = "embeddings."
  sources = {
    "patch_tokens/class_token": Source((f"{embeddings}cls_token",), "1 1 d -> d"),
    "patch_tokens/positions": Source((f"{embeddings}position_embeddings",), "1 s d -> s d"),
    "patch_tokens/patch/kernel": patch_source(f"{embeddings}patch_embeddings.projection", network),
    "patch_tokens/patch/bias": Source((f"{embeddings}patch_embeddings.projection.bias",)),
    **norm_sources("out_norm", "layernorm"),
    **transformer_sources("encoder.layer.{}.", _BLOCK, layers=network.layers, heads=network.heads),
  }
  return Layout(sources, ignored=(r"pooler\..*",))
