"""What a stage samples from where that is not in its batches: described, and made of examples."""

import jax
import jax.numpy as jnp
import numpy as np
from cascade_run import BASE, SSR, TSR, CascadeConfig, CascadeStage, register
from ml_collections import ConfigDict
from trained_run import stage

from vidgen.dist.mesh import make_mesh, on_mesh
from vidgen.systems.sampling import input_spec, inputs_of
from vidgen.train.experiment import resolve
from vidgen.train.programs import Programs


def examples(count, shape):
  rng = np.random.default_rng(0)
  return {
    "video": rng.uniform(-1, 1, (count, *shape, 3)).astype(np.float32),
    "text": rng.integers(3, 259, (count, 24), dtype=np.int32),
    "text_mask": np.ones((count, 24), bool),
  }


def test_a_stage_says_what_it_samples_from():
  base, ssr = CascadeStage(CascadeConfig()), CascadeStage(CascadeConfig(SSR, TSR))
  assert set(input_spec(base, 2)) == {"text", "text_mask"}
  assert input_spec(ssr, 2)["low"].shape == (2, *TSR, 3)
  batch = jax.tree.map(jnp.asarray, examples(2, SSR))
  made = inputs_of(ssr, batch)
  assert set(made) == set(input_spec(ssr, 2))
  blocks = batch["video"].reshape(2, 32, 3, 2, 5, 2, 3)
  np.testing.assert_allclose(made["low"], blocks.mean(axis=(3, 5)), atol=1e-6)


def test_without_a_word_from_the_stage_the_inputs_are_the_batch_less_what_is_generated():
  spec = stage().batch_spec(2)
  batch = {name: jnp.asarray(array.zeros()) for name, array in spec.items()}
  assert "video" in batch
  assert set(inputs_of(stage(), batch)) == {"text", "text_mask", "fps"}


def test_a_runs_sheets_are_made_from_small_copies_of_its_examples(monkeypatch):
  """`Programs.sample` hands a further stage what it makes of held-out clips."""
  register(monkeypatch)
  shape = dict(zip(("frames", "height", "width"), TSR, strict=True))
  experiment = resolve(
    ConfigDict(
      {
        "name": "sheets",
        "stage": {"name": "test/cascade", "fields": {"shape": TSR, "low": BASE}},
        "inputs": {"buckets": [{"name": "video", **shape, "fps": 6.0}], "text_length": 24},
        "train": {"batch_size": 8, "seed": 3},
        "sample": {"steps": 3, "schedule": "linear"},
      }
    )
  )
  further = CascadeStage(CascadeConfig(TSR, BASE))
  mesh = make_mesh(experiment.mesh)
  batch = examples(3, TSR)
  with on_mesh(mesh, rules=experiment.rules):
    programs = Programs(experiment, stage=further, mesh=mesh)
    ema = programs.init().ema
    made = np.asarray(programs.sample(ema, batch))
    other = np.asarray(programs.sample(ema, {**batch, "video": -batch["video"]}))
  assert made.shape == (3, *TSR, 3)
  inputs = {name: batch[name] for name in ("text", "text_mask")}
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(np.uint32(3)), i))(np.arange(3))
  wanted = jax.jit(further.sample, static_argnums=3)(
    jax.device_get(ema), inputs | {"low": batch["video"][:, ::2]}, keys, experiment.sample
  )
  np.testing.assert_allclose(made, wanted["video"], atol=1e-6)
  assert np.abs(made - other).max() > 0.1
