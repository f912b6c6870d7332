"""Tiny text encoders in Hugging Face folders: random weights, the fixtures' tokenizers."""

import json
import shutil
from pathlib import Path

import jax
import safetensors.numpy
from fixtures.random_weights import draw

from vidgen.interop.layout import to_theirs
from vidgen.interop.networks import abstract_params
from vidgen.interop.text_encoders import KINDS

TOKENIZERS = Path(__file__).parents[1] / "fixtures" / "tokenizers"
T5 = {
  "model_type": "t5", "vocab_size": 200, "d_model": 24, "num_layers": 2, "num_heads": 2, "d_kv": 8,
  "d_ff": 32, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
BYT5 = {**T5, "vocab_size": 384, "d_model": 16}
CLIP = {
  "model_type": "clip_text_model", "vocab_size": 568, "hidden_size": 16, "intermediate_size": 32,
  "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 8, "eos_token_id": 567,
  "max_position_embeddings": 77, "hidden_act": "quick_gelu",
}  # fmt: skip


def write_encoder(folder: Path, kind: str, *, seed: int = 0) -> Path:
  """Writes "t5", "byt5" or "clip" with weights of `seed`; returns the folder."""
  config = {"t5": T5, "byt5": BYT5, "clip": CLIP}[kind]
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(config))
  if kind == "byt5":
    names = {"tokenizer_class": "ByT5Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
  else:
    shutil.copytree(TOKENIZERS / kind, folder, dirs_exist_ok=True)
  made = KINDS[config["model_type"]]
  network = made.network(config)
  shapes = abstract_params(network).shapes
  params = jax.tree_util.tree_map_with_path(
    lambda path, leaf: draw(jax.tree_util.keystr(path), leaf.shape, scale=0.3, seed=seed), shapes
  )
  arrays = to_theirs(params, made.layout(network))
  safetensors.numpy.save_file(arrays, folder / "model.safetensors")
  return folder
