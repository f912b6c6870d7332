"""The shipped recipes of Imagen Video: every variant builds, is the size it says, and fits the one
before it in the cascade."""

import functools
import math
import runpy
from pathlib import Path
from typing import Any

import jax
import pytest

from vidgen.config import load_config, plain
from vidgen.models.video_unet import SINUSOIDS
from vidgen.systems import make_stage
from vidgen.systems.sampling import input_spec, sampled
from vidgen.train.experiment import from_plain, resolve
from vidgen.train.optimizer import Parts

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "imagen_video"

# Parameters of each teacher, the text encoder of the tiny ones among them.
PARAMETERS = {
  "base:full": 5_608_194_179,
  "base:tiny": 2_495_043,
  "base:tiny.video": 2_495_043,
  "tsr:1": 1_696_460_035,
  "tsr:2": 811_771_395,
  "tsr:3": 616_167_427,
  "tsr:tiny1": 867_907,
  "tsr:tiny2": 787_756,
  "tsr:tiny3": 787_756,
  "ssr:1": 1_427_084_291,
  "ssr:2": 1_171_917_827,
  "ssr:3": 330_648_323,
  "ssr:tiny1": 884_291,
  "ssr:tiny2": 1_638_364,
  "ssr:tiny3": 531_888,
}
STUDENTS = [f"{name}.distilled" for name in PARAMETERS if name != "base:tiny.video"]
# Imagen Video, section 2: billions of parameters; frames, height, width and frames a second.
PAPER = {
  "base:full": (5.6, (16, 24, 40), 3),
  "tsr:1": (1.7, (32, 24, 40), 6),
  "ssr:1": (1.4, (32, 48, 80), 6),
  "ssr:2": (1.2, (32, 192, 320), 6),
  "tsr:2": (0.78, (64, 192, 320), 12),
  "tsr:3": (0.63, (128, 192, 320), 24),
  "ssr:3": (0.34, (128, 768, 1280), 24),
}
TINY = ["base:tiny", "tsr:tiny1", "ssr:tiny1", "ssr:tiny2", "tsr:tiny2", "tsr:tiny3", "ssr:tiny3"]


@functools.cache
def shipped(name) -> Any:
  """The experiment and the stage of "file:variant"."""
  file, _, variant = name.partition(":")
  experiment = resolve(load_config(f"{CONFIGS}/{file}.py:{variant}"))
  return experiment, make_stage(experiment.stage.name, experiment.stage.fields)


@functools.cache
def shapes(name):
  """The shape of each parameter by its name."""
  params = jax.eval_shape(shipped(name)[1].init, jax.random.key(0))
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


@functools.cache
def made(name):
  """The shape of what a config samples."""
  experiment, stage = shipped(name)
  return sampled(stage, experiment.sample)["video"].shape


def count(name):
  return sum(math.prod(shape) for shape in shapes(name).values())


def test_the_list_has_every_variant_of_every_file():
  found = [
    f"{path.stem}:{variant}"
    for path in sorted(CONFIGS.glob("*.py"))
    for variant in runpy.run_path(str(path))["VARIANTS"]
  ]
  assert sorted(found) == sorted([*PARAMETERS, *STUDENTS])


@pytest.mark.parametrize("name", [*PARAMETERS, *STUDENTS])
def test_a_shipped_config_resolves_and_its_two_halves_agree(name):
  """The input pipeline makes the arrays that the stage eats; its JSON form is the same config."""
  experiment, stage = shipped(name)
  assert from_plain(plain(experiment)) == experiment
  sides = ("name", "frames", "height", "width", "images", "captions")
  rows, eaten = (
    [tuple(getattr(bucket, side) for side in sides) for bucket in buckets]
    for buckets in (experiment.inputs.buckets, stage.config.buckets)
  )
  assert rows == eaten
  if stage.text.encoder is not None:
    assert experiment.inputs.text_length == stage.config.text_encoder.length
  else:
    assert experiment.inputs.embeddings == stage.stream


def test_clips_and_packs_of_images_are_one_step_of_the_base_model():
  """Both of its batch shapes have the same arrays, so that they share a compiled program."""
  _, stage = shipped("base:full")
  clips, images = (stage.batch_spec(4, bucket) for bucket in stage.buckets)
  assert clips == images
  assert clips["video"].shape == (4, 16, 24, 40, 3) and clips["t5"].shape == (4, 16, 128, 4096)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_shipped_config_has_as_many_parameters_as_it_says(name):
  assert count(name) == PARAMETERS[name]
  if name in PAPER:
    assert count(name) == pytest.approx(1e9 * PAPER[name][0], rel=0.05)


@pytest.mark.parametrize("names", [list(PAPER), TINY], ids=["full", "tiny"])
def test_v1_the_cascade_makes_the_seven_shapes_and_rates_of_the_paper(names):
  """Each model takes the clip that the one before makes; the small ones' sides are an eighth, and
  their 128 frames are of 2 seconds, not of 5.3."""
  small = names is not PAPER and names[0] != "base:full"
  before = None
  for name, (_, (frames, height, width), fps) in zip(names, PAPER.values(), strict=True):
    experiment, stage = shipped(name)
    side = 8 if small else 1
    assert made(name) == (1, frames, height // side, width // side, 3), name
    rates = {bucket.fps for bucket in experiment.inputs.buckets}
    assert rates == {frames / 2 if small else fps}, name
    low = input_spec(stage, 1).get("low")
    assert (low.shape if low else None) == before, name
    before = made(name)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_is_its_teacher_twice_and_trains_in_its_rounds(name):
  """Beside the teacher's arrays it has the map of the guidance scale and the round's number; the
  run's steps and restarts are those of the rounds, which end at the 8 steps that are sampled."""
  teacher, (experiment, stage) = name.removesuffix(".distilled"), shipped(name)
  network = {n: shape for n, shape in shapes(teacher).items() if n.startswith("network/")}
  scale = "guidance_scale/kernel"
  told = {f"network/{scale}": (SINUSOIDS, stage.network.embedding_width)}
  copies = {n.replace("network/", "teacher/", 1): s for n, s in (network | told).items()}
  assert shapes(name) == shapes(teacher) | told | copies | {"round": ()}

  params = jax.eval_shape(stage.init, jax.random.key(0))
  moving = Parts.of(experiment.train, still=stage.frozen).moving(params)
  assert len(jax.tree.leaves(moving)) == len(network | told)
  needed = {n for n in shapes(name) if any(f"{n}/".startswith(f"{p}/") for p in stage.required)}
  assert needed == set(shapes(teacher))

  distillation, train = stage.config.distillation, experiment.train
  assert train.steps == distillation.train_steps
  assert train.optimizer.restarts == distillation.restarts
  assert distillation.end == experiment.sample.steps == 8
  low, high = distillation.scales
  assert low <= experiment.sample.guidance_scale <= high
  assert experiment.sample.guidance_scale == shipped(teacher)[0].sample.guidance_scale
  assert distillation.start <= shipped(teacher)[0].sample.steps


@pytest.mark.parametrize("name", PAPER)
def test_the_first_three_models_swing_between_15_and_1_which_are_16_and_2_here(name):
  """The paper's scales are those of (1 + w) c - w u; from 192 x 320 on guidance is constant."""
  experiment, stage = shipped(name)
  sampler, settings = stage.config.sampler, experiment.sample
  assert settings.steps == (256 if name == "base:full" else 128)
  if name in ("base:full", "tsr:1", "ssr:1"):
    assert sampler.guidance == "oscillating" and sampler.threshold == "dynamic"
    assert (settings.guidance_scale, sampler.low_scale) == (15 + 1, 1 + 1)
  else:
    assert sampler.guidance == "constant" and settings.guidance_scale > 1
