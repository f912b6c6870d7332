"""CLIP from open_clip's and OpenAI's own layout: embeddings as open_clip gives them."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import Case, check, measure
from fixtures.random_weights import draw
from safetensors.numpy import save_file

from vidgen.errors import CheckpointError
from vidgen.evals.extractors import clip as clip_extractor
from vidgen.inputs.text import ByteTokenizer
from vidgen.interop.layout import load_params
from vidgen.interop.layouts.open_clip import Unfused, clip_from_open_clip, open_clip_layout
from vidgen.interop.networks import abstract_params
from vidgen.interop.weight_files import MemoryWeights

FIXTURE = np.load(Path(__file__).resolve().parents[1] / "fixtures" / "open_clip.npz")
CONFIGS = json.loads(str(FIXTURE["configs"]))
WEIGHTS = json.loads(str(FIXTURE["weights"]))
IMAGES = jnp.asarray(draw("images", (2, 24, 24, 3)))


@functools.cache
def theirs(name):
  return {
    key: np.asarray(draw(key, shape, scale=scale, offset=offset))
    for key, (shape, scale, offset) in WEIGHTS[name].items()
  }


def load(name, arrays, *, network=None):
  network = network or clip_from_open_clip(CONFIGS[name])
  weights = Unfused(MemoryWeights(arrays))
  like = abstract_params(network).shapes
  return network, load_params(weights, open_clip_layout(network), like=like)


def pairs(name, *, network=None):
  network, params = load(name, theirs(name), network=network)

  def compute(params, images, ids):
    return {
      "image": network.vision.apply({"params": params["vision"]}, images)["embedding"],
      "text": network.text.apply({"params": params["text"]}, ids, ids >= 0)["embedding"],
      "logits": network.apply({"params": params}, images, ids, ids >= 0)["logits"],
    }

  found = jax.jit(compute)(params, IMAGES, jnp.asarray(FIXTURE["ids"]))
  return {part: (value, FIXTURE[f"{name}/{part}"]) for part, value in found.items()}


CASES = [
  Case(
    module="interop.layouts.open_clip",
    reference=f"{FIXTURE['versions']}, CLIP",
    config=f"both towers, {name} GELU, 2 layers of 24 and 32",
    tolerance=1e-5,
    run=functools.partial(pairs, name),
  )
  for name in CONFIGS
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.config)
def test_embeddings_and_logits_equal_open_clips(case):
  check(case)


def test_the_other_gelu_is_found():
  network = clip_from_open_clip(CONFIGS["exact"] | {"quick_gelu": True})
  assert measure(pairs("exact", network=network)).relative > 1e-4


def test_the_counts_in_openais_files_are_ignored_and_a_matrix_not_of_three_is_refused():
  counts = {name: np.array(77) for name in ("input_resolution", "context_length", "vocab_size")}
  _, params = load("quick", theirs("quick") | counts)
  _, want = load("quick", theirs("quick"))
  jax.tree.map(np.testing.assert_array_equal, params, want)
  name = "transformer.resblocks.0.attn.in_proj_bias"
  with pytest.raises(CheckpointError, match=r"in_proj_bias of shape \(71,\) is not three in one"):
    load("quick", theirs("quick") | {name: np.zeros(71, np.float32)})


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"multimodal_cfg": {}}, "with multimodal_cfg is not known"),
    ({"vision_cfg": {"timm_model_name": "x"}}, "with timm_model_name is not known"),
    ({"text_cfg": {}}, "no config of open_clip: 'vocab_size'"),
  ],
)
def test_another_architecture_is_refused(change, message):
  with pytest.raises(CheckpointError, match=message):
    clip_from_open_clip(CONFIGS["exact"] | change)


def open_clip_folder(folder, **pictures):
  folder.mkdir()
  config = {"model_cfg": CONFIGS["quick"], "preprocess_cfg": pictures}
  (folder / "open_clip_config.json").write_text(json.dumps(config))
  save_file(theirs("quick"), folder / "open_clip_model.safetensors")
  return folder


def test_a_folder_of_open_clip_is_loaded_for_scores(tmp_path, monkeypatch):
  monkeypatch.setattr(clip_extractor, "load_tokenizer", lambda folder: ByteTokenizer())
  extractor = clip_extractor.load_clip(open_clip_folder(tmp_path / "clip"), batch_size=2)
  network, params = load("quick", theirs("quick"))
  pictures = np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), np.uint8)
  given = clip_extractor.crop_of(network, "openai")(jnp.asarray(pictures))
  want = network.vision.apply({"params": params["vision"]}, given)["embedding"]
  np.testing.assert_allclose(extractor(pictures)["image_embeds"], want, atol=1e-5)


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}, "its mean is not that of CLIP's"),
    ({"model_cfg": {**CONFIGS["quick"], "embed_dim": 1 << 40}}, "embed_dim"),
    ({"model_cfg": None}, "no model_cfg"),
  ],
)
def test_another_config_of_open_clip_is_refused(change, said, tmp_path):
  folder = open_clip_folder(tmp_path / "clip")
  path = folder / "open_clip_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(CheckpointError, match=said):
    clip_extractor.load_clip(folder)
