"""The noise of sample i follows from (seed, i): bit-equal whatever the batch and the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from trained_run import experiment, params, stage

from vidgen.errors import ConfigError
from vidgen.evals.generation import text_inputs
from vidgen.inputs.text import ByteTokenizer
from vidgen.systems.sampling import Sampler, input_spec, sample_keys

PROMPTS = [f"prompt {i}" for i in range(8)]
SHAPE = (8, 16, 16, 3)


def over(devices: int) -> NamedSharding:
  return NamedSharding(Mesh(np.array(jax.devices()[:devices]), ("data",)), PartitionSpec("data"))


def draw(batch_size, *, weights=None, seed=3, sharding=None, order=range(8)):
  """Latents of samples 0 to 7, in that order, drawn in `order` and in batches."""
  inputs = text_inputs(stage(), PROMPTS, tokenizer=ByteTokenizer(), fps=4.0)
  placed = params() if weights is None else weights
  if sharding is not None:
    placed = jax.device_put(placed, NamedSharding(sharding.mesh, PartitionSpec()))
  sampler = Sampler(
    stage(), params=placed, settings=experiment().sample, seed=seed,
    batch_size=batch_size, sharding=sharding,
  )  # fmt: skip
  latents = np.zeros((8, *SHAPE), np.float32)
  order = np.array(list(order))
  for start in range(0, len(order), batch_size):
    rows = order[start : start + batch_size]
    latents[rows] = sampler.latents({name: x[rows] for name, x in inputs.items()}, rows)
  return latents


@pytest.fixture(scope="module")
def silent():
  """Parameters whose velocity is zero everywhere, so that what comes out is the noise itself."""
  return jax.device_get(jax.jit(stage().init)(jax.random.key(0)))


def test_noise_is_that_of_the_seed_and_the_index(silent):
  keys = [jax.random.fold_in(jax.random.key(np.uint32(3)), i) for i in range(8)]
  expected = np.stack([jax.random.normal(key, SHAPE) for key in keys])
  np.testing.assert_array_equal(draw(8, weights=silent), expected)
  assert not np.array_equal(expected[0], expected[1])
  assert not np.array_equal(draw(8, weights=silent, seed=4)[0], expected[0])


@pytest.mark.parametrize(
  ("batch_size", "devices", "order"),
  [
    (1, 1, range(8)),
    (3, 1, range(8)),
    (8, 1, range(7, -1, -1)),
    (8, 8, range(8)),
    (4, 2, range(8)),
  ],
)
def test_noise_is_bit_equal_whatever_the_batch_the_order_and_the_devices(
  silent, batch_size, devices, order
):
  drawn = draw(batch_size, weights=silent, sharding=over(devices), order=order)
  np.testing.assert_array_equal(drawn, draw(8, weights=silent))


def test_values_are_the_same_whatever_the_batch_and_the_devices():
  whole = draw(8)
  for other in (draw(1), draw(3), draw(8, sharding=over(8))):
    np.testing.assert_allclose(other, whole, atol=1e-5)
  assert np.abs(whole - draw(8, weights=params(1))).max() > 1e-3  # the parameters have a say


def test_seeds_use_all_32_bits():
  index = jnp.arange(2, dtype=jnp.uint32)
  data = [jax.random.key_data(sample_keys(s, index)) for s in (0, np.uint32(2**31), 2**32 - 1)]
  assert len({np.asarray(d).tobytes() for d in data}) == 3


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"seed": -1}, "seed must lie in"),
    ({"seed": 2**32}, "seed must lie in"),
    ({"batch_size": 0}, "batch size 0"),
  ],
)
def test_seeds_and_batches_out_of_range_are_refused(changes, message):
  arguments = {"seed": 0, "batch_size": 2, "settings": experiment().sample, **changes}
  with pytest.raises(ConfigError, match=message):
    Sampler(stage(), params=params(), **arguments)


def test_inputs_are_the_batch_less_what_is_generated():
  assert set(input_spec(stage(), 2)) == {"text", "text_mask", "fps"}
