"""One way to load any text encoder: T5, ByT5, UL2, UMT5 and CLIP, from a Hugging Face folder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from vidgen.dist.rules import DEFAULT_RULES
from vidgen.errors import CheckpointError
from vidgen.inputs.storage import file_sha256
from vidgen.interop.layout import Layout
from vidgen.interop.layouts.clip import clip_text_from_hf, clip_text_layout
from vidgen.interop.layouts.t5 import t5_from_hf, t5_layout
from vidgen.interop.networks import abstract_params, load_network
from vidgen.interop.safetensors_files import strict_json
from vidgen.interop.tensors import shown
from vidgen.interop.weight_cache import cache_folder, remembering
from vidgen.interop.weight_files import open_weights
from vidgen.nn.partition import Rules

CONFIG = "config.json"
MAX_CONFIG_BYTES = 1 << 20
MAX_SIZE = 1 << 24
SIZES = {
  "context_length",
  "d_ff",
  "d_kv",
  "d_model",
  "embed_dim",
  "heads",
  "hidden_size",
  "image_size",
  "intermediate_size",
  "layers",
  "max_position_embeddings",
  "num_attention_heads",
  "num_heads",
  "num_hidden_layers",
  "num_layers",
  "patch_size",
  "projection_dim",
  "relative_attention_max_distance",
  "relative_attention_num_buckets",
  "vocab_size",
  "width",
}

Encode = Callable[[Any, jax.Array, jax.Array], jax.Array]


class _Kind(NamedTuple):
  network: Callable[..., Any]
  layout: Callable[[Any], Layout]


_T5 = _Kind(t5_from_hf, t5_layout)
_CLIP = _Kind(clip_text_from_hf, clip_text_layout)
KINDS: Mapping[str, _Kind] = {
  "t5": _T5,
  "mt5": _T5,
  "umt5": _T5,
  "clip": _CLIP,
  "clip_text_model": _CLIP,
}


class LoadedTextEncoder(NamedTuple):
  """`apply(params, ids, mask)` gives float32 [b, l, d]; it is pure, for jit to take.

  `ids` int32 and `mask` bool are [b, l], True for a token; what padding gives means nothing. On a
  mesh, trace it within `dist.mesh.on_mesh`, as any network.
  """

  apply: Encode
  params: Any


def load_text_encoder(
  folder: str | Path,
  *,
  mesh: Mesh | None = None,
  rules: Rules = DEFAULT_RULES,
  dtype: str = "float32",
  cache: str | Path | None = None,
) -> LoadedTextEncoder:
  """The encoder of a folder with config.json and weights, as a pair (apply, params).

  `dtype` is that of the parameters and the matrix products, "float32" or "bfloat16"; norms,
  softmax and the result are float32. With `mesh` the parameters are read straight into the layout
  that `rules` give. `cache` names a folder for converted weights (see `weight_cache`).

  Raises:
    CheckpointError: no config or weights there, an architecture that is not known, or weights that
      are damaged, not finite or not of the architecture.
  """
  folder = Path(folder)
  config = read_config(folder)
  kind = KINDS.get(str(config.get("model_type")))
  if kind is None:
    raise CheckpointError(
      f"{folder / CONFIG}: model_type {shown(config.get('model_type'))} is none of"
      f" {', '.join(KINDS)}"
    )
  network = build_network(folder, config, kind.network, dtype=dtype)
  store = cache_folder(cache)
  weights = open_weights(folder, file_digest=remembering(store) if store else file_sha256)
  params = load_network(
    weights, network, kind.layout(network), mesh=mesh, rules=rules, dtype=dtype, cache=cache
  )

  def apply(params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
    return network.apply({"params": params}, ids, mask)["tokens"]

  return LoadedTextEncoder(apply, params)


def read_config(folder: Path, *, file: str = CONFIG) -> dict[str, Any]:
  """The config.json, or another file of that kind, of a Hugging Face folder.

  Raises:
    CheckpointError: it is missing, too large, or no JSON object.
  """
  path = Path(folder) / file
  try:
    if path.stat().st_size > MAX_CONFIG_BYTES:
      raise ValueError(f"more than {MAX_CONFIG_BYTES:,} bytes")
    return strict_json(path.read_bytes())
  except (OSError, ValueError, RecursionError) as error:
    raise CheckpointError(f"{path}: no config of a network: {error}") from error


def build_network(
  folder: Path, config: Mapping[str, Any], make: Callable[..., Any], *, dtype: str
) -> Any:
  """The network that `make` builds of a config, once its sizes are known to be sane.

  Raises:
    CheckpointError: a size that is none, or an architecture that is not known.
  """
  parts = [
    config,
    *(
      config.get(f"{tower}{end}")
      for tower in ("text", "vision")
      for end in ("_config", "_config_dict", "_cfg")
    ),
  ]
  for part in parts:
    for key in SIZES & set(part if isinstance(part, Mapping) else ()):
      value = part[key]
      if value is not None and (type(value) is not int or not 1 <= value <= MAX_SIZE):
        raise CheckpointError(f"{folder / CONFIG}: {key}: {shown(value)} is no size")
  try:
    network = make(config, dtype=dtype)
    abstract_params(network)  # sizes that do not fit each other are found here
  except (TypeError, ValueError, AttributeError) as error:
    line = str(error).splitlines()[0]
    raise CheckpointError(f"{folder / CONFIG}: not a sound config: {line}") from error
  return network
