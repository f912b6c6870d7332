"""The upsampler: the size of its 7B model, what its condition does, 1080 rows, and its windows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidgen.diffusion.windows import window_starts, window_weights
from vidgen.errors import ConfigError
from vidgen.systems import SampleSettings, Stage, make_stage
from vidgen.systems.movie_gen.upsampler import NOISE, pad_to_patch
from vidgen.systems.sampling import input_spec, sample_keys

FIELDS = {
  "layers": 1,
  "width": 16,
  "heads": 2,
  "mlp_width": 24,
  "max_grid": (3, 2, 2),
  "latent": {"channels": 2, "temporal_stride": 1, "spatial_stride": 8},
  "text_streams": {"ul2": {"width": 6, "length": 3}},
  "buckets": [{"name": "video", "frames": 3, "height": 24, "width": 32}],  # 3 rows: odd
  "overlap": 1,
  "dtype": "float32",
  "remat": "none",
}
SETTINGS = SampleSettings(steps=3, guidance_scale=2.0, schedule="linear")


def stage(**changes) -> Any:
  return make_stage("movie_gen/upsampler", {**FIELDS, **changes})


def batch_of(model, size=2, frames=3):
  """Random contents; the first example's text has one token, the others all."""
  rng = np.random.default_rng(0)
  batch = {}
  for name, spec in model.batch_spec(size).items():
    shape = spec.shape
    if name in ("latents", "condition"):
      shape = (size, frames, *shape[2:])
    batch[name] = jnp.asarray(rng.standard_normal(shape), jnp.float32)
  batch["ul2_mask"] = jnp.arange(3) < jnp.asarray([[1], [3]] * size)[:size]
  return batch


def scattered(model, scale=0.3):
  """Parameters none of which is zero, so that everything acts."""
  rng = np.random.default_rng(3)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return jax.tree.map(lambda p: jnp.asarray(scale * rng.standard_normal(p.shape), p.dtype), shapes)


def keys(size=2):
  return sample_keys(7, jnp.arange(size))


def test_seven_billion_parameters_in_closed_form():
  """The default network has 6.99B parameters: those of its matrices, tables and norms."""
  model: Any = make_stage("movie_gen/upsampler", {})
  d, f, layers = 3456, 9216, 36
  block = 8 * d * d + 3 * d * f + 2 * d + 6 * d  # attentions, MLP, two norms, table
  patches = 3 * 64 * d + d  # in (with a bias), condition, out
  text = (4096 + 1472 + 1280) * d + 3 * 3 * d  # linear, and LayerNorm
  time = 256 * d + d + d * d + d + 6 * d * d + 6 * d
  wanted = layers * block + patches + text + time + (14 + 68 + 120) * d + 3 * d
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  count = sum(x.size for x in jax.tree.leaves(shapes))
  assert count == wanted == 6_990_295_680
  assert isinstance(model, Stage) and set(shapes) == {"network"}
  # 68 x 120 tokens a frame, 114,240 a window, from latents of 135 x 240
  assert model.batch_spec(1)["latents"].shape == (1, 14, 135, 240, 16)
  assert np.prod(model.config.grid((14, 135, 240))) == 114_240


def test_up_3_a_fresh_network_does_not_see_its_condition():
  """With all else random, the loss of a fresh condition projection is the same for any condition;
  one update later it is not, as the projection has a gradient."""
  model = stage()
  params, batch = scattered(model), batch_of(model)
  fresh = model.init(jax.random.key(0))["network"]["patch_condition"]
  assert set(fresh) == {"kernel"}
  params["network"]["patch_condition"] = fresh
  loss = jax.jit(jax.value_and_grad(lambda p, b: model.loss(p, b, keys())[0]))
  other = {**batch, "condition": 5.0 + 3.0 * batch["condition"]}
  first, gradients = loss(params, batch)
  assert first == loss(params, other)[0]
  params["network"]["patch_condition"] = jax.tree.map(
    lambda p, g: p - g, fresh, gradients["network"]["patch_condition"]
  )
  assert abs(loss(params, batch)[0] - loss(params, other)[0]) > 1e-3


def test_up_4_rows_are_padded_to_the_patch_and_cropped():
  """135 latent rows become 136 for the network, the last repeated, and come back as 135; the added
  row has no part in the loss or in the sample."""
  x = jax.random.normal(jax.random.key(0), (1, 1, 135, 240, 2))
  padded = pad_to_patch(x, patch=(1, 2, 2))
  assert padded.shape == (1, 1, 136, 240, 2)
  np.testing.assert_array_equal(padded[:, :, :135], x)
  np.testing.assert_array_equal(padded[:, :, 135], x[:, :, 134])
  assert pad_to_patch(padded, patch=(1, 2, 2)) is padded

  model = stage()
  batch = batch_of(model)
  assert batch["latents"].shape == (2, 3, 3, 4, 2)
  params = jax.eval_shape(model.init, jax.random.key(0))
  loss = jax.eval_shape(model.loss, params, batch, keys())[0]
  made = jax.eval_shape(lambda p: model.sample(p, batch, keys(), SETTINGS), params)
  assert loss.shape == () and made["latents"].shape == batch["latents"].shape
  # the same pixels cut off by hand: predictions at the real rows, and nothing else
  params = scattered(model)
  seen = []
  network = model.network

  class Watched:
    channels = network.channels

    def apply(self, variables, x, *rest):
      seen.append((x.shape, rest[-1].shape))
      return network.apply(variables, x, *rest)

  model.network = Watched()
  model.loss(params, batch, keys())
  assert seen == [((2, 3, 4, 4, 2), (2, 3, 4, 4, 2))]


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_long_clip_is_sampled_in_windows_that_agree(at_once):
  """8 frames in windows of 3 are, at every step, the weighted mean of the network's velocities of
  each window, with its own part of the condition, and the example's text under guidance."""
  model = stage(windows_at_once=at_once)
  params, batch = scattered(model), batch_of(model, frames=8)
  made = jax.jit(lambda p, b: model.sample(p, b, keys(), SETTINGS))(params, batch)["latents"]

  starts, weights = window_starts(8, size=3, overlap=1), window_weights(3, overlap=1)
  assert starts == (0, 2, 4, 5)

  @jax.jit
  def predict(x, time, condition, mask):
    h, w = x.shape[2:4]
    x, condition = (jnp.pad(y, ((0, 0), (0, 0), (0, 1), (0, 0), (0, 0)), "edge")
                    for y in (x, condition))  # fmt: skip
    given = ({"ul2": batch["ul2"]}, {"ul2": mask}, condition)
    return model.network.apply({"params": params["network"]}, x, time, *given)[:, :, :h, :w]

  draws = [jax.random.normal(jax.random.fold_in(k, NOISE), (8, 3, 4, 2)) for k in keys()]
  x = np.stack([np.asarray(d) for d in draws])
  for step in range(3):
    total, mass = np.zeros_like(x), np.zeros((8, 1, 1, 1))
    for start in starts:
      here = slice(start, start + 3)
      time, condition = jnp.full(2, step / 3), batch["condition"][:, here]
      told = np.asarray(predict(x[:, here], time, condition, batch["ul2_mask"]))
      null = np.asarray(predict(x[:, here], time, condition, jnp.zeros((2, 3), bool)))
      total[:, here] += weights[:, None, None, None] * (null + 2.0 * (told - null))
      mass[here] += weights[:, None, None, None]
    x = x + total / mass / 3
  np.testing.assert_allclose(made, x, atol=2e-4, rtol=2e-4)


def test_a_short_clip_and_one_image_are_single_windows():
  """Clips of the window's length or less, one frame among them, are sampled; the program of a long
  clip has no more network evaluations in it than that of a short one."""
  model = stage()
  params = jax.eval_shape(model.init, jax.random.key(0))

  def program(frames):
    batch = batch_of(model, frames=frames)
    return jax.make_jaxpr(lambda p: model.sample(p, batch, keys(), SETTINGS)["latents"])(params)

  for frames in (1, 2, 3):
    assert program(frames).out_avals[0].shape == (2, frames, 3, 4, 2)
  assert str(program(200)).count("dot_general") == str(program(2)).count("dot_general") > 0


def test_what_it_cannot_upsample_is_refused():
  """A clip larger than the position tables, or of another shape than asked for, is an error."""
  model = stage()
  params = jax.eval_shape(model.init, jax.random.key(0))
  batch = batch_of(model)

  def sample(settings=SETTINGS, rows=None):
    inputs = batch if rows is None else {**batch, "condition": jnp.zeros((2, 3, rows, 4, 2))}
    return jax.eval_shape(lambda p: model.sample(p, inputs, keys(), settings), params)

  sample(rows=4)
  with pytest.raises(ConfigError, match=r"grid \(3, 3, 2\) exceeds"):
    sample(rows=5)
  with pytest.raises(ConfigError, match="temporal_stride must be 1"):
    stage(latent={"channels": 2})
  with pytest.raises(ConfigError, match="overlap"):
    stage(overlap=3)


def test_noise_on_the_condition_is_the_examples_own():
  """In training it changes the loss, and depends on the example's key alone; sampling has none."""
  plain, noisy = stage(), stage(condition_noise=0.5)
  params, batch = scattered(plain), batch_of(plain)
  loss = {m: jax.jit(m.loss)(params, batch, keys())[0] for m in (plain, noisy)}
  assert loss[plain] != loss[noisy]
  alone = []
  for i in range(2):
    row = {name: array[i : i + 1] for name, array in batch.items()}
    alone.append(jax.jit(noisy.loss)(params, row, keys()[i : i + 1])[0])
  np.testing.assert_allclose(loss[noisy], np.mean(alone), rtol=1e-5)


def test_the_condition_is_an_input_of_sampling():
  """What a sample is made from holds the condition and the text, not the latents."""
  assert set(input_spec(stage(), 2)) == {"condition", "ul2", "ul2_mask", "fps"}


def test_flops_are_those_of_the_padded_grid():
  """Those of the text-to-video network over the grid with the added row, and the projection of the
  condition."""
  model = stage()
  more = stage(buckets=[{"name": "video", "frames": 3, "height": 32, "width": 32}])
  assert model.flops(model.batch_spec(2)) == more.flops(more.batch_spec(2))
  base = make_stage("movie_gen/t2v", {k: v for k, v in FIELDS.items() if k != "overlap"} | {
    "buckets": [{"name": "video", "frames": 3, "height": 32, "width": 32}]
  })  # fmt: skip
  extra = more.flops(more.batch_spec(2)) - base.flops(base.batch_spec(2))
  assert extra == 2 * 2 * (3 * 2 * 2) * (4 * 2) * 16  # 2 per multiply-add, b, tokens, values, width
