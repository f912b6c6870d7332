"""T5 encoders as Hugging Face files have them: config.json, and the names of the weights."""

from collections.abc import Mapping
from typing import Any, Literal

from vidgen.errors import CheckpointError
from vidgen.interop.layout import Layout, Source
from vidgen.models.t5 import T5Encoder
from vidgen.nn.linear import Activation

# By model type.
POSITIONS: Mapping[Any, Literal["shared", "per_layer"]] = {
  "t5": "shared",
  "mt5": "shared",
  "umt5": "per_layer",
}
# "gated-gelu" means the tanh form, as T5 v1.1 was trained, though "gelu" is exact elsewhere.
MLPS: Mapping[str, tuple[Literal["plain", "gated"], Activation]] = {
  "relu": ("plain", "relu"),
  "gated-relu": ("gated", "relu"),
  "gated-gelu": ("gated", "gelu_tanh"),
  "gated-silu": ("gated", "silu"),
}


def t5_from_hf(config: Mapping[str, Any], *, dtype: str = "float32") -> T5Encoder:
  """The encoder that a config.json describes: T5, T5 v1.1, mT5, ByT5, UL2 or UMT5.

  Raises:
    CheckpointError: another model type, another feed-forward layer, or a size is missing.
  """
  kind = config.get("model_type")
  mlp = config.get("feed_forward_proj", "relu" if kind == "t5" else "gated-gelu")
  if kind not in POSITIONS:
    raise CheckpointError(f"model_type {kind!r} is none of {', '.join(POSITIONS)}")
  if mlp not in MLPS:
    raise CheckpointError(f"feed_forward_proj {mlp!r} is none of {', '.join(MLPS)}")
  shape, activation = MLPS[mlp]
  sizes = {"vocab_size", "d_model", "num_layers", "num_heads", "d_kv", "d_ff"}
  if missing := sizes - set(config):
    raise CheckpointError(f"the config has no {', '.join(sorted(missing))}")
  return T5Encoder(
    vocabulary=config["vocab_size"],
    width=config["d_model"],
    layers=config["num_layers"],
    heads=config["num_heads"],
    head_size=config["d_kv"],
    mlp_width=config["d_ff"],
    mlp=shape,
    activation=activation,
    positions=POSITIONS[kind],
    buckets=config.get("relative_attention_num_buckets", 32),
    max_distance=config.get("relative_attention_max_distance", 128),
    norm_epsilon=config.get("layer_norm_epsilon", 1e-6),
    dtype=dtype,
  )


def t5_layout(network: T5Encoder) -> Layout:
  """`shared` and `encoder.block.N`; a decoder and a head that lie beside them are left alone."""

  sizes = {"n": network.heads}

  def every(name: str, pattern: str = "") -> Source:
    names = tuple(f"encoder.block.{i}.layer.{name}.weight" for i in range(network.layers))
    return Source(names, pattern, sizes if "n" in pattern else {}, stacked=True)

  sources = {
    "embedding": Source(("shared.weight",)),
    "out_norm/scale": Source(("encoder.final_layer_norm.weight",)),
    "blocks/attention_norm/scale": every("0.layer_norm"),
    "blocks/mlp_norm/scale": every("1.layer_norm"),
    "blocks/attention/out": every("0.SelfAttention.o", "d (n k) -> n k d"),
    "blocks/mlp/down/kernel": every("1.DenseReluDense.wo", "d f -> f d"),
  }
  for name in ("query", "key", "value"):
    sources[f"blocks/attention/{name}"] = every(f"0.SelfAttention.{name[0]}", "(n k) d -> d n k")
  maps = {"gate": "wi_0", "up": "wi_1"} if network.mlp == "gated" else {"up": "wi"}
  for name, theirs in maps.items():
    sources[f"blocks/mlp/{name}/kernel"] = every(f"1.DenseReluDense.{theirs}", "f d -> d f")
  table = "layer.0.SelfAttention.relative_attention_bias"
  if network.positions == "shared":
    sources["positions/table"] = Source((f"encoder.block.0.{table}.weight",))
  else:
    sources["blocks/positions/table"] = every(table.removeprefix("layer."))
  return Layout(
    sources,
    ignored=(r"decoder\..*", r"lm_head\.weight"),
    tied={"encoder.embed_tokens.weight": "shared.weight"},
  )
