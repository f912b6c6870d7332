"""CLIP as Hugging Face files have it: config.json, and the names of the weights."""

from collections.abc import Mapping
from typing import Any

from vidgen.errors import CheckpointError
from vidgen.interop.layout import Layout, Source
from vidgen.models.clip import CLIP, CLIPText, CLIPVision
from vidgen.nn.linear import Activation

ACTIVATIONS: Mapping[str, Activation] = {
  "quick_gelu": "quick_gelu",
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "relu": "relu",
}
# What a config.json leaves out is the library's default, which older files rely on.
_TEXT = {
  "vocab_size": 49408,
  "hidden_size": 512,
  "intermediate_size": 2048,
  "num_hidden_layers": 12,
  "num_attention_heads": 8,
  "max_position_embeddings": 77,
  "projection_dim": 512,
  "hidden_act": "quick_gelu",
  "layer_norm_eps": 1e-5,
  "eos_token_id": 49407,
}
_VISION = {
  "hidden_size": 768,
  "intermediate_size": 3072,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
  "image_size": 224,
  "patch_size": 32,
  "projection_dim": 512,
  "hidden_act": "quick_gelu",
  "layer_norm_eps": 1e-5,
}
# Configs before transformers 4.31 said 2, which no text ends with: the largest id is the end then.
WRONG_END = 2


def activation_of(config: Mapping[str, Any]) -> Activation:
  """Ours for `hidden_act`.

  Raises:
    CheckpointError: there is none.
  """
  name = config["hidden_act"]
  if name not in ACTIVATIONS:
    raise CheckpointError(f"hidden_act {name!r} is none of {', '.join(ACTIVATIONS)}")
  return ACTIVATIONS[name]


def clip_text_from_hf(config: Mapping[str, Any], *, dtype: str = "float32") -> CLIPText:
  """The text tower of a config.json: of a whole CLIP, of a text tower, with projection or without.

  Raises:
    CheckpointError: another model type or an unknown activation.
  """
  c = _TEXT | dict(_part(config, "text"))
  return CLIPText(
    vocabulary=c["vocab_size"],
    width=c["hidden_size"],
    layers=c["num_hidden_layers"],
    heads=c["num_attention_heads"],
    mlp_width=c["intermediate_size"],
    projection=_projection(config, c["projection_dim"], plain="CLIPTextModel"),
    activation=activation_of(c),
    max_length=c["max_position_embeddings"],
    end_token=None if c["eos_token_id"] == WRONG_END else c["eos_token_id"],
    norm_epsilon=c["layer_norm_eps"],
    dtype=dtype,
  )


def clip_vision_from_hf(config: Mapping[str, Any], *, dtype: str = "float32") -> CLIPVision:
  """The image tower of a config.json, as `clip_text_from_hf`."""
  c = _VISION | dict(_part(config, "vision"))
  if c.get("num_channels", 3) != 3:
    raise CheckpointError(f"num_channels {c['num_channels']}: only 3, RGB, is known")
  return CLIPVision(
    image_size=c["image_size"],
    patch=c["patch_size"],
    width=c["hidden_size"],
    layers=c["num_hidden_layers"],
    heads=c["num_attention_heads"],
    mlp_width=c["intermediate_size"],
    projection=_projection(config, c["projection_dim"], plain="CLIPVisionModel"),
    activation=activation_of(c),
    norm_epsilon=c["layer_norm_eps"],
    dtype=dtype,
  )


def clip_from_hf(config: Mapping[str, Any], *, dtype: str = "float32") -> CLIP:
  """Both towers of a config.json of a CLIPModel.

  Raises:
    CheckpointError: as `clip_text_from_hf`.
  """
  if config.get("model_type") != "clip":
    raise CheckpointError(f"model_type {config.get('model_type')!r} is not 'clip'")
  text = clip_text_from_hf(config, dtype=dtype)
  return CLIP(text=text, vision=clip_vision_from_hf(config, dtype=dtype))


def _part(config: Mapping[str, Any], tower: str) -> Mapping[str, Any]:
  kind = config.get("model_type")
  if kind == "clip":
    # Older files have both, and transformers then goes by the first, whatever the second says.
    return config.get(f"{tower}_config_dict") or config.get(f"{tower}_config") or {}
  if kind != f"clip_{tower}_model":
    raise CheckpointError(f"model_type {kind!r} is neither 'clip' nor 'clip_{tower}_model'")
  return config


def _projection(config: Mapping[str, Any], width: int, *, plain: str) -> int | None:
  if config["model_type"] == "clip":
    return config.get("projection_dim", 512)
  return None if plain in (config.get("architectures") or ()) else width


def transformer_sources(
  prefix: str, names: Mapping[str, str], *, layers: int, heads: int
) -> dict[str, Source]:
  """The sources of a `Transformer`, where `names` gives theirs of each part, by ours.

  `prefix` is what all their names begin with, with a place for the layer's number.
  """

  def every(name: str, pattern: str = "") -> Source:
    names = tuple(f"{prefix.format(i)}{name}" for i in range(layers))
    return Source(names, pattern, {"n": heads} if "n" in pattern else {}, stacked=True)

  sources = {}
  for ours, theirs in names.items():
    path = f"transformer/blocks/{ours}"
    weight, bias = f"{theirs}.weight", f"{theirs}.bias"
    if ours == "attention/out":
      sources |= {path: every(weight, "d (n k) -> n k d"), f"{path}_bias": every(bias)}
    elif ours.startswith("attention/"):
      sources[path] = every(weight, "(n k) d -> d n k")
      sources[f"{path}_bias"] = every(bias, "(n k) -> n k")
    elif ours.endswith("_norm"):
      sources |= {f"{path}/scale": every(weight), f"{path}/bias": every(bias)}
    else:
      sources |= {f"{path}/kernel": every(weight, "o i -> i o"), f"{path}/bias": every(bias)}
  return sources


def norm_sources(path: str, theirs: str) -> dict[str, Source]:
  """The sources of a LayerNorm."""
  return {
    f"{path}/scale": Source((f"{theirs}.weight",)),
    f"{path}/bias": Source((f"{theirs}.bias",)),
  }


_BLOCK = {
  "attention/query": "self_attn.q_proj",
  "attention/key": "self_attn.k_proj",
  "attention/value": "self_attn.v_proj",
  "attention/out": "self_attn.out_proj",
  "attention_norm": "layer_norm1",
  "mlp_norm": "layer_norm2",
  "mlp/up": "mlp.fc1",
  "mlp/down": "mlp.fc2",
}


def _blocks(network: CLIPText | CLIPVision, prefix: str) -> dict[str, Source]:
  prefix = f"{prefix}.encoder.layers.{{}}."
  return transformer_sources(prefix, _BLOCK, layers=network.layers, heads=network.heads)


def _text_sources(network: CLIPText) -> dict[str, Source]:
  sources = {
    "embedding": Source(("text_model.embeddings.token_embedding.weight",)),
    "positions": Source(("text_model.embeddings.position_embedding.weight",)),
    **norm_sources("out_norm", "text_model.final_layer_norm"),
    **_blocks(network, "text_model"),
  }
  if network.projection is not None:
    sources["projection/kernel"] = Source(("text_projection.weight",), "o i -> i o")
  return sources


def _vision_sources(network: CLIPVision) -> dict[str, Source]:
  sources = {
    "patch_tokens/class_token": Source(("vision_model.embeddings.class_embedding",)),
    "patch_tokens/patch/kernel": patch_source("vision_model.embeddings.patch_embedding", network),
    "patch_tokens/positions": Source(("vision_model.embeddings.position_embedding.weight",)),
    **norm_sources("in_norm", "vision_model.pre_layrnorm"),  # their spelling
    **norm_sources("out_norm", "vision_model.post_layernorm"),
    **_blocks(network, "vision_model"),
  }
  if network.projection is not None:
    sources["projection/kernel"] = Source(("visual_projection.weight",), "o i -> i o")
  return sources


def patch_source(name: str, network: Any) -> Source:
  """The source of the convolution that makes tokens of patches."""
  sizes = {"y": network.patch, "x": network.patch, "c": 3}
  return Source((f"{name}.weight",), "d c y x -> (y x c) d", sizes)


_POSITION_IDS = r"(text|vision)_model\.embeddings\.position_ids"  # counts, in older files


def _bare(sources: Mapping[str, Source], prefix: str) -> dict[str, str]:
  """Names without the prefix, which files of a tower alone leave out since transformers 5."""
  names = [name for source in sources.values() for name in source.names]
  return {n.removeprefix(prefix): n for n in names if n.startswith(prefix)}


def clip_text_layout(network: CLIPText) -> Layout:
  """Of a text tower's file, or of a whole CLIP's, whose image tower is left alone."""
  sources = _text_sources(network)
  ignored = (_POSITION_IDS, r"embeddings\.position_ids", r"vision_model\..*",
             r"visual_projection\.weight", r"logit_scale")  # fmt: skip
  if network.projection is None:
    ignored += (r"text_projection\.weight",)
  return Layout(sources, ignored=ignored, tied=_bare(sources, "text_model."))


def clip_vision_layout(network: CLIPVision) -> Layout:
  """Of an image tower's file, or of a whole CLIP's, whose text tower is left alone."""
  sources = _vision_sources(network)
  ignored = (_POSITION_IDS, r"embeddings\.position_ids", r"text_model\..*",
             r"text_projection\.weight", r"logit_scale")  # fmt: skip
  if network.projection is None:
    ignored += (r"visual_projection\.weight",)
  return Layout(sources, ignored=ignored, tied=_bare(sources, "vision_model."))


def clip_layout(network: CLIP) -> Layout:
  """Of a whole CLIP's file."""
  towers = {"text": _text_sources(network.text), "vision": _vision_sources(network.vision)}
  sources = {f"{t}/{path}": s for t, tower in towers.items() for path, s in tower.items()}
  sources["logit_scale"] = Source(("logit_scale",), " -> 1")
  return Layout(sources, ignored=(_POSITION_IDS,))
