"""The autoencoder's losses: closed forms, who sees whose gradient, and that they teach."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vidgen.config import build
from vidgen.dist.flops import flops_of
from vidgen.errors import ConfigError
from vidgen.models.lpips import lpips_flops
from vidgen.systems import SampleSettings, make_stage
from vidgen.systems.movie_gen.tae import DiscriminatorConfig, TAEConfig, TAEStage, outlier_penalty
from vidgen.systems.shapes import BatchShape
from vidgen.systems.stage import step_flops
from vidgen.train.experiment import OptimizerConfig, TrainConfig
from vidgen.train.optimizer import make_optimizers

SETTINGS = SampleSettings()  # not read
TINY = TAEConfig(
  channels=(8, 16, 16, 16),
  blocks=1,
  latent_channels=4,
  groups=4,
  buckets=(BatchShape("video", frames=8, height=16, width=16),
           BatchShape("image", frames=1, height=16, width=16)),
  perceptual_weight=0.0,
  discriminator=DiscriminatorConfig(channels=8, layers=2, groups=4),
  gan_weight=0.1,
  dtype="float32",
  remat="none",
)  # fmt: skip


@functools.cache
def stage_of(**fields):
  return TAEStage(dataclasses.replace(TINY, **fields))


@functools.cache
def params_of(stage):
  return jax.jit(stage.init)(jax.random.key(0))


def batch(bucket="video", count=2):
  spec = stage_of().batch_spec(count, bucket)["video"]
  rng = np.random.default_rng(0)
  return {"video": jnp.asarray(rng.uniform(-1, 1, spec.shape), jnp.float32)}


def gradients(stage, params, keys, part):
  def loss(p):
    return stage.loss({**params, part: p}, batch(), keys)[0]

  return jax.grad(loss)(params[part])


def test_the_outlier_penalty_has_its_closed_form():
  """One position of 64 with 1 in all 16 channels (spec: 0.0382697639); and none where all agree."""
  latents = jnp.zeros((1, 1, 8, 8, 16)).at[0, 0, 3, 4].set(1.0)
  n, c = 64, 16
  apart, spread = 1 - 1 / n, (1 / n * (1 - 1 / n)) ** 0.5
  expected = c**0.5 * (apart - 3 * spread) / n
  assert expected == pytest.approx(0.0382697639, rel=1e-8)
  assert outlier_penalty(latents, radius=3.0)[0, 0] == pytest.approx(expected, rel=1e-5)
  constant = jnp.full((1, 2, 8, 8, 16), 0.3)
  value, gradient = jax.value_and_grad(lambda x: outlier_penalty(x, radius=3.0).sum())(constant)
  assert value == 0 and jnp.isfinite(gradient).all()


def test_the_penalty_knows_one_frame_only():
  """Two constant frames that differ: over both together the vectors would lie apart."""
  frames = jnp.stack([jnp.zeros((8, 8, 4)), jnp.ones((8, 8, 4))])[None]
  np.testing.assert_array_equal(outlier_penalty(frames, radius=0.5), np.zeros((1, 2)))


def test_the_penalty_weighs_as_with_a_reconstruction_summed_over_a_frame():
  """Of 16 x 16 pixels in three colours, for which ours is the mean."""
  fields = {"outlier_radius": 0.5, "discriminator": None, "gan_weight": 0.0, "kl_weight": 0.0}
  stage = stage_of(reconstruction_weight=0.0, outlier_weight=1e5, **fields)
  keys = jax.random.split(jax.random.key(1), 2)
  loss, metrics = jax.device_get(jax.jit(stage.loss)(params_of(stage_of()), batch("image"), keys))
  assert metrics["outliers"] > 1e-3
  assert loss == pytest.approx(1e5 / (16 * 16 * 3) * metrics["outliers"], rel=1e-5)


def test_the_penalty_is_of_vectors_and_not_of_single_channels():
  """Rotating the channels leaves lengths, and therefore the penalty, as they are."""
  rng = np.random.default_rng(0)
  latents = rng.standard_normal((1, 1, 8, 8, 4)).astype(np.float32)
  latents[0, 0, 2, 2] *= 20
  turn, _ = np.linalg.qr(rng.standard_normal((4, 4)))
  plain, turned = (outlier_penalty(jnp.asarray(x), radius=3.0) for x in (latents, latents @ turn))
  assert plain[0, 0] > 0.01
  np.testing.assert_allclose(plain, turned, rtol=1e-4)


def test_neither_network_sees_the_loss_of_the_other():
  """With the other's loss left out, or scaled, the gradient of each stays what it was."""
  keys = jax.random.split(jax.random.key(1), 2)
  stage = stage_of()
  params = params_of(stage)
  whole = jax.jit(functools.partial(gradients, stage, params, part="discriminator"))(keys)
  blind = stage_of(gan_weight=0.0)
  alone = jax.jit(functools.partial(gradients, blind, params, part="discriminator"))(keys)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), whole, alone)
  assert optax.tree.norm(whole) > 1e-3

  def generator(p, weight):  # the autoencoder's own losses, by hand
    chosen = stage_of(gan_weight=weight)
    loss, metrics = chosen.loss({**params, "autoencoder": p}, batch(), keys)
    return loss - metrics["discriminator"] if weight else loss

  ours = jax.jit(functools.partial(gradients, stage, params, part="autoencoder"))(keys)
  hand = jax.jit(jax.grad(functools.partial(generator, weight=0.1)))(params["autoencoder"])
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), ours, hand)
  without = jax.jit(functools.partial(gradients, blind, params, part="autoencoder"))(keys)
  apart = optax.tree.norm(jax.tree.map(jnp.subtract, ours, without))
  assert apart > 1e-4  # the adversarial loss does reach it


def test_a_posterior_that_is_the_prior_costs_nothing_and_another_its_nats():
  from vidgen.models.tae import Posterior
  from vidgen.systems.movie_gen.tae import _kl

  zero = jnp.zeros((1, 1, 2, 2, 4))
  assert _kl(Posterior(zero, zero))[0] == 0
  assert _kl(Posterior(zero + 1, zero))[0] == pytest.approx(16 / 2)
  assert _kl(Posterior(zero, zero + jnp.log(2.0)))[0] == pytest.approx(16 / 2 * (1 - np.log(2)))


@pytest.mark.parametrize("bucket", ["video", "image"])
def test_a_loss_depends_on_its_example_and_its_key_alone(bucket):
  stage = stage_of()
  params, keys = params_of(stage), jax.random.split(jax.random.key(2), 2)
  loss = jax.jit(stage.loss)
  both = batch(bucket)
  parts = [loss(params, {"video": both["video"][i : i + 1]}, keys[i : i + 1])[0] for i in range(2)]
  assert loss(params, both, keys)[0] == pytest.approx(float(sum(parts)) / 2, rel=1e-5)
  assert stage.sample(params, both, keys, SETTINGS)["video"].shape == both["video"].shape


def test_a_reconstruction_has_the_frames_of_its_clip():
  stage = stage_of()
  params = params_of(stage)
  for frames in (1, 3, 8, 9):
    video = jnp.tile(batch()["video"][:, :1], (1, frames, 1, 1, 1))
    made = stage.sample(params, {"video": video}, jax.random.split(jax.random.key(0), 2), SETTINGS)
    assert made["latents"].shape == (2, -(-frames // 8), 2, 2, 4)
    assert made["video"].shape == video.shape


def test_a_few_steps_with_an_optimizer_for_each_network_lower_the_reconstruction():
  stage = stage_of(kl_weight=1e-8)
  fast = OptimizerConfig(learning_rate=3e-3, warmup_steps=0)
  config = TrainConfig(steps=40, batch_size=2, optimizer=fast, optimizers={"^discriminator/": fast})
  params = params_of(stage)
  tx = make_optimizers(config, params=params, axes=stage.logical_axes(), still=stage.frozen)

  @jax.jit
  def step(params, state, i):
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), i), 2)
    (_, metrics), gradient = jax.value_and_grad(stage.loss, has_aux=True)(params, data, keys)
    updates, state = tx.update(gradient, state, params, step=i)
    return optax.apply_updates(params, updates), state, metrics

  data = {"video": jnp.tile(batch()["video"].mean((2, 3), keepdims=True), (1, 1, 16, 16, 1))}
  state, found = tx.init(params), []
  for i in range(40):
    params, state, metrics = step(params, state, jnp.int32(i))
    found.append({k: float(v) for k, v in metrics.items()})
  assert found[-1]["reconstruction"] < 0.5 * found[0]["reconstruction"]
  assert all(np.isfinite(list(m.values())).all() for m in found)


@pytest.mark.parametrize("over", ["frame", "clip"])
def test_the_frames_that_are_judged_hang_on_the_key_and_are_the_same_of_both_videos(over):
  """Any frames for a network that sees each by itself, successive ones for one that sees clips."""
  discriminator = dataclasses.replace(TINY.discriminator, over=over)
  stage = stage_of(judged_frames=3, discriminator=discriminator)
  numbers = jnp.broadcast_to(jnp.arange(8.0)[:, None, None, None], (64, 8, 1, 1, 1))
  keys = jax.random.split(jax.random.key(0), 64)
  one, other = stage._judged(keys, numbers, numbers + 100)
  chosen = np.asarray(one[..., 0, 0, 0])
  np.testing.assert_array_equal(other - one, np.full_like(one, 100))
  assert all(len(set(row)) == 3 for row in chosen) and set(chosen.flat) == set(range(8))
  successive = (np.diff(chosen, axis=1) == 1).all(axis=1)
  assert successive.all() if over == "clip" else not successive.all()
  assert stage._judged(keys, numbers[:, :1])[0].shape == (64, 1, 1, 1, 1)  # an image


def perceptual_stage():
  image = BatchShape("image", frames=1, height=32, width=32)
  return stage_of(
    perceptual_weight=1.0, perceptual_net="alex", buckets=(image,), discriminator=None,
    gan_weight=0.0, channels=(4, 4), temporal="none",
  )  # fmt: skip


def test_perceptual_weights_are_required_and_do_not_train():
  """No gradient reaches them, while their loss reaches the autoencoder."""
  stage = perceptual_stage()
  assert stage.required == ("perceptual",) and stage.frozen == ("^perceptual/",)
  assert stage_of().required == ()
  rng = np.random.default_rng(0)
  video = jnp.asarray(rng.uniform(-1, 1, (1, 1, 32, 32, 3)), jnp.float32)
  keys = jax.random.split(jax.random.key(1), 1)

  def distance(params):
    return stage.loss(params, {"video": video}, keys)[1]["perceptual"]

  found = jax.jit(jax.grad(distance))(params_of(stage))
  assert optax.tree.norm(found["perceptual"]) == 0 and optax.tree.norm(found["autoencoder"]) > 0


@pytest.mark.parametrize("judged", [None, 4])
def test_the_flops_are_those_counted_but_for_the_padding(judged):
  """Of all three networks, at sizes where small matrices over time are no banded ones."""
  clip = BatchShape("video", frames=16, height=128, width=128)
  stage = TAEStage(
    TAEConfig(channels=(64, 128), groups=8, latent_channels=4, buckets=(clip,),
              judged_frames=judged, dtype="float32", remat="none")
  )  # fmt: skip
  spec = stage.batch_spec(2)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
  params = jax.eval_shape(stage.init, jax.random.key(0))
  arrays = {name: array.struct() for name, array in spec.items()}
  counted = flops_of(jax.make_jaxpr(stage.loss)(params, arrays, keys)).total
  assert 0.97 < counted / stage.flops(spec) <= 1.0


@pytest.mark.parametrize("gan_weight", [0.0, 0.1])
def test_the_flops_of_a_step_are_those_counted_but_for_the_padding(gan_weight):
  """What is counted has LPIPS's backward pass for both halves, and no gradient of the video."""
  image = BatchShape("image", frames=1, height=64, width=64)
  stage = TAEStage(
    TAEConfig(channels=(64, 128), groups=8, latent_channels=4, buckets=(image,), temporal="none",
              gan_weight=gan_weight, dtype="float32", remat="none")
  )  # fmt: skip
  spec = stage.batch_spec(2, "image")
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
  params = jax.eval_shape(stage.init, jax.random.key(0))
  arrays = {name: array.struct() for name, array in spec.items()}

  def loss(moving, params, batch, keys):
    return stage.loss(params | moving, batch, keys)[0]

  moving = {name: part for name, part in params.items() if name != "perceptual"}
  counted = flops_of(jax.make_jaxpr(jax.grad(loss))(moving, params, arrays, keys)).total
  again = 0.5 * lpips_flops("vgg", height=64, width=64) * 2
  assert 0.95 < (counted - again) / step_flops(stage, spec) <= 1.0


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"groups": 5}, "groups 5"),
    ({"gan_weight": 1.0, "discriminator": None}, "needs a discriminator"),
    ({"kl_weight": -1.0}, "kl_weight"),
    ({"buckets": [{"name": "video", "frames": 8, "height": 20, "width": 16}]}, "multiples of 8"),
    ({"judged_frames": 0}, "judged_frames"),
  ],
)
def test_fields_that_cannot_be_are_named(fields, message):
  with pytest.raises(ConfigError, match=message):
    build(TAEConfig, {"channels": [8, 8, 8, 8], "groups": 4, "perceptual_weight": 0.0, **fields})


def test_the_stage_is_known_by_its_name():
  fields = {"channels": [8, 8], "groups": 4, "perceptual_weight": 0.0}
  assert isinstance(make_stage("movie_gen/tae", fields), TAEStage)
