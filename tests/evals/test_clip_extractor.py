"""CLIP and DINO for metrics: preprocessing as published, batches, captions, folders, records."""

import functools
import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import Case, check
from fixtures.random_weights import draw
from safetensors.numpy import save_file

from vidgen.errors import ConfigError, DataError
from vidgen.evals.extractors import Extractor, clip, dino
from vidgen.evals.extractors.clip import CONVENTIONS, clip_extractor, load_clip
from vidgen.evals.extractors.dino import dino_extractor, load_dino
from vidgen.interop.layout import load_params
from vidgen.interop.layouts.clip import clip_from_hf, clip_layout
from vidgen.interop.layouts.vit import vit_from_hf, vit_layout
from vidgen.interop.networks import abstract_params
from vidgen.interop.weight_files import MemoryWeights

FIXTURE = np.load(Path(__file__).resolve().parents[1] / "fixtures" / "clip.npz")
CONFIGS = json.loads(str(FIXTURE["configs"]))
WEIGHTS = json.loads(str(FIXTURE["weights"]))
UNIT = draw("pictures", (2, 40, 31, 3), scale=3**-0.5)
PICTURES = ((UNIT + 1) / 2 * 256).clip(0, 255).astype(np.uint8)


class Letters:
  """A tokenizer of a few ids: a letter is its place in the alphabet."""

  vocabulary, pad, begin, end = 60, 59, 58, 59
  digest = hashlib.sha256(b"letters").hexdigest()

  def encode(self, text):
    return [ord(letter) % 32 for letter in text]

  def decode(self, ids):
    return "".join(chr(i + 96) for i in ids)


def theirs(name):
  return {
    key: np.asarray(draw(key, shape, scale=scale, offset=offset))
    for key, (shape, scale, offset) in WEIGHTS[name].items()
  }


@functools.cache
def loaded(name):
  make, lay = (vit_from_hf, vit_layout) if name == "dino" else (clip_from_hf, clip_layout)
  network = make(CONFIGS[name])
  like = abstract_params(network).shapes
  return network, load_params(MemoryWeights(theirs(name)), lay(network), like=like)


def of_clip(crop="openai", batch_size=2):
  tokens = {"digest": "d", "tokenizer": Letters()}
  return clip_extractor(*loaded("openai"), crop=crop, batch_size=batch_size, **tokens)


def crop_pairs(name):
  crop = (
    dino.crop_of(loaded("dino")[0]) if name == "dino" else clip.crop_of(loaded("openai")[0], name)
  )
  return {name: (jax.jit(crop)(jnp.asarray(PICTURES)), FIXTURE[f"pictures/{name}"])}


def case(name, reference):
  return Case(
    module="evals.extractors.crop",
    reference=reference,
    config=f"crop of {name}: 40 x 31 to 24 x 24",
    tolerance=2e-6,
    run=lambda: crop_pairs(name),
  )


CASES = [
  case("openai", f"{FIXTURE['versions']}, CLIPImageProcessorPil"),
  case("dino", "pillow, torchvision's crop of the middle"),
  case("vbench", "torch.nn.functional.interpolate, clamped and rounded as torchvision does"),
  case("squash", "torch.nn.functional.interpolate"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.config)
def test_pictures_are_brought_to_the_network_as_published(case):
  check(case)


@pytest.mark.parametrize("name", ["vbench", "squash"])
def test_the_crops_differ(name):
  """By more than the check allows: taking one for another is found."""
  want = FIXTURE["pictures/openai"]
  assert np.abs(crop_pairs(name)[name][0] - want).max() > 0.1


def test_features_are_the_networks_and_do_not_depend_on_the_batch():
  network, params = loaded("openai")
  extractor = of_clip()
  three = np.concatenate([PICTURES, PICTURES[:1, ::-1]])
  found = extractor(three)
  assert isinstance(extractor, Extractor)
  assert found["image_embeds"].shape == (3, 20) and found["image_embeds"].dtype == np.float32
  for row in range(3):
    np.testing.assert_array_equal(
      extractor(three[row : row + 1])["image_embeds"][0], found["image_embeds"][row]
    )
  given = jnp.asarray(FIXTURE["pictures/openai"])
  want = network.vision.apply({"params": params["vision"]}, given)["embedding"]
  np.testing.assert_allclose(found["image_embeds"][:2], want, rtol=0, atol=2e-5)


def test_captions_are_read_with_begin_and_end_and_cut_at_the_towers_length():
  network, params = loaded("openai")
  captions = ["abc", "", "de" * 300]
  found = of_clip().text(captions)["text_embeds"]
  assert found.shape == (3, 20)
  ids = jnp.asarray([[58, 1, 2, 3, 59]])
  want = network.text.apply({"params": params["text"]}, ids, jnp.ones((1, 5), bool))["embedding"]
  np.testing.assert_allclose(found[:1], want, rtol=0, atol=2e-5)
  cut = of_clip().text(["de" * 149])["text_embeds"]  # 298 letters between begin and end
  np.testing.assert_array_equal(cut[0], found[2])


def test_dino_gives_the_class_token():
  network, params = loaded("dino")
  found = dino_extractor(network, params, digest="d", batch_size=2)(PICTURES)
  given = jnp.asarray(FIXTURE["pictures/dino"])
  want = network.apply({"params": params}, given)["tokens"][:, 0]
  np.testing.assert_allclose(found["cls"], want, rtol=0, atol=2e-5)


def test_records_tell_the_crop_and_are_plain():
  records = [of_clip(crop).protocol() for crop in CONVENTIONS]
  assert len({json.dumps(record, sort_keys=True) for record in records}) == len(CONVENTIONS)
  assert records[0]["resize"] == "pil_bicubic" and records[2]["fit"] == "squash"
  assert records[0]["extractor"] == "clip" and records[0]["text_length"] == 300
  facts = dino_extractor(*loaded("dino"), digest="d").protocol()
  assert (facts["short_side"], facts["side"]) == (27, 24)  # 256 and 224 of DINO's own size


def test_a_hugging_face_folder_is_loaded(tmp_path, monkeypatch):
  monkeypatch.setattr(clip, "load_tokenizer", lambda folder: Letters())
  for name, load in (("openai", load_clip), ("dino", load_dino)):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
    save_file(theirs(name), folder / "model.safetensors")
    extractor = load(folder, batch_size=2)
    assert len(extractor.digest) == 64
    (tensor, found), *_ = extractor(PICTURES).items()
    same = (
      of_clip() if name == "openai" else dino_extractor(*loaded("dino"), digest="", batch_size=2)
    )
    np.testing.assert_array_equal(found, same(PICTURES)[tensor])


def test_what_is_unknown_is_refused():
  with pytest.raises(ConfigError, match="unknown crop 'tf'; known are openai, vbench, squash"):
    of_clip("tf")
  with pytest.raises(DataError, match="clip reads uint8 RGB of 4 dimensions, not float32"):
    of_clip()(PICTURES.astype(np.float32))
