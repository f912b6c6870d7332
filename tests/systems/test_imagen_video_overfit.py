"""One clip is learned by heart, and comes back when it is sampled."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vidgen.systems import SampleSettings, make_stage
from vidgen.systems.sampling import input_spec, sample_keys

BATCH, STEPS = 16, 1500
FIELDS = {
  "network": {
    "levels": [{"channels": 32, "blocks": 1, "attention": "self"}], "temporal": "attention",
    "embedding": 32, "head_size": 8, "groups": 0, "residual": "plain", "scan": False,
  },
  "text_streams": {"t5": {"width": 4, "length": 2}},
  "sampler": {"method": "ddim", "threshold": "none"},
  "buckets": [{"name": "video", "frames": 2, "height": 4, "width": 4}],
  "dtype": "float32", "remat": "none",
}  # fmt: skip


def test_v10_the_loss_of_one_clip_falls_tenfold_and_samples_are_the_clip():
  """Also the order of its frames, which only attention over time can tell: of two frames of noise
  neither is the first."""
  stage: Any = make_stage("imagen_video", FIELDS)
  clip = np.random.default_rng(0).uniform(-1, 1, (1, 2, 4, 4, 3)).astype(np.float32)
  inputs = {name: jnp.ones(a.shape, a.dtype) for name, a in input_spec(stage, BATCH).items()}
  batch = {**inputs, "video": jnp.repeat(jnp.asarray(clip), BATCH, axis=0)}
  tx = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))

  def step(state, index):
    params, moments = state
    keys = sample_keys(1, BATCH * index + jnp.arange(BATCH))
    (loss, _), gradient = jax.value_and_grad(stage.loss, has_aux=True)(params, batch, keys)
    updates, moments = tx.update(gradient, moments, params)
    return (optax.apply_updates(params, updates), moments), loss

  params = stage.init(jax.random.key(0))
  scan = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(STEPS)))
  (params, _), losses = scan((params, tx.init(params)))
  assert np.mean(losses[-50:]) < np.mean(losses[:5]) / 10
  few = {name: array[:4] for name, array in inputs.items()}
  settings = SampleSettings(64, 1.0, schedule="linear")
  made = stage.sample(params, few, sample_keys(2, jnp.arange(4)), settings)["video"]
  assert np.sqrt(np.mean((made - clip) ** 2, axis=(1, 2, 3, 4))).max() < 0.05
