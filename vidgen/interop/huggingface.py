"""Weights out in the layout of transformers: a folder that its `from_pretrained` reads.

For the networks that have a twin there: T5 encoders, CLIP and its towers, and ViT.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vidgen.errors import CheckpointError, ConfigError
from vidgen.interop.layout import Layout, to_theirs
from vidgen.interop.layouts.clip import (
  ACTIVATIONS,
  WRONG_END,
  clip_layout,
  clip_text_layout,
  clip_vision_layout,
)
from vidgen.interop.layouts.t5 import MLPS, t5_layout
from vidgen.interop.layouts.vit import vit_layout
from vidgen.interop.networks import abstract_params
from vidgen.interop.parameters import check_finite, matched, named
from vidgen.interop.safetensors_files import SUFFIX, write_safetensors
from vidgen.interop.tensors import TensorSpec
from vidgen.models.clip import CLIP, CLIPText, CLIPVision
from vidgen.models.t5 import T5Encoder
from vidgen.models.vit import ViT
from vidgen.whole_file import write_whole

CONFIG = "config.json"
INDEX = f"model{SUFFIX}.index.json"
SHARD_BYTES = 5_000_000_000  # of one file, unless a single array has more


def save_huggingface(
  folder: str | Path, network: Any, params: Any, *, max_shard_bytes: int = SHARD_BYTES
) -> Path:
  """Writes config.json and model.safetensors, or shards of it with an index; returns the folder.

  `network` is the Linen module, `params` its unboxed parameters; arrays keep their dtype. The same
  parameters give the same bytes.

  Raises:
    ConfigError: the network has no twin there, or the folder holds other weights already.
    CheckpointError: parameters that are not the network's, or not finite; nothing is written then.
  """
  twin = _TWINS.get(type(network))
  if twin is None:
    known = ", ".join(kind.__name__ for kind in _TWINS)
    raise ConfigError(f"{type(network).__name__} has no twin in transformers; {known} have")
  config = twin.config(network)
  arrays = named(params)
  like = abstract_params(network).shapes
  matched({k: np.broadcast_to(np.float32(0), v.shape) for k, v in arrays.items()},
          like=like, where="the parameters")  # fmt: skip
  check_finite(arrays, where="the parameters")
  theirs = to_theirs(params, twin.layout(network))
  shards = _shards(theirs, max_shard_bytes)
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  files = {*shards, INDEX} if len(shards) > 1 else set(shards)
  if other := sorted({p.name for p in folder.glob(f"*{SUFFIX}*")} - files):
    raise ConfigError(f"{folder}: holds other weights, {other[0]}; give an empty folder")
  (folder / CONFIG).unlink(missing_ok=True)  # never the config of other weights
  for file, names in shards.items():
    specs = {n: TensorSpec(theirs[n].shape, theirs[n].dtype.name) for n in names}
    # transformers reads no file that does not say whose layout it has.
    write_safetensors(
      folder / file, specs, parts=lambda name: [theirs[name]], metadata={"format": "pt"}
    )
  if len(shards) > 1:
    table = {name: file for file, names in shards.items() for name in names}
    total = sum(array.nbytes for array in theirs.values())
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": table})
  dtypes = {array.dtype.name for array in theirs.values()}
  _write_json(folder / CONFIG, {**config, "dtype": dtypes.pop() if len(dtypes) == 1 else "float32"})
  return folder


def _shards(arrays: Mapping[str, np.ndarray], limit: int) -> dict[str, list[str]]:
  """Names by file, filled in the order of the names."""
  groups: list[list[str]] = [[]]
  size = 0
  for name in sorted(arrays):
    if groups[-1] and size + arrays[name].nbytes > limit:
      groups.append([])
      size = 0
    groups[-1].append(name)
    size += arrays[name].nbytes
  if len(groups) == 1:
    return {f"model{SUFFIX}": groups[0]}
  return {
    f"model-{i:05}-of-{len(groups):05}{SUFFIX}": group for i, group in enumerate(groups, start=1)
  }


def _write_json(path: Path, tree: Any) -> None:
  write_whole(path, (json.dumps(tree, indent=2, sort_keys=True) + "\n").encode())


def _t5_config(network: T5Encoder) -> dict[str, Any]:
  kind, twin = ("umt5", "UMT5EncoderModel") if network.positions == "per_layer" else (
    "t5", "T5EncoderModel")  # fmt: skip
  names = [name for name, mlp in MLPS.items() if mlp == (network.mlp, network.activation)]
  if not names:
    raise ConfigError(f"transformers has no T5 with a {network.mlp} {network.activation} layer")
  return {
    "model_type": kind,
    "architectures": [twin],
    "vocab_size": network.vocabulary,
    "d_model": network.width,
    "num_layers": network.layers,
    "num_heads": network.heads,
    "d_kv": network.head_size,
    "d_ff": network.mlp_width,
    "feed_forward_proj": names[0],
    "relative_attention_num_buckets": network.buckets,
    "relative_attention_max_distance": network.max_distance,
    "layer_norm_epsilon": network.norm_epsilon,
    "is_encoder_decoder": False,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
  }


def _transformer(network: CLIPText | CLIPVision | ViT) -> dict[str, Any]:
  names = [name for name, ours in ACTIVATIONS.items() if ours == network.activation]
  if not names:
    raise ConfigError(f"transformers has no {network.activation} in this network")
  return {
    "hidden_size": network.width,
    "intermediate_size": network.mlp_width,
    "num_hidden_layers": network.layers,
    "num_attention_heads": network.heads,
    "hidden_act": names[0],
    "layer_norm_eps": network.norm_epsilon,
  }


def _text_config(network: CLIPText) -> dict[str, Any]:
  suffix = "" if network.projection is None else "WithProjection"
  return {
    "model_type": "clip_text_model",
    "architectures": [f"CLIPTextModel{suffix}"],
    **_transformer(network),
    **({} if network.projection is None else {"projection_dim": network.projection}),
    "vocab_size": network.vocabulary,
    "max_position_embeddings": network.max_length,
    # Theirs then reads the embedding at the largest id, too.
    "eos_token_id": WRONG_END if network.end_token is None else network.end_token,
  }


def _vision_config(network: CLIPVision) -> dict[str, Any]:
  suffix = "" if network.projection is None else "WithProjection"
  return {
    "model_type": "clip_vision_model",
    "architectures": [f"CLIPVisionModel{suffix}"],
    **_transformer(network),
    **({} if network.projection is None else {"projection_dim": network.projection}),
    "image_size": network.image_size,
    "patch_size": network.patch,
  }


def _clip_config(network: CLIP) -> dict[str, Any]:
  if network.text.projection is None or network.text.projection != network.vision.projection:
    raise CheckpointError("the towers of a CLIP project to one width")
  return {
    "model_type": "clip",
    "architectures": ["CLIPModel"],
    "projection_dim": network.text.projection,
    "text_config": _text_config(network.text),
    "vision_config": _vision_config(network.vision),
  }


def _vit_config(network: ViT) -> dict[str, Any]:
  return {
    "model_type": "vit",
    "architectures": ["ViTModel"],
    **_transformer(network),
    "image_size": network.image_size,
    "patch_size": network.patch,
    "qkv_bias": True,
  }


class _Twin(NamedTuple):
  layout: Callable[[Any], Layout]
  config: Callable[[Any], dict[str, Any]]


_TWINS: Mapping[type, _Twin] = {
  T5Encoder: _Twin(t5_layout, _t5_config),
  CLIP: _Twin(clip_layout, _clip_config),
  CLIPText: _Twin(clip_text_layout, _text_config),
  CLIPVision: _Twin(clip_vision_layout, _vision_config),
  ViT: _Twin(vit_layout, _vit_config),
}
