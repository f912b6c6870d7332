"""The small text encoders of ShapesWorld: the same for a seed, telling words apart."""

import numpy as np
import pytest

from vidgen.inputs.config import EncoderSource
from vidgen.inputs.encoders import open_encoder
from vidgen.shapes_world.text_encoders import NAMES, write_text_encoders
from vidgen.shapes_world.world import COLOURS, SHAPES


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  return write_text_encoders(tmp_path_factory.mktemp("encoders"))


def test_the_same_seed_gives_the_same_bytes(folders, tmp_path):
  again = write_text_encoders(tmp_path)
  other = write_text_encoders(tmp_path / "other", seed=1)
  for name in NAMES:
    for path in folders[name].iterdir():
      assert path.read_bytes() == (again[name] / path.name).read_bytes(), path
    weights = [f[name] / "model.safetensors" for f in (folders, other)]
    assert weights[0].read_bytes() != weights[1].read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_every_colour_and_shape_is_a_text_of_its_own(folders, name):
  encoder = open_encoder(name, EncoderSource(length=64, folder=str(folders[name])))
  texts = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
  made = encoder.of_captions(texts)
  assert not any(encoder.cut(texts)) and np.isfinite(made[name]).all()
  mask = made[f"{name}_mask"][..., None]
  means = (made[name] * mask).sum(1) / mask.sum(1)
  distances = np.linalg.norm(means[:, None] - means[None], axis=-1)
  np.fill_diagonal(distances, np.inf)
  assert distances.min() > 0.02 * np.linalg.norm(means, axis=-1).mean()
