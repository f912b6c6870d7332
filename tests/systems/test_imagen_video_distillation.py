"""Distillation of Imagen Video's models: the rounds, what is asked in each, and who trains."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vidgen.diffusion.gaussian import CosineSchedule, LogSNR, data_from_velocity
from vidgen.diffusion.gaussian_samplers import ddim_step
from vidgen.dist.mesh import make_mesh, on_mesh
from vidgen.errors import ConfigError
from vidgen.systems import SampleSettings, make_stage
from vidgen.systems.imagen_video.distillation import Distillation, Teacher
from vidgen.systems.sampling import input_spec, sample_keys
from vidgen.train.checkpoint import Checkpoints
from vidgen.train.experiment import OptimizerConfig, StartConfig, TrainConfig, resolve
from vidgen.train.optimizer import make_optimizers
from vidgen.train.programs import Programs
from vidgen.train.start import begin
from vidgen.train.state import init_state
from vidgen.train.step import train_step

FIELDS = {
  "network": {
    "levels": [{"channels": 16, "blocks": 1, "attention": "cross"}], "embedding": 16,
    "head_size": 8, "groups": 0, "residual": "plain", "scan": False,
  },
  "text_streams": {}, "sampler": {"method": "ddim", "threshold": "none"},
  "text_encoder": {"length": 8, "words": 3, "width": 8, "heads": 2, "mlp_width": 8},
  "buckets": [{"name": "video", "frames": 2, "height": 4, "width": 4}],
  "dtype": "float32", "remat": "none",
}  # fmt: skip
ROUNDS = {"guidance_steps": 1, "round_steps": 1, "start": 4, "end": 2, "scales": (1.0, 5.0)}
SCHEDULE = CosineSchedule()


def stage(*, student=True, **changes) -> Any:
  distillation = {"distillation": ROUNDS} if student else {}
  return make_stage("imagen_video", {**FIELDS, **distillation, **changes})


def batch_of(model, size=4):
  rng = np.random.default_rng(0)
  spec = model.batch_spec(size)
  return {
    "video": jnp.asarray(rng.uniform(-1, 1, spec["video"].shape), jnp.float32),
    "text": jnp.asarray(rng.integers(97, 123, spec["text"].shape), jnp.int32),
    "text_mask": jnp.ones(spec["text"].shape, bool),
    "fps": jnp.ones(size),
  }


def keys(size=4):
  return sample_keys(7, jnp.arange(size))


def scattered(model):
  """Parameters none of which is zero, so that everything acts."""
  rng = np.random.default_rng(3)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return jax.tree.map(lambda p: jnp.asarray(0.3 * rng.standard_normal(p.shape), p.dtype), shapes)


def test_rounds_end_at_the_number_of_steps_that_is_wanted():
  """128 steps become 8 in four rounds after the first, of which each begins with a restart."""
  found = Distillation(guidance_steps=300, round_steps=100)
  assert (found.rounds, found.restarts, found.train_steps) == (4, (300, 400, 500, 600), 700)
  assert [float(found.student_steps(jnp.float32(i))) for i in range(1, 5)] == [64, 32, 16, 8]
  none = Distillation(guidance_steps=300, start=8, end=8)  # the guidance scale alone
  assert (none.rounds, none.restarts, none.train_steps) == (0, (), 300)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"start": 24, "end": 8}, "start 24 is not end 8 doubled"),
    ({"start": 4, "end": 8}, "start 4 is not end 8 doubled"),
    ({"start": 0, "end": 0}, "doubled"),
    ({"round_steps": 0}, "must be at least 1"),
    ({"scales": (3.0, 1.0)}, "must be a range"),
  ],
)
def test_rounds_that_cannot_be_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    Distillation(**fields)


def test_each_round_begins_with_the_student_as_its_teacher():
  """Just at the steps where a round begins the network is copied; at others the teacher stays.
  Nothing else moves."""
  rounds = Distillation(guidance_steps=2, round_steps=3, start=8, end=2)
  student, teacher = jnp.arange(3.0), jnp.full(3, 9.0)
  params = {"network": {"a": student}, "teacher": {"a": teacher}, "text": teacher, "round": 7.0}
  advance = jax.jit(rounds.advance)
  numbers = []
  for step in range(9):
    made = advance(params, jnp.int32(step))
    copied = step in (0, 2, 5)
    np.testing.assert_array_equal(made["teacher"]["a"], student if copied else teacher)
    np.testing.assert_array_equal(made["network"]["a"], student)
    np.testing.assert_array_equal(made["text"], teacher)
    numbers.append(int(made["round"]))
  assert numbers == [0, 0, 1, 1, 1, 2, 2, 2, 2]
  assert stage(student=False).advance(params, jnp.int32(0)) is params


class Linear:
  """In place of a network: v of numbers; text counts where any is present."""

  def apply(self, variables, z, level, *, text, text_mask, guidance, **conditions):
    p = variables["params"]
    told = text_mask.any((1, 2))
    return p["z"] * z + (p["text"] * told + p["scale"] * guidance)[:, None, None, None, None]


def test_the_first_round_asks_for_the_teacher_with_guidance_at_the_same_z():
  """Where u + s (c - u) is what the student answers, the loss is nothing; it is something for a
  student that takes its scale for the s of (1 + s) c - s u."""
  streams = {"text_encoder": None, "text_streams": {"t5": {"width": 6, "length": 3}}}
  model = stage(**streams)
  shape = model.batch_spec(256)["video"].shape
  batch = {
    "video": jax.random.normal(jax.random.key(1), shape), "t5": jnp.ones((256, 3, 6)),
    "t5_mask": jnp.ones((256, 3), bool), "fps": jnp.ones(256),
  }  # fmt: skip
  model.network = Linear()
  teacher = {"z": 0.4, "text": 2.0, "scale": 0.0}  # c - u is 2
  loss = jax.jit(model.loss)

  def gap(**student):
    params = {"network": student, "teacher": teacher, "round": 0.0}
    found, metrics = loss(jax.tree.map(jnp.float32, params), batch, keys(256))
    assert metrics["round"] == 0 and found <= metrics["gap"]
    return float(metrics["gap"])

  assert gap(z=0.4, text=0.0, scale=2.0) < 1e-10
  assert gap(z=0.4, text=2.0, scale=2.0) > 1
  assert gap(z=0.5, text=0.0, scale=2.0) > 1e-3
  # scales are drawn evenly: E (2 s)^2 of s in [1, 5] is 4 (9 + 4 / 3), with an error of 4%
  np.testing.assert_allclose(gap(z=0.4, text=0.0, scale=0.0), 4 * (9 + 4 / 3), rtol=0.12)


def curved(z, level, scale):
  """A teacher's v that nothing about is linear."""
  angle = level.angle[:, :, None, None, None]
  return jnp.tanh(1.5 * z + angle) - 0.2 * scale[:, None, None, None, None] * jnp.cos(3 * z)


@pytest.mark.parametrize("sampler", ["ddim", "stochastic"])
@pytest.mark.parametrize("number", [1, 2])
def test_one_step_of_the_student_does_two_of_its_teacher(sampler, number):
  """In round 1 a student of 4 steps is asked what its teacher does in two of 8, in round 2 one of 2
  what that of 4 does; the last step ends at the data. A stochastic one jumps over two levels."""
  rounds = Distillation(start=8, end=2, scales=(1.0, 3.0), sampler=sampler)
  steps = 8 >> number
  time = (jnp.arange(2 * steps).reshape(steps, 2) + 0.5) / (2 * steps)  # both frames in one step
  video, noise = (jax.random.normal(jax.random.key(i), (steps, 2, 2, 2, 3)) for i in (0, 1))
  share = jnp.linspace(0, 1, steps)

  def guided(z, level, scale):
    return jnp.full_like(z, jnp.nan)

  teacher = Teacher(guided=guided, student=curved)
  task = jax.jit(
    lambda *given: dataclasses.astuple(rounds.task(*given, schedule=SCHEDULE, teacher=teacher))
  )(video, noise, time, share, jnp.float32(number))
  told, (logsnr,), z, velocity, scale = task
  np.testing.assert_allclose(told, np.tile(np.arange(1, steps + 1)[:, None] / steps, 2), rtol=1e-6)
  np.testing.assert_allclose(scale, 1 + 2 * share, rtol=1e-6)
  x = data_from_velocity(velocity, z, LogSNR(logsnr))

  jump = 2 if sampler == "stochastic" else 1
  for i in range(1, steps + 1):
    row = slice(i - 1, i)
    ends = (i / steps, (i - jump / 2) / steps, max(i - jump, 0) / steps)
    start, middle, end = (SCHEDULE.logsnr(jnp.full((1, 2), t)) for t in ends)
    first = data_from_velocity(curved(z[row], start, scale[row]), z[row], start)
    half = ddim_step(first, z[row], level=start, to=middle)
    second = data_from_velocity(curved(half, middle, scale[row]), half, middle)
    if i > 1:
      made = ddim_step(x[row], z[row], level=start, to=end)
      want = ddim_step(second, half, level=middle, to=end)
    else:  # to the data; of the stochastic one its teacher does so from here
      made, want = x[row], first if sampler == "stochastic" else second
    np.testing.assert_allclose(made, want, atol=1e-4)


def test_c11_a_fresh_student_told_any_scale_is_its_teacher():
  """What tells the network the scale starts at zero: samples of a student with its teacher's other
  parameters are the teacher's with the caption alone."""
  teacher, student = stage(student=False), stage()
  params = scattered(teacher)
  fresh = jax.jit(student.init)(jax.random.key(0))
  network = {**params["network"], "guidance_scale": fresh["network"]["guidance_scale"]}
  inputs = {n: x for n, x in batch_of(teacher).items() if n in input_spec(teacher, 1)}

  def made(model, params, guidance_scale):
    settings = SampleSettings(2, guidance_scale, schedule="linear")
    return jax.jit(lambda p: model.sample(p, inputs, keys(), settings)["latents"])(params)

  want = made(teacher, params, 1.0)
  found = made(student, {**fresh, **params, "network": network}, 4.0)
  np.testing.assert_allclose(found, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("guidance_scale", [0.5, 5.5])
def test_a_scale_that_no_student_was_told_is_refused(guidance_scale):
  model = stage()
  inputs = {n: x.struct() for n, x in input_spec(model, 4).items()}
  params = jax.eval_shape(model.init, jax.random.key(0))
  settings = SampleSettings(2, guidance_scale, schedule="linear")
  with pytest.raises(ConfigError, match=rf"guidance_scale {guidance_scale} is not .*1.0 to 5.0"):
    jax.eval_shape(lambda p, i: model.sample(p, i, keys(), settings), params, inputs)


def test_only_the_student_trains_and_it_teaches_the_next_round():
  """Three steps, each the first of a round: the teacher is what the student was when the round
  began, and no step moves it, the number of the round or the text encoder."""
  model = stage()
  rate = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, weight_decay=0.1, restarts=(1,))
  config = TrainConfig(seed=3, steps=2, batch_size=4, ema_decay=0.0, optimizer=rate)
  abstract = jax.eval_shape(model.init, jax.random.key(0))
  tx = make_optimizers(config, params=abstract, axes=model.logical_axes(), still=model.frozen)
  state = init_state(config.seed, stage=model, tx=tx)
  step = jax.jit(functools.partial(train_step, stage=model, tx=tx, config=config))
  first = state.params
  for number in range(2):
    before = state.params
    state, metrics = step(state, batch_of(model))
    after = state.params
    equal(after["teacher"], before["network"])
    equal(after["text"], first["text"])
    assert float(after["round"]) == float(metrics["round"]) == number
    assert float(metrics["student_steps"]) == 4 / 2**number
    assert float(metrics["update_norm"]) > 0
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after["network"], before["network"])
    assert max(jax.tree.leaves(moved)) > 1e-3
  equal(state.ema["teacher"], state.params["teacher"])
  # a third step, in the middle of the last round: the teacher stays
  before = state.params
  state, metrics = step(state, batch_of(model))
  equal(state.params["teacher"], before["teacher"])
  assert float(metrics["round"]) == 1


def equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_student_begins_as_a_trained_model(tmp_path):
  """Without one it is refused; of one, all is copied but what tells the scale, which is zero."""
  model = stage()
  bucket = {"name": "video", "frames": 2, "height": 4, "width": 4, "fps": 3.0}
  one = resolve(
    ConfigDict(
      {
        "name": "student",
        "stage": {"name": "imagen_video", "fields": {**FIELDS, "distillation": ROUNDS}},
        "inputs": {"buckets": [bucket], "text_length": 8},
        "train": {
          "steps": 2,
          "batch_size": 4,
          "ema_decay": 0.0,
          "unsharded_tolerance": 1.0,
          "optimizer": {"restarts": [1]},
        },
      }
    )
  )

  def begun(start):
    changed = dataclasses.replace(one, start=start)
    mesh = make_mesh(changed.mesh, devices=jax.devices()[:1])
    with on_mesh(mesh, rules=changed.rules):
      return begin(Programs(changed, stage=model, mesh=mesh))

  with pytest.raises(ConfigError, match=r"does not train network, text from nothing"):
    begun(StartConfig())

  params = scattered(stage(student=False))
  checkpoints = Checkpoints(tmp_path / "checkpoints")
  state = {"params": params, "ema": params, "opt_state": {}, "step": jnp.int32(5)}
  checkpoints.save(5, state, {"position": 5}, {"name": "teacher"})
  checkpoints.close()
  found = begun(StartConfig(workdir=str(tmp_path))).state.params
  scale = found["network"].pop("guidance_scale")
  equal(found["network"], params["network"])
  equal(found["text"], params["text"])
  assert not np.any(scale["kernel"])


@pytest.mark.parametrize(
  ("train", "message"),
  [
    ({"steps": 3, "restarts": (1,)}, r"are 2 steps .*restarts \(1,\), not 3 with \(1,\)"),
    ({"steps": 2, "restarts": ()}, r"not 2 with \(\)"),
    ({"steps": 2, "restarts": (1,), "ema_decay": 0.9}, "ema_decay: must be 0"),
  ],
)
def test_a_run_of_other_rounds_is_refused(train, message):
  ema_decay = train.get("ema_decay", 0.0)
  optimizer = OptimizerConfig(restarts=train["restarts"])
  config = TrainConfig(steps=train["steps"], ema_decay=ema_decay, optimizer=optimizer)
  with pytest.raises(ConfigError, match=message):
    stage().check_train(config)
  stage().check_train(TrainConfig(steps=2, ema_decay=0.0, optimizer=OptimizerConfig(restarts=(1,))))
  stage(student=False).check_train(config)


@pytest.mark.parametrize(
  ("asked", "message"),
  [({"steps": 4}, "of 2 steps cannot be sampled in 4"), ({"guidance_scale": 6.0}, "1.0 to 5.0")],
)
def test_a_student_does_only_what_it_learned(asked, message):
  model = stage()
  settings = SampleSettings(**{"steps": 2, "guidance_scale": 3.0, "schedule": "linear", **asked})
  params = jax.eval_shape(model.init, jax.random.key(0))
  inputs = {name: array.struct() for name, array in input_spec(model, 1).items()}
  with pytest.raises(ConfigError, match=message):
    jax.eval_shape(lambda p, i: model.sample(p, i, keys(1), settings), params, inputs)
