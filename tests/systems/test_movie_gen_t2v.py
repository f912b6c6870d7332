"""The Movie Gen Video stage: its loss, its samples, what it eats and what it refuses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vidgen.config import plain
from vidgen.diffusion.flow import FlowTime
from vidgen.errors import ConfigError
from vidgen.systems import SampleSettings, Stage, make_stage, stage_config

FIELDS = {
  "layers": 2,
  "width": 32,
  "heads": 2,
  "mlp_width": 48,
  "patch": (1, 4, 4),
  "max_grid": (4, 4, 4),
  "latent": None,
  "text_streams": {},
  "text_encoder": {"length": 16, "words": 5, "width": 16, "heads": 2, "mlp_width": 24},
  "buckets": [
    {"name": "video", "frames": 4, "height": 8, "width": 8},
    {"name": "image", "frames": 1, "height": 16, "width": 16},
  ],
  "dtype": "float32",
  "remat": "none",
}
LATENT = {
  **FIELDS,
  "patch": (1, 2, 2),
  "text_encoder": None,
  "latent": {"channels": 6, "temporal_stride": 8, "spatial_stride": 8},
  "text_streams": {"ul2": {"width": 10, "length": 4}, "byt5": {"width": 12, "length": 3}},
  "buckets": [{"name": "video", "frames": 12, "height": 48, "width": 32}],
}
CAPTIONS = ["a red circle", "blue", "", "two squares", "moving left", "up", "x", "green cross"]


def stage(fields=FIELDS, **changes):
  return make_stage("movie_gen/t2v", {**fields, **changes})


def tokens(captions, length=16):
  ids = np.zeros((len(captions), length), np.int32)
  for row, caption in zip(ids, captions, strict=True):
    encoded = [*(byte + 3 for byte in caption.encode()), 1][:length]
    row[: len(encoded)] = encoded
  return {"text": jnp.asarray(ids), "text_mask": jnp.asarray(ids != 0)}


def batch_of(model, size=8, bucket="video"):
  """Random contents of the right shapes; every text stream has at least one token."""
  rng = np.random.default_rng(0)
  batch = {}
  for name, spec in model.batch_spec(size, bucket).items():
    if spec.dtype == jnp.bool_:
      batch[name] = np.arange(spec.shape[1]) <= rng.integers(0, spec.shape[1], (size, 1))
    else:
      batch[name] = rng.standard_normal(spec.shape).astype(np.float32)
  if model.config.text_encoder is not None:
    batch |= tokens(CAPTIONS[:size])
  return jax.tree.map(jnp.asarray, batch)


def keys(size=8, seed=7):
  return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(size))


def scattered(model):
  """Parameters none of which is zero, so that everything acts; quicker than compiling `init`."""
  rng = np.random.default_rng(3)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return jax.tree.map(lambda p: jnp.asarray(0.2 * rng.standard_normal(p.shape), p.dtype), shapes)


@pytest.fixture(scope="module")
def pixels():
  model = stage()
  return model, scattered(model)


@pytest.fixture(scope="module")
def latents():
  model = stage(LATENT)
  return model, scattered(model)


@pytest.fixture(params=["pixels", "latents"])
def either(request):
  return request.getfixturevalue(request.param)


def test_it_is_a_stage_with_an_axis_name_for_every_dimension(either):
  model, params = either
  assert isinstance(model, Stage)
  axes = model.logical_axes()
  names = jax.tree.map(lambda p, a: len(a) == p.ndim, params, axes)
  assert all(jax.tree.leaves(names))
  assert axes["network"]["blocks"]["mlp"]["down"]["kernel"] == ("layers", "mlp", "embed")


def test_parameters_are_float32_and_a_function_of_the_key():
  model = stage(dtype="bfloat16")
  init = jax.jit(model.init)
  one, same, other = (init(jax.random.key(seed)) for seed in (0, 0, 1))
  assert {p.dtype for p in jax.tree.leaves(one)} == {jnp.dtype("float32")}
  jax.tree.map(np.testing.assert_array_equal, one, same)
  query = one["network"]["blocks"]["self_attention"]["query"]
  assert (query != other["network"]["blocks"]["self_attention"]["query"]).all()
  assert (query[0] != query[1]).all()  # the layers differ


def test_mgv_7_the_first_loss_is_the_variance_of_data_and_noise():
  model = stage(buckets=[{"name": "video", "frames": 4, "height": 16, "width": 16}])
  batch = batch_of(model)
  loss, _ = jax.jit(model.loss)(jax.jit(model.init)(jax.random.key(0)), batch, keys())
  elements = batch["video"].size
  assert loss == pytest.approx(2.0, abs=5 * math.sqrt(8 / elements))  # std of a chi-square


@pytest.mark.parametrize("bucket", ["video", "image"])
def test_loss_and_gradients_are_finite_in_every_bucket(pixels, bucket):
  model, params = pixels
  batch = batch_of(model, bucket=bucket)
  grad = jax.jit(jax.value_and_grad(model.loss, has_aux=True))
  (loss, metrics), grads = grad(params, batch, keys())
  assert np.isfinite(loss) and loss == metrics["loss"]
  for path, g in jax.tree_util.tree_leaves_with_path(grads):
    assert np.isfinite(g).all() and np.abs(g).max() > 0, jax.tree_util.keystr(path)


def test_an_example_is_noised_by_its_own_key_alone(either):
  """The batch's loss is the mean of the losses of its parts, in whatever company."""
  model, params = either
  batch, loss = batch_of(model), jax.jit(model.loss)
  whole, _ = loss(params, batch, keys())
  order = np.array([5, 2, 7, 0, 1, 6, 3, 4])
  parts = [
    loss(params, jax.tree.map(lambda x: x[part], batch), keys()[part])[0]  # noqa: B023  (used at once)
    for part in (order[:4], order[4:])
  ]
  assert whole == pytest.approx(float(sum(parts) / 2), rel=1e-5)
  assert abs(parts[0] / parts[1] - 1) > 1e-4  # or the above could not fail


def test_losses_by_time_add_up_to_the_loss(pixels):
  model, params = pixels
  _, metrics = jax.jit(model.loss)(params, batch_of(model), keys())
  edges = np.linspace(0, 1, 5)
  total = sum(
    metrics[f"loss_time_{i}"] * model.times.probability(float(edges[i]), float(edges[i + 1]))
    for i in range(4)
  )
  assert total == pytest.approx(float(metrics["loss"]), rel=1e-5)


LONG = [  # the stage reads 16 bytes with the end, and 5 words
  ("a b c d e f", True, True),
  ("a b c d e", False, False),
  ("x" * 14, False, False),
  ("x" * 15, False, True),  # just fits
  ("x" * 40, False, True),
  ("", False, False),
  ("a b c d e f g h i j k", True, True),
  ("red", False, False),
]


def test_captions_that_are_not_read_whole_are_counted(pixels):
  """By words, or as they fill all bytes; in whatever company, as a share of the batch."""
  model, params = pixels
  captions, by_words, counted = zip(*LONG, strict=True)
  batch = batch_of(model) | tokens(captions)
  np.testing.assert_array_equal(model.text_cut(batch), by_words)
  share = jax.jit(lambda *x: model.loss(*x)[1]["text_cut"])  # of the network nothing is compiled
  assert share(params, batch, keys()) == np.mean(counted) == 0.5
  for part in (slice(0, 5), slice(5, 8)):
    few = {name: x[part] for name, x in batch.items()}
    assert share(params, few, keys()[part]) == pytest.approx(np.mean(counted[part]))


def test_embeddings_are_read_whole(latents):
  model, params = latents
  batch = batch_of(model, 3)
  np.testing.assert_array_equal(model.text_cut(batch), [False] * 3)
  _, metrics = jax.eval_shape(model.loss, params, batch, keys(3))
  assert "text_cut" not in metrics


def test_predicting_data_keeps_the_loss_on_the_velocity(pixels, monkeypatch):
  """At a time whose noise is above the floor; below it, the weight stays that of the floor."""
  _, params = pixels
  model = stage(prediction="data", noise_floor=0.2)
  batch = batch_of(model)

  def loss_at(time):
    noise = jax.random.normal(jax.random.key(1), batch["video"].shape)
    times = jnp.full(8, time)
    monkeypatch.setattr(model, "_draw", lambda key, shape: (noise[0], times[0]))
    loss, _ = model.loss(params, batch, keys())
    noise = jnp.broadcast_to(noise[:1], noise.shape)
    x = model.flow.path(noise, batch["video"], FlowTime(times))
    v = model._velocity(params, x, FlowTime(times), model._text(params, batch))
    return loss, jnp.mean((v - model.flow.velocity(noise, batch["video"])) ** 2)

  loss, velocity_loss = loss_at(0.5)
  assert loss == pytest.approx(float(velocity_loss), rel=1e-4)
  loss, velocity_loss = loss_at(0.9)
  assert loss == pytest.approx(float(velocity_loss) * 0.25, rel=1e-3)  # (0.1 / 0.2)^2


SETTINGS = SampleSettings(steps=4, guidance_scale=3.0, linear_steps=8)


def test_samples_have_the_shape_of_the_first_bucket_and_the_range_of_pixels(pixels):
  model, params = pixels
  out = jax.jit(lambda *x: model.sample(*x, SETTINGS))(params, tokens(CAPTIONS), keys())
  assert out["latents"].shape == out["video"].shape == (8, 4, 8, 8, 3)
  np.testing.assert_array_equal(out["video"], np.clip(out["latents"], -1, 1))
  np.testing.assert_array_equal(model.decode(params, out["latents"]), out["video"])


@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_a_sample_depends_on_its_key_and_its_caption_alone(pixels, prediction):
  model, params = stage(prediction=prediction), pixels[1]
  sample = jax.jit(lambda *x: model.sample(*x, SETTINGS)["latents"])
  whole = sample(params, tokens(CAPTIONS), keys())
  part = sample(params, tokens(CAPTIONS[3:5]), keys()[3:5])
  np.testing.assert_allclose(part, whole[3:5], rtol=1e-4, atol=1e-4)
  assert np.abs(whole[3] - sample(params, tokens(CAPTIONS[3:5]), keys(seed=8)[3:5])[0]).max() > 0.1


def test_the_null_caption_is_the_empty_one(pixels):
  """Guidance 0 on any caption is guidance 1 on the empty caption."""
  model, params = pixels

  def sample(captions, scale):
    settings = SampleSettings(steps=2, guidance_scale=scale, linear_steps=8)
    return model.sample(params, tokens(captions), keys(2), settings)["latents"]

  empty = sample(["", ""], 1.0)
  np.testing.assert_array_equal(sample(["a red circle", "up"], 0.0), empty)
  assert np.abs(sample(["a red circle", "up"], 1.0) - empty).max() > 1e-3


def test_null_embeddings_are_none_at_all(latents):
  model, params = latents
  inputs = {name: x for name, x in batch_of(model, 2).items() if name != "latents"}
  settings = SampleSettings(steps=2, guidance_scale=0.0, linear_steps=8)
  other = {name: x if "mask" in name else x + 9 for name, x in inputs.items()}
  a, b = (model.sample(params, i, keys(2), settings)["latents"] for i in (inputs, other))
  assert a.shape == (2, 2, 6, 4, 6)
  np.testing.assert_array_equal(a, b)


def test_latents_of_an_autoencoder_are_not_decoded_here(latents):
  model, params = latents
  settings = SampleSettings(steps=1, guidance_scale=1.0)
  out = model.sample(params, batch_of(model, 1), keys(1), settings)
  assert set(out) == {"latents"}
  with pytest.raises(ConfigError, match="autoencoder"):
    model.decode(params, out["latents"])


def test_the_full_model_eats_latents_and_three_text_streams():
  spec = stage({}).batch_spec(2)
  assert {name: array.shape for name, array in spec.items()} == {
    "latents": (2, 32, 32, 32, 16),
    "ul2": (2, 300, 4096),
    "ul2_mask": (2, 300),
    "byt5": (2, 100, 1472),
    "byt5_mask": (2, 100),
    "metaclip": (2, 256, 1280),
    "metaclip_mask": (2, 256),
    "fps": (2,),
  }
  assert all(array.axes[0] == "batch" for array in spec.values())


def dot_flops(jaxpr):
  """Two for every multiply-add of the dots in a jaxpr, loops counted as often as they run."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      contracted = equation.params["dimension_numbers"][0][0]
      left = equation.invars[0].aval.shape
      total += 2 * math.prod(left[i] for i in contracted) * equation.outvars[0].aval.size
    inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    if inner is not None:
      times = equation.params.get("length", 1)
      total += times * dot_flops(getattr(inner, "jaxpr", inner))
  return total


@pytest.mark.parametrize("changes", [{}, {"pooled_text": True}, {"per_layer_modulation": True}])
def test_flops_of_the_stage_are_all_its_matrix_products(either, changes):
  model = stage(plain(either[0].config), **changes)
  params = jax.eval_shape(model.init, jax.random.key(0))
  spec = model.batch_spec(4)
  batch = {name: array.struct() for name, array in spec.items()}
  rng = jax.eval_shape(lambda: keys(4))
  counted = dot_flops(jax.make_jaxpr(model.loss)(params, batch, rng).jaxpr)
  assert counted == pytest.approx(model.flops(spec), rel=1e-9)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"text_encoder": None}, "exactly one of text_streams and text_encoder"),
    ({"text_streams": {"ul2": {"width": 4, "length": 2}}}, "exactly one"),
    ({"heads": 5}, "not a multiple of heads 5"),
    ({"max_grid": (4, 4, 3)}, "bucket image: grid .* exceeds max_grid"),
    ({"patch": (1, 3, 4)}, "does not divide"),
    ({"buckets": []}, "must not be empty"),
    ({"buckets": FIELDS["buckets"][:1] * 2}, "not unique"),
    ({"time_scale": 0.0}, "must be positive"),
    ({"prediction": "noise"}, "'noise' is not one of velocity, data"),
    ({"remat": "some"}, "'some' is not one of none, full, attention, names, dots, offload"),
    ({"latent": {}, "buckets": [{**FIELDS["buckets"][0], "width": 12}]}, "multiples of 8"),
  ],
)
def test_a_config_that_cannot_work_is_refused(change, message):
  with pytest.raises(ConfigError, match=message):
    stage_config("movie_gen/t2v", {**FIELDS, **change})


def test_an_unknown_bucket_is_refused(pixels):
  with pytest.raises(ConfigError, match="unknown bucket 'audio'; known are video, image"):
    pixels[0].batch_spec(1, "audio")


def test_it_learns_two_clips_by_their_captions():
  """The whole way round: trained by the loss, sampled by Euler, told apart by the text alone."""
  model = stage(
    width=48,
    prediction="data",
    pooled_text=True,
    buckets=[{"name": "video", "frames": 2, "height": 8, "width": 8}],
  )
  clips = jnp.broadcast_to(
    jnp.array([[0.8, -0.8, -0.8], [-0.8, -0.8, 0.8]])[:, None, None, None], (2, 2, 8, 8, 3)
  )
  batch = {"video": jnp.tile(clips, (8, 1, 1, 1, 1)), **tokens(["red", "blue"] * 8)}
  optimizer = optax.adam(3e-3)
  params = jax.jit(model.init)(jax.random.key(0))

  def step(carry, i):
    params, moments = carry
    rng = jax.vmap(lambda j: jax.random.fold_in(jax.random.fold_in(jax.random.key(1), i), j))
    grads, metrics = jax.grad(model.loss, has_aux=True)(params, batch, rng(jnp.arange(16)))
    updates, moments = optimizer.update(grads, moments)
    return (optax.apply_updates(params, updates), moments), metrics["loss"]

  (params, _), losses = jax.jit(
    lambda p: jax.lax.scan(step, (p, optimizer.init(p)), jnp.arange(150))
  )(params)
  assert losses[-20:].mean() < 0.2 * losses[:20].mean()
  settings = SampleSettings(steps=8, guidance_scale=1.0, schedule="linear")
  video = jax.jit(lambda *x: model.sample(*x, settings)["video"])(
    params, tokens(["blue", "red"] * 4), keys()
  )
  np.testing.assert_allclose(
    video.mean(axis=(1, 2, 3)), jnp.tile(clips[::-1, 0, 0, 0], (4, 1)), atol=0.2
  )
