"""Three small frozen text encoders for ShapesWorld, in the folders that Hugging Face leaves.

They stand for UL2, ByT5 and MetaCLIP where there are no trained weights: of the same kinds, with
tokenizers made of the world's captions and random weights. A random encoder still tells words and
their places apart, which is all that so small a world needs.
"""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vidgen.interop.layout import to_theirs
from vidgen.interop.safetensors_files import write_safetensors
from vidgen.interop.tensors import TensorSpec
from vidgen.interop.text_encoders import KINDS
from vidgen.nn.partition import unboxed
from vidgen.shapes_world.captions import caption_clip
from vidgen.shapes_world.world import WorldSpec, sample_clip
from vidgen.whole_file import write_whole

CAPTIONS = 2000  # from which tokenizers are made
UL2 = {
  "model_type": "t5", "d_model": 64, "num_layers": 2, "num_heads": 4, "d_kv": 16, "d_ff": 128,
  "feed_forward_proj": "gated-silu",
}  # fmt: skip
BYT5 = {
  "model_type": "t5", "vocab_size": 384, "d_model": 32, "num_layers": 1, "num_heads": 2,
  "d_kv": 16, "d_ff": 64, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
METACLIP = {
  "model_type": "clip_text_model", "hidden_size": 48, "intermediate_size": 96,
  "num_hidden_layers": 2, "num_attention_heads": 4, "projection_dim": 48,
  "max_position_embeddings": 64, "hidden_act": "quick_gelu",
}  # fmt: skip
NAMES = ("ul2", "byt5", "metaclip")


def write_text_encoders(folder: str | Path, *, seed: int = 0) -> dict[str, Path]:
  """Writes the folders `NAMES` with weights drawn from `seed`; returns them by name.

  The same seed gives the same bytes.
  """
  folders = {name: Path(folder) / name for name in NAMES}
  for path in folders.values():
    path.mkdir(parents=True, exist_ok=True)
  captions = list(_captions(seed))
  pieces = _sentence_pieces(captions)
  write_whole(folders["ul2"] / "spiece.model", pieces)
  write_whole(folders["ul2"] / "tokenizer_config.json", _json({"extra_ids": 0}))
  write_whole(
    folders["byt5"] / "tokenizer_config.json", _json({"tokenizer_class": "ByT5Tokenizer"})
  )
  pairs, end = _byte_pairs(captions)
  write_whole(folders["metaclip"] / "tokenizer.json", pairs.encode())
  sizes = {
    "ul2": {**UL2, "vocab_size": _count(pieces)},
    "byt5": BYT5,
    "metaclip": {**METACLIP, "vocab_size": end + 1, "eos_token_id": end},
  }
  for number, (name, path) in enumerate(folders.items()):
    write_whole(path / "config.json", _json(sizes[name]))
    _write_weights(path, sizes[name], key=jax.random.fold_in(jax.random.key(seed), number))
  return folders


def _captions(seed: int) -> Iterator[str]:
  spec = WorldSpec()
  for index in range(CAPTIONS):
    clip = sample_clip(spec, seed=seed, index=index)
    yield caption_clip(clip, spec, seed=seed, index=index).text


def _sentence_pieces(captions: list[str]) -> bytes:
  import sentencepiece

  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(captions), model_writer=model, model_type="bpe", vocab_size=256,
    pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, num_threads=1, minloglevel=2,
  )  # fmt: skip
  return model.getvalue()


def _count(pieces: bytes) -> int:
  import sentencepiece

  model: Any = sentencepiece.SentencePieceProcessor()
  model.LoadFromSerializedProto(pieces)
  return model.get_piece_size()


def _byte_pairs(captions: list[str]) -> tuple[str, int]:
  """A tokenizer.json of CLIP's kind, and the id of its end of text, the largest.

  Every word grows from its first letter. (A trainer's merges hang on the order of a hash table.)
  """
  import tokenizers

  words = sorted({word for text in captions for word in re.findall(r"\w+|[^\w\s]", text.lower())})
  merges: dict[tuple[str, str], None] = {}
  letters: set[str] = set()
  for word in words:
    symbols = [*word[:-1], f"{word[-1]}</w>"]
    letters |= set(symbols)
    grown = symbols[0]
    for symbol in symbols[1:]:
      merges[grown, symbol] = None
      grown += symbol
  first, last = "<|startoftext|>", "<|endoftext|>"
  names = [*sorted(letters), *("".join(pair) for pair in merges), "<unk>"]
  ids = {name: i for i, name in enumerate(dict.fromkeys(names))}
  made = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab=ids, merges=list(merges), end_of_word_suffix="</w>", unk_token="<unk>"
    )
  )
  made.normalizer = tokenizers.normalizers.Lowercase()
  made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  made.add_special_tokens([first, last])
  special = [(first, len(ids)), (last, len(ids) + 1)]
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single=f"{first} $A {last}", special_tokens=special
  )
  return made.to_str(), special[1][1]


def _write_weights(folder: Path, config: dict[str, Any], *, key: jax.Array) -> None:
  kind = KINDS[config["model_type"]]
  network = kind.network(config)
  example = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), network.example())
  params = unboxed(jax.jit(network.init)(key, *example)["params"])
  arrays = to_theirs(jax.tree.map(np.asarray, params), kind.layout(network))
  specs = {name: TensorSpec(array.shape, array.dtype.name) for name, array in arrays.items()}
  write_safetensors(
    folder / "model.safetensors", specs, parts=lambda name: [arrays[name]], metadata={}
  )


def _json(tree: dict[str, Any]) -> bytes:
  return (json.dumps(tree, indent=2) + "\n").encode()
