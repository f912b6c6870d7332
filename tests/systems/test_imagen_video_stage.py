"""Imagen Video's models as stages: what they are trained on, what they are told, what they make."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidgen.diffusion.gaussian import CosineSchedule
from vidgen.errors import ConfigError
from vidgen.systems import SampleSettings, Stage, make_stage
from vidgen.systems.imagen_video.resolution import Resolution
from vidgen.systems.sampling import input_spec, inputs_of, sample_keys, sampling_flops

NETWORK = {
  "levels": [{"channels": 16, "blocks": 1, "attention": "self"}], "temporal": "attention",
  "embedding": 16, "head_size": 8, "groups": 0, "residual": "plain", "scan": False,
}  # fmt: skip
FIELDS = {
  "network": NETWORK, "dtype": "float32", "remat": "none",
  "text_streams": {"t5": {"width": 6, "length": 3}},
  "buckets": [{"name": "video", "frames": 4, "height": 4, "width": 4}],
}  # fmt: skip
CONVOLUTION = {
  "levels": [{"channels": 16, "blocks": 1, "attention": "cross"}], "temporal": "convolution",
}  # fmt: skip
LARGER = {"network": {**NETWORK, **CONVOLUTION}, "factor": 2}
ROLES: dict[str, Any] = {
  "base": {},
  "temporal": {"role": "temporal", **LARGER},
  "spatial": {"role": "spatial", **LARGER},
}
PACKED = [{"name": "video", "frames": 3, "height": 4, "width": 4, "images": 2}]
PLAIN = {"method": "ddim", "threshold": "none"}


def stage(role="base", **changes) -> Any:
  return make_stage("imagen_video", {**FIELDS, **ROLES[role], **changes})


def settings(steps=2, guidance_scale=1.0, **fields):
  return SampleSettings(steps, guidance_scale, schedule="linear", **fields)


def keys(size=3):
  return sample_keys(7, jnp.arange(size))


def arrays(spec):
  """Random contents; texts have one, two and three words in turn, rows a clip and then images."""
  rng = np.random.default_rng(0)
  made: dict[str, Any] = {}
  for name, array in spec.items():
    made[name] = jnp.asarray(rng.uniform(-1, 1, array.shape), jnp.float32)
  shape = spec["t5_mask"].shape
  texts = np.arange(math.prod(shape[:-1])).reshape(*shape[:-1], 1)
  made["t5_mask"] = jnp.arange(shape[-1]) <= texts % 3
  if "segments" in spec:
    made["segments"] = jnp.tile(jnp.array([0, 0, 0, 1, 2]), (shape[0], 1))
  return made


def batch_of(model, size=3):
  return arrays(model.batch_spec(size))


def inputs_for(model, size=3):
  return arrays(input_spec(model, size))


def scattered(model):
  """Parameters none of which is zero, so that everything acts."""
  rng = np.random.default_rng(3)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return jax.tree.map(lambda p: jnp.asarray(0.3 * rng.standard_normal(p.shape), p.dtype), shapes)


class Watched:
  """In place of a network: gives `gain` times z, and keeps what it was told."""

  def __init__(self, gain=0.0):
    self.gain, self.told = gain, []

  def apply(self, variables, z, level, **conditions):
    self.told.append({"z": z, "level": level, **conditions})
    return self.gain * z


def watched(role="base", *, gain=0.0, **changes):
  model = stage(role, **changes)
  model.network = Watched(gain)
  return model


NOTHING: dict[str, Any] = {"network": {}}


def noise_of(role="base", rng=None, **changes):
  """The noise that a stage's samples are made from: with v = -z at no signal, the data are z."""
  model = watched(role, gain=-1.0, zero_terminal=True, sampler=PLAIN, **changes)
  made = model.sample(NOTHING, inputs_for(model), keys() if rng is None else rng, settings(steps=1))
  return np.asarray(made["latents"])


# Resolution


def test_v9_the_condition_of_frames_is_every_second_one_twice():
  """Frames 2k and 2k + 1 of the enlarged clip are frame k of the small one, frame 2k of the whole;
  the sides are as they were."""
  video = jax.random.normal(jax.random.key(0), (2, 6, 3, 5, 3))
  twice = Resolution("temporal", 2)
  small = twice.small(video)
  enlarged = twice.enlarged(small)
  assert small.shape == (2, 3, 3, 5, 3) and enlarged.shape == video.shape
  for k in range(3):
    np.testing.assert_array_equal(small[:, k], video[:, 2 * k])
    np.testing.assert_array_equal(enlarged[:, 2 * k], small[:, k])
    np.testing.assert_array_equal(enlarged[:, 2 * k + 1], small[:, k])


def test_the_condition_of_sides_is_the_mean_of_blocks_enlarged_bilinearly():
  video = np.random.default_rng(0).uniform(-1, 1, (1, 2, 4, 8, 3)).astype(np.float32)
  small = Resolution("spatial", 4).small(jnp.asarray(video))
  assert small.shape == (1, 2, 1, 2, 3)
  np.testing.assert_allclose(small[0, 1, 0, 1], video[0, 1, :, 4:].mean((0, 1)), atol=1e-6)
  row = jnp.array([0.0, 4.0]).reshape(1, 1, 1, 2, 1)
  enlarged = Resolution("spatial", 2).enlarged(row)
  assert enlarged.shape == (1, 1, 2, 4, 1)
  np.testing.assert_allclose(enlarged[0, 0, :, :, 0], [[0, 1, 3, 4]] * 2, atol=1e-6)


def test_small_clips_of_small_clips_are_those_of_the_whole():
  """So what a model of the cascade makes has the same kernel as what the next was trained on."""
  video = jax.random.normal(jax.random.key(0), (1, 4, 8, 8, 3))
  twice, frames = Resolution("spatial", 2), Resolution("temporal", 2)
  want = Resolution("spatial", 4).small(video)
  np.testing.assert_allclose(twice.small(twice.small(video)), want, atol=1e-6)
  np.testing.assert_array_equal(
    frames.small(frames.small(video)), Resolution("temporal", 4).small(video)
  )
  np.testing.assert_array_equal(frames.small(twice.small(video)), twice.small(frames.small(video)))


@pytest.mark.parametrize("shape", [(3, 4, 4), (4, 5, 4), (4, 4, 6)])
def test_only_multiples_have_a_small_clip_and_it_leads_back(shape):
  role, factor = ("temporal", 2) if shape[0] == 3 else ("spatial", 4)
  resolution = Resolution(role, factor)
  with pytest.raises(ValueError, match=rf"{shape[0]} x {shape[1]} x {shape[2]}.*not {factor} tim"):
    resolution.small_shape(*shape)
  assert resolution.large_shape(*resolution.small_shape(4, 8, 12)) == (4, 8, 12)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"role": "spatial"}, "'spatial' cannot have a factor of 1"),
    ({"factor": 2}, "'base' cannot have a factor of 2"),
    ({"role": "temporal", "factor": 3}, "not 3 times a smaller clip"),
    ({"role": "spatial", "factor": 2, "whole": (4, 6, 5)}, "4 x 6 x 5 .* is not 2 times"),
    ({"network": {"levels": [{"channels": 32, "blocks": 1, "stride": 2}], "patch": 4}}, "of 8"),
    ({"network": {"levels": [{"channels": 48, "blocks": 1}]}}, "32 groups do not divide 48"),
    (
      {"network": {"levels": [{"channels": 32, "blocks": 1, "attention": "self"}]}},
      "heads of 64 do not divide 32",
    ),
    ({"sampler": {"method": "ddim", "langevin": 0.1}}, "langevin is of the method 'ancestral'"),
    ({"schedule": "linear", "logsnr_high": 10.0}, "of the cosine schedule"),
    ({"role": "temporal", "factor": 1}, "cannot have a factor of 1"),
    ({"buckets": [{**PACKED[0], "captions": 2}]}, "2 captions are too few"),
    ({"role": "temporal", "factor": 3, "buckets": PACKED}, "images have no frames"),
    ({"text_encoder": {}}, "exactly one of"),
    ({"text_streams": {n: {"width": 6, "length": 3} for n in "ab"}}, "one text stream"),
    ({"logsnr_low": 20.0}, "logsnr_low must be less"),
    ({"sampler": {"gamma": 1.5}}, r"must lie in \[0, 1\]"),
    ({"sampler": {"augmentation_snr": 0.0}}, "augmentation_snr positive"),
  ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
  with pytest.raises(ConfigError, match=message):
    make_stage("imagen_video", {**FIELDS, **fields})


# Loss


def test_v10_the_loss_of_a_fresh_network():
  """It answers zero: the squared error of v is 0.5 + 0.5 E[x^2] where the angle is uniform, and in
  each quarter of time what its own angles make of it; the four are parts of the loss."""
  model = stage()
  assert isinstance(model, Stage)
  params, batch = jax.jit(model.init)(jax.random.key(0)), batch_of(model, 2048)
  loss, metrics = jax.jit(model.loss)(params, batch, keys(2048))
  square = float(np.mean(np.square(batch["video"])))
  # the standard error of the loss is 0.005, of its parts up to 0.04
  np.testing.assert_allclose(loss, (1 + square) / 2, atol=0.015)
  parts = [float(metrics[f"loss_time_{i}"]) for i in range(4)]
  ends = np.sin(np.pi * np.arange(5) / 4)
  wanted = (1 + square) / 2 + (1 - square) / 2 * np.diff(ends) * 4 / np.pi
  np.testing.assert_allclose(parts, wanted, atol=0.1)
  np.testing.assert_allclose(np.mean(parts), loss, rtol=1e-5)


@pytest.mark.parametrize("kind", ["v", "x", "eps", "truncated_snr"])
def test_the_loss_is_weighted_to_be_of_its_kind(kind):
  """With an answer of zero each kind's loss is an integral over the angle, known in closed form."""
  model = watched(loss=kind)
  batch = batch_of(model, 2048)
  loss, _ = model.loss(NOTHING, batch, keys(2048))
  square = float(np.mean(np.square(batch["video"])))
  wanted = {
    "v": (1 + square) / 2,
    "x": (1 + 3 * square) / 8,
    "eps": (3 + square) / 8,
    "truncated_snr": (1 + square) * (0.25 + 0.5 / np.pi),
  }
  np.testing.assert_allclose(loss, wanted[kind], atol=0.015)


@pytest.mark.parametrize("role", ["base", "spatial"])
def test_an_example_depends_on_its_own_key_alone(role):
  """The loss of a batch is the mean of its examples' alone, in any order of them."""
  model = stage(role, buckets=PACKED)
  params, batch = scattered(model), batch_of(model)
  loss = jax.jit(lambda *given: model.loss(*given)[0])
  whole = loss(params, batch, keys())
  rows = [({n: x[i : i + 1] for n, x in batch.items()}, keys()[i : i + 1]) for i in range(3)]
  np.testing.assert_allclose(whole, np.mean([loss(params, *row) for row in rows]), rtol=1e-5)
  order = np.array([2, 0, 1])
  moved = {n: x[order] for n, x in batch.items()}
  np.testing.assert_allclose(loss(params, moved, keys()[order]), whole, rtol=1e-5)
  assert abs(loss(params, moved, keys()) - whole) > 1e-3


def test_every_segment_has_a_noise_level_of_its_own():
  """The frames of a clip share one, an image has its own; so has what is generated from."""
  model = watched("spatial", buckets=PACKED)
  model.loss(NOTHING, batch_of(model), keys())
  (told,) = model.network.told
  for name in ("level", "low_level"):
    level = np.asarray(told[name])
    assert level.shape == (3, 5) and len(np.unique(level)) == 3 * 3, name
    np.testing.assert_array_equal(level[:, :1], level[:, 1:2])
    np.testing.assert_array_equal(level[:, :1], level[:, 2:3])
  assert not np.intersect1d(told["level"], told["low_level"]).size


@pytest.mark.parametrize("role", ["temporal", "spatial"])
def test_c12_the_condition_is_made_small_enlarged_and_then_noised(role):
  """With hardly any noise it is the enlarged clip; at any level what is above that is unit noise
  of the told share, other noise than that of the clip itself, and another draw for every key."""
  batch = batch_of(stage(role))
  resolution = Resolution(role, 2)
  enlarged = np.asarray(resolution.enlarged(resolution.small(batch["video"])))
  quiet = watched(role, logsnr_low=19.0)
  quiet.loss(NOTHING, batch, keys())
  np.testing.assert_allclose(quiet.network.told[0]["low"], enlarged, atol=1e-3)

  model = watched(role)
  model.loss(NOTHING, batch, keys())
  (told,) = model.network.told

  def noise(z, x, level):
    angle = np.asarray(level)[:, :, None, None, None] * np.pi / 2
    return (np.asarray(z) - np.cos(angle) * np.asarray(x)) / np.sin(angle)

  low = noise(told["low"], enlarged, told["low_level"])
  own = noise(told["z"], batch["video"], told["level"])
  drawn = np.concatenate([low, own]).reshape(6, -1)  # 192 numbers each
  np.testing.assert_allclose(np.corrcoef(drawn), np.eye(6), atol=0.3)
  np.testing.assert_allclose(drawn.std(axis=1), 1, atol=0.2)


@pytest.mark.parametrize("role", ["base", "spatial"])
def test_an_image_is_answered_from_its_own_pixels_alone(role):
  """In a packed row the gradient of a frame's answer with respect to the pixels of another segment
  is zero, to the last digit; within the clip it is not."""
  model = stage(role, buckets=PACKED)
  params, batch, network = scattered(model), batch_of(model, 1), model.network

  def answers(video):
    kept = []

    class Kept:
      def apply(self, *given, **conditions):
        kept.append(network.apply(*given, **conditions))
        return kept[0]

    model.network = Kept()
    model.loss(params, {**batch, "video": video}, keys(1))
    return jnp.square(kept[0][0]).sum((1, 2, 3))

  slopes = jax.jit(jax.jacrev(answers))(batch["video"])[:, 0]
  reached = np.abs(slopes).sum((2, 3, 4)) > 0
  together = np.zeros((5, 5), bool)
  together[:3, :3] = together[3, 3] = together[4, 4] = True
  np.testing.assert_array_equal(reached, together)


# Sampling


def test_a_sample_follows_from_its_key_its_caption_and_its_small_clip():
  """And from nothing else: not from the batch it is in, nor from its place there."""
  model = stage("spatial")
  params, inputs = scattered(model), inputs_for(model)
  sample = jax.jit(lambda *given: model.sample(*given, settings(guidance_scale=2.0))["latents"])
  whole = np.asarray(sample(params, inputs, keys()))
  row = {n: x[2:] for n, x in inputs.items()}
  np.testing.assert_allclose(sample(params, row, keys()[2:]), whole[2:], atol=1e-5)

  def changed(**given):
    rng = given.pop("rng", keys())
    return np.abs(sample(params, {**inputs, **given}, rng) - whole).max((1, 2, 3, 4)) > 1e-4

  one = jnp.array([0, 1, 0])
  only = [False, True, False]
  assert list(changed(t5=inputs["t5"] * (1 - 2 * one[:, None, None]))) == only
  assert list(changed(low=inputs["low"] * (1 - one[:, None, None, None, None]))) == only
  assert list(changed(rng=keys(4)[np.array([0, 3, 2])])) == only
  assert not changed(fps=inputs["fps"] + 1).any()  # each is trained at one rate


def test_models_of_a_cascade_draw_noise_of_their_own():
  """Given the same keys, no two of them, and no two samples, start from the same noise; the noise
  of the small clip is another again, at the ratio that the config says."""
  model = watched("spatial", sampler={"augmentation_snr": 4.0})
  inputs = inputs_for(model)
  model.sample(NOTHING, inputs, keys(), settings())
  told = model.network.told[0]
  alpha, sigma = 0.8**0.5, 0.2**0.5
  enlarged = Resolution("spatial", 2).enlarged(inputs["low"])
  low = (np.asarray(told["low"]) - alpha * np.asarray(enlarged)) / sigma
  np.testing.assert_allclose(told["low_level"], 2 / np.pi * np.arctan(0.5), rtol=1e-5)
  drawn = np.concatenate([low, *(noise_of(role) for role in ROLES)]).reshape(12, -1)
  np.testing.assert_allclose(np.corrcoef(drawn), np.eye(12), atol=0.35)  # of 192 numbers each
  np.testing.assert_allclose(drawn.std(axis=1), 1, atol=0.2)
  np.testing.assert_array_equal(noise_of("spatial"), noise_of("spatial", rng=keys(4)[:3]))


@pytest.fixture(scope="module")
def by_hand():
  """Two DDIM steps of the base model, each with a scale of its own, written out in numpy."""
  model = stage()
  params, inputs = scattered(model), inputs_for(model)

  @jax.jit
  def predict(z, level, mask):
    given = {"text": inputs["t5"][:, None], "text_mask": mask[:, None]}
    levels = jnp.full(z.shape[:2], level)
    return model.network.apply({"params": params["network"]}, z, levels, **given)

  def made(scales, percentile):
    schedule, z = CosineSchedule(), noise_of()
    for i, scale in enumerate(scales):
      now, then = (schedule.logsnr(jnp.float32(1 - j / len(scales))) for j in (i, i + 1))
      angle = float(now.angle)
      v = np.asarray(predict(z, angle, inputs["t5_mask"]))
      if scale != 1:
        null = np.asarray(predict(z, angle, jnp.zeros_like(inputs["t5_mask"])))
        v = null + scale * (v - null)
      x = float(now.alpha()) * z - float(now.sigma()) * v
      if percentile is not None:
        s = np.quantile(np.abs(x), percentile, axis=(1, 2, 3, 4), keepdims=True)
        x = np.clip(x, -np.maximum(s, 1), np.maximum(s, 1)) / np.maximum(s, 1)
      noise = (z - float(now.alpha()) * x) / float(now.sigma())
      z = float(then.alpha()) * x + float(then.sigma()) * noise
    return x

  return params, inputs, made


@pytest.mark.parametrize(
  ("sampler", "scale", "scales", "percentile"),
  [
    (PLAIN, 1.0, (1.0, 1.0), None),
    (
      {"method": "ddim", "guidance": "oscillating", "low_scale": 0.5, "first": 0.5}
      | {"threshold": "dynamic", "percentile": 0.9},
      3.0,
      (3.0, 0.5),
      0.9,
    ),
  ],
  ids=["conditional", "oscillating"],
)
def test_samples_are_those_of_the_network_step_by_step(by_hand, sampler, scale, scales, percentile):
  """At a constant scale of 1 that is the pass with the caption alone; oscillating scales reach
  their steps, are applied to v of the same z, and the threshold comes after them."""
  params, inputs, made = by_hand
  model = stage(sampler=sampler)
  sample = jax.jit(lambda *given: model.sample(*given, settings(guidance_scale=scale)))
  found, want = sample(params, inputs, keys()), made(scales, percentile)
  tolerance = 1e-4 * np.abs(want).max()
  np.testing.assert_allclose(found["latents"], want, rtol=1e-4, atol=tolerance)
  np.testing.assert_allclose(found["video"], np.clip(want, -1, 1), rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("threshold", ["none", "static", "dynamic"])
def test_the_threshold_is_that_of_the_config(threshold):
  """With data of three times the noise: left, clipped to [-1, 1], or brought there by a quantile of
  the clip's own."""
  model = watched(
    gain=-3.0, zero_terminal=True, sampler={**PLAIN, "threshold": threshold, "percentile": 0.8}
  )
  made = model.sample(NOTHING, inputs_for(model), keys(), settings(steps=1))["latents"]
  x = 3 * noise_of()
  if threshold == "static":
    x = np.clip(x, -1, 1)
  elif threshold == "dynamic":
    most = np.quantile(np.abs(x), 0.8, axis=(1, 2, 3, 4), keepdims=True)
    x = np.clip(x, -most, most) / most
  np.testing.assert_allclose(made, x, rtol=1e-5, atol=1e-5)


def shape_made(model, low, **fields):
  inputs = {n: x.struct() for n, x in input_spec(model, 2).items()}
  if low is not None:
    inputs["low"] = jax.ShapeDtypeStruct((2, *low, 3), jnp.float32)
  model.network = Watched()
  rng = jax.eval_shape(lambda: keys(2))
  return jax.eval_shape(
    lambda inputs, rng: model.sample(NOTHING, inputs, rng, settings(**fields))["video"], inputs, rng
  ).shape


@pytest.mark.parametrize(
  ("role", "low", "fields", "made"),
  [
    ("base", None, {}, (4, 4, 4)),
    ("base", None, {"frames": 7, "height": 6}, (7, 6, 4)),
    ("temporal", (2, 4, 4), {}, (4, 4, 4)),
    ("temporal", (3, 5, 6), {}, (6, 5, 6)),
    ("spatial", (7, 3, 2), {"height": 6}, (7, 6, 4)),
  ],
)
def test_a_sample_is_as_large_as_asked_or_as_its_small_clip_makes_it(role, low, fields, made):
  assert shape_made(stage(role), low, **fields) == (2, *made, 3)


@pytest.mark.parametrize(
  ("role", "low", "fields", "message"),
  [
    ("base", None, {"height": 5}, "samples of 4 x 5 x 4 cannot be made: .*multiples of 2"),
    ("temporal", (2, 4, 4), {"frames": 5}, "samples of 5 x 4 x 4 cannot be made: .*not 2 times"),
    ("temporal", (2, 4, 4), {"frames": 6}, r"ask for \(6, None, None\).*2 x 4 x 4 becomes 4 x 4"),
    ("spatial", (4, 3, 2), {}, "samples of 4 x 6 x 4 cannot be made: .*multiples of 4"),
  ],
)
def test_what_cannot_be_made_is_refused(role, low, fields, message):
  level = {"channels": 16, "blocks": 1, "stride": 4 if role == "spatial" else 2}
  model = stage(role, network={**NETWORK, "levels": [level]})
  with pytest.raises(ConfigError, match=message):
    shape_made(model, low, **fields)


@pytest.mark.parametrize(
  ("sampler", "guidance_scale", "evaluations"),
  [
    ({}, 1.0, 2),
    ({}, 3.0, 2 * 2),
    ({"guidance": "oscillating"}, 1.0, 2 * 2),
    ({"method": "heun"}, 3.0, 2 * 2 * 2),
    ({"langevin": 0.1}, 1.0, 2 * 2),
  ],
)
def test_the_work_of_sampling_is_that_of_its_evaluations(sampler, guidance_scale, evaluations):
  """Two a step with guidance, and twice as many where a step takes two."""
  model = stage(sampler=sampler)
  asked = settings(guidance_scale=guidance_scale)
  assert model.evaluations(asked) == evaluations
  flops = sampling_flops(model, asked, batch_size=3)
  assert flops == evaluations * model.flops(model.batch_spec(3))


def test_a_student_is_evaluated_once_a_step_and_told_the_scale():
  model = stage("spatial", distillation={"start": 4, "end": 2})
  asked = settings(guidance_scale=3.0)
  flops = sampling_flops(model, asked, batch_size=3)
  assert flops == 2 * model.flops(model.batch_spec(3))
  inputs = inputs_for(model)
  model.network = Watched()
  model.sample(NOTHING, inputs, keys(), asked)
  (told,) = model.network.told
  assert told["guidance"].shape == (3,)


def test_the_inputs_of_a_batchs_clips():
  """Of a packed row the clip's own caption and small clip; they are what sampling eats."""
  model = stage("spatial", buckets=PACKED)
  batch = batch_of(model)
  made = inputs_of(model, batch)
  assert {n: x.shape for n, x in made.items()} == {
    n: x.shape for n, x in input_spec(model, 3).items()
  }
  np.testing.assert_array_equal(made["t5"], batch["t5"][:, 0])
  np.testing.assert_array_equal(made["t5_mask"], batch["t5_mask"][:, 0])
  blocks = np.asarray(batch["video"][:, :3]).reshape(3, 3, 2, 2, 2, 2, 3)
  np.testing.assert_allclose(made["low"], blocks.mean((3, 5)), atol=1e-6)
