"""CLIP: parity of both towers with transformers, what would break it, long texts, meshes, FLOPs."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import Case, check, measure
from fixtures.random_weights import draw

from vidgen.dist.flops import count_flops
from vidgen.dist.mesh import MeshConfig, make_mesh, on_mesh
from vidgen.dist.rules import DEFAULT_RULES, state_shardings
from vidgen.errors import CheckpointError
from vidgen.interop.layout import load_params, to_theirs
from vidgen.interop.layouts.clip import (
  clip_from_hf,
  clip_layout,
  clip_text_from_hf,
  clip_text_layout,
  clip_vision_from_hf,
  clip_vision_layout,
)
from vidgen.interop.weight_files import MemoryWeights
from vidgen.models import clip
from vidgen.models.clip import (
  CLIPText,
  CLIPVision,
  clip_text_flops,
  clip_vision_flops,
  extend_text_positions,
)
from vidgen.nn.partition import axes_of, unboxed

FIXTURE = np.load(Path(__file__).resolve().parents[1] / "fixtures" / "clip.npz")
CONFIGS = json.loads(str(FIXTURE["configs"]))
WEIGHTS = json.loads(str(FIXTURE["weights"]))
EVERY = {77: 5, 300: 37}  # what is stored of a long text
LENGTHS = 1, 77, 300
IMAGES = jnp.asarray(draw("images", (2, 24, 24, 3)))


def abstract(network):
  return jax.eval_shape(network.init, jax.random.key(0), *network.example())["params"]


@functools.cache
def theirs(name):
  return {
    key: np.asarray(draw(key, shape, scale=scale, offset=offset))
    for key, (shape, scale, offset) in WEIGHTS[name].items()
  }


@functools.cache
def loaded(name):
  network = clip_from_hf(CONFIGS[name])
  like = unboxed(abstract(network))
  return network, load_params(MemoryWeights(theirs(name)), clip_layout(network), like=like)


def run(network, params, *inputs):
  return jax.jit(network.apply)({"params": params}, *inputs)


def text_inputs(name, length):
  return jnp.asarray(FIXTURE[f"{name}/{length}/ids"]), jnp.asarray(FIXTURE[f"{length}/mask"])


def text_pairs(name, lengths=LENGTHS, *, text=None):
  """Ours and transformers' of what is not padding; the embedding; every layer."""
  network, params = loaded(name)
  found = {}
  for length in lengths:
    ours = run(text or network.text, params["text"], *text_inputs(name, length))
    kept = FIXTURE[f"{length}/mask"][:, :: EVERY.get(length, 1)]
    for part in ("tokens", "hidden"):
      here = np.asarray(ours[part])[..., :: EVERY.get(length, 1), :]
      want = FIXTURE[f"{name}/{length}/{part}"]
      found[f"{part} of {length}"] = here[..., kept, :], want[..., kept, :]
    found[f"embedding of {length}"] = ours["embedding"], FIXTURE[f"{name}/{length}/embedding"]
  return found


def image_pairs(name, *, vision=None):
  network, params = loaded(name)
  ours = run(vision or network.vision, params["vision"], IMAGES)
  return {part: (value, FIXTURE[f"{name}/image/{part}"]) for part, value in ours.items()}


def whole_pairs(name):
  network, params = loaded(name)
  ours = run(network, params, IMAGES, *text_inputs(name, 77))
  return {part: (value, FIXTURE[f"{name}/both/{part}"]) for part, value in ours.items()}


def case(name, part, run):
  activation = {"openai": "quick GELU, largest id", "laion": "exact GELU, first end"}[name]
  return Case(
    module="models.clip",
    reference=f"{FIXTURE['versions']}, CLIPModel",
    config=f"{part}: {activation}; 2 layers of 24 and 32, every layer",
    tolerance=1e-5,
    run=run,
  )


CASES = [
  case(name, part, functools.partial(pairs, name))
  for name in ("openai", "laion")
  for part, pairs in (
    ("text of 1, 77 and 300 tokens, padded", text_pairs),
    ("image", image_pairs),
    ("both towers", whole_pairs),
  )
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.config.split(";")[0])
def test_every_layer_and_embedding_equals_transformers(case):
  check(case)


def fails(name, run):
  assert measure(run()).relative > 10 * case(name, "", run).tolerance


@pytest.mark.parametrize(
  ("name", "wrong"),
  [
    ("openai", {"activation": "gelu"}),
    ("laion", {"activation": "quick_gelu"}),
    ("openai", {"end_token": 40}),  # reads the first 40, or the start
    ("laion", {"end_token": None}),  # reads the largest id
    ("openai", {"norm_epsilon": 1e-2}),
  ],
  ids=str,
)
def test_a_wrong_field_of_the_text_tower_fails_the_parity_check(name, wrong):
  text = loaded(name)[0].text.clone(**wrong)
  fails(name, lambda: text_pairs(name, (77,), text=text))


def test_without_its_causal_mask_the_text_tower_fails_the_parity_check(monkeypatch):
  monkeypatch.setattr(clip, "causal_bias", lambda length: jnp.zeros((1, length, length)))
  fails("openai", lambda: text_pairs("openai", (77,)))


def test_the_text_tower_does_not_see_what_the_mask_hides():
  """A causal tower sees padding only where it comes first, so parity alone would not tell."""
  name, length = "openai", 77
  network, params = loaded(name)
  ids, mask = text_inputs(name, length)
  right = run(network.text, params["text"], ids, mask.at[:, 0].set(False))["tokens"]
  wrong = run(network.text, params["text"], ids, mask)["tokens"]
  assert np.abs(right - wrong)[:, 1].max() > 1e-2


def test_without_the_norm_before_its_blocks_the_image_tower_fails(monkeypatch):
  class Absent(clip.LayerNorm):
    def __call__(self, x):
      return x if self.name == "in_norm" else super().__call__(x)

  monkeypatch.setattr(clip, "LayerNorm", Absent)
  fails("openai", lambda: image_pairs("openai"))


def test_without_its_projection_a_tower_fails(monkeypatch):
  """Of one width, so that only values tell."""
  monkeypatch.setattr(clip, "_projected", lambda pooled, width: pooled[:, :width])
  fails("openai", lambda: text_pairs("openai", (77,)))
  fails("openai", lambda: image_pairs("openai"))


def test_bfloat16_keeps_the_cosine():
  network, params = loaded("laion")
  vision = run(network.vision.clone(dtype="bfloat16"), params["vision"], IMAGES)
  text = run(network.text.clone(dtype="bfloat16"), params["text"], *text_inputs("laion", 77))
  for ours, name in ((vision, "image"), (text, "77")):
    got, want = ours["embedding"], FIXTURE[f"laion/{name}/embedding"]
    assert got.dtype == jnp.float32
    assert np.vdot(got, want) / np.linalg.norm(got) / np.linalg.norm(want) > 0.9999


def test_export_gives_back_the_file():
  network, params = loaded("openai")
  back, want = to_theirs(params, clip_layout(network)), theirs("openai")
  assert back.keys() == want.keys()
  for key, array in want.items():
    np.testing.assert_array_equal(back[key], array)


@pytest.mark.parametrize("names", ["whole", "tower", "bare tower", "older"])
def test_a_tower_is_read_from_its_own_file_and_from_that_of_both(names):
  """A bare tower has no prefix and no projection: transformers 5 writes a CLIPTextModel so."""
  network, params = loaded("openai")
  text, file = network.text, dict(theirs("openai"))
  want = params["text"]
  if names != "whole":
    file = {k: v for k, v in file.items() if k.startswith(("text_model.", "text_projection"))}
  if names == "bare tower":
    text, want = text.clone(projection=None), {k: v for k, v in want.items() if k != "projection"}
    file.pop("text_projection.weight")
    file = {k.removeprefix("text_model."): v for k, v in file.items()}
  if names == "older":
    file["text_model.embeddings.position_ids"] = np.arange(300)[None]
  like = unboxed(abstract(text))
  got = load_params(MemoryWeights(file), clip_text_layout(text), like=like)
  jax.tree.map(np.testing.assert_array_equal, got, dict(want))


def test_the_image_tower_is_read_from_the_file_of_both():
  network, params = loaded("laion")
  like = unboxed(abstract(network.vision))
  layout = clip_vision_layout(network.vision)
  got = load_params(MemoryWeights(theirs("laion")), layout, like=like)
  jax.tree.map(np.testing.assert_array_equal, got, params["vision"])


def test_configs_of_towers_alone():
  whole = clip_from_hf(CONFIGS["laion"])
  parts = CONFIGS["laion"]["text_config"], CONFIGS["laion"]["vision_config"]
  text, vision = (part | {"projection_dim": 20} for part in parts)
  assert clip_text_from_hf(text | {"model_type": "clip_text_model"}) == whole.text
  assert clip_vision_from_hf(vision | {"model_type": "clip_vision_model"}) == whole.vision
  plain = {"model_type": "clip_text_model", "architectures": ["CLIPTextModel"]}
  assert clip_text_from_hf(text | plain).projection is None


def test_of_two_parts_in_an_older_config_the_one_that_transformers_goes_by_is_read():
  """`CLIPConfig` of transformers lets "text_config_dict" win over "text_config"."""
  config = CONFIGS["laion"]
  for tower in ("text", "vision"):
    part = config[f"{tower}_config"]
    config = config | {
      f"{tower}_config": part | {"hidden_act": "quick_gelu"},
      f"{tower}_config_dict": part,
    }
  assert clip_from_hf(config) == clip_from_hf(CONFIGS["laion"])
  assert clip_from_hf(config).text.activation == "gelu"


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"model_type": "siglip"}, "model_type 'siglip' is neither 'clip' nor 'clip_text_model'"),
    ({"model_type": "clip_text_model", "hidden_act": "swish"}, "hidden_act 'swish' is none of"),
  ],
)
def test_an_unknown_config_is_refused(config, message):
  with pytest.raises(CheckpointError, match=message):
    clip_text_from_hf(config)


def test_a_text_longer_than_the_position_table_is_refused():
  network, params = loaded("openai")
  ids = jnp.zeros((1, 301), jnp.int32)
  with pytest.raises(ValueError, match="301 tokens, but the text tower has 300 positions"):
    network.text.apply({"params": params["text"]}, ids, ids == 0)


def test_positions_of_248_tokens_are_long_clips():
  """Its factor is 4: rows at quarters between the old ones, and three past the last."""
  table = draw("positions", (77, 6))
  got = np.asarray(extend_text_positions(jnp.asarray(table), length=248))
  want = [*table[:20]]
  for i in range(20, 76):
    want += [table[i] * (1 - part) + table[i + 1] * part for part in (0, 0.25, 0.5, 0.75)]
  want += [table[76] + (table[76] - table[75]) * part for part in (0, 0.25, 0.5, 0.75)]
  np.testing.assert_allclose(got, np.stack(want), rtol=0, atol=1e-6)


def test_long_positions_keep_the_first_and_a_short_caption_reads_the_same():
  """77 to 256 tokens, as Movie Gen's MetaCLIP; a caption within the kept rows does not change."""
  text = CLIPText(60, 24, 2, 4, 40, 20)
  rng = np.random.default_rng(0)
  like = unboxed(abstract(text))
  params = jax.tree.map(lambda p: jnp.asarray(0.2 * rng.standard_normal(p.shape), p.dtype), like)
  positions = extend_text_positions(params["positions"], length=256)
  assert positions.shape == (256, 24)
  long, ids = text.clone(max_length=256), jnp.asarray(rng.integers(0, 60, (1, 20)))
  longer = jnp.pad(ids, ((0, 0), (0, 236)))
  got = run(long, params | {"positions": positions}, longer, jnp.arange(256)[None] < 20)
  want = run(text, params, ids, jnp.ones((1, 20), bool))
  np.testing.assert_allclose(got["embedding"], want["embedding"], rtol=0, atol=1e-5)
  with pytest.raises(ValueError, match="cannot be stretched to 70"):
    extend_text_positions(params["positions"], length=70)


@pytest.mark.parametrize(
  "config",
  [MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(data=1, fsdp=2, context=2, tensor=2)],
  ids=["data 2, fsdp 2, tensor 2", "fsdp 2, context 2, tensor 2"],
)
def test_it_is_the_same_on_a_mesh(config):
  """Texts of 77 tokens and images of 10 do not divide over context and tensor."""
  network, params = loaded("openai")
  axes = axes_of(abstract(network))
  mesh = make_mesh(config)
  shardings = state_shardings(params, axes, params=params, mesh=mesh, rules=DEFAULT_RULES)
  inputs = jax.tree.map(
    lambda x: jnp.tile(x, (2, *[1] * (x.ndim - 1))), (IMAGES, *text_inputs("openai", 77))
  )
  with on_mesh(mesh, rules=DEFAULT_RULES):
    got = run(network, jax.device_put(params, shardings), *inputs)
  want = run(network, params, *inputs)
  for part, value in want.items():
    np.testing.assert_allclose(got[part], value, rtol=0, atol=2e-5, err_msg=part)


def xla_flops(network, inputs):
  params = unboxed(jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"])

  def embedding(params, *inputs):
    return network.apply({"params": params}, *inputs)["embedding"]

  compiled = jax.jit(embedding).lower(params, *inputs).compile()
  return count_flops(embedding, params, *inputs).total, compiled.cost_analysis()["flops"]


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_the_flop_formulas_are_what_xla_counts(tower):
  """One layer, as XLA counts a loop's body once."""
  if tower == "text":
    text = CLIPText(64, 256, 1, 4, 1024, 256, max_length=128)
    formula, inputs = clip_text_flops(text, length=128, batch=2), text.example(batch=2)
    network = text
  else:
    network = CLIPVision(64, 8, 256, 1, 4, 1024, 256)
    formula, inputs = clip_vision_flops(network, batch=2), network.example(batch=2)
  counted, xla = xla_flops(network, inputs)
  assert counted == formula
  assert xla == pytest.approx(formula, rel=0.02)
