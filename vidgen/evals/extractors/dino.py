"""DINO for metrics: its class token, from pictures as MagicBrush's evaluation prepares them."""

from pathlib import Path
from typing import Any

import jax

from vidgen.evals.extractors import PixelExtractor
from vidgen.evals.extractors.crop import Crop
from vidgen.interop.layouts.vit import vit_from_hf, vit_layout
from vidgen.interop.networks import load_network
from vidgen.interop.text_encoders import build_network, read_config
from vidgen.interop.weight_files import open_weights
from vidgen.models.vit import ViT

MEAN = 0.485, 0.456, 0.406
STD = 0.229, 0.224, 0.225


def crop_of(network: ViT) -> Crop:
  """Pillow's bicubic to 256 of 224 parts, then the middle; ImageNet's mean and deviation."""
  side = network.image_size
  return Crop(
    side=side,
    short_side=round(side * 256 / 224),
    kernel="pil_bicubic",
    fit="centre",
    values="bytes",
    mean=MEAN,
    std=STD,
  )


def load_dino(folder: str | Path, *, batch_size: int = 16) -> PixelExtractor:
  """The ViT of a Hugging Face folder: uint8 pictures [b, h, w, 3] -> "cls" [b, d].

  Raises:
    CheckpointError: no such network there, or a damaged one.
  """
  folder = Path(folder)
  network: ViT = build_network(folder, read_config(folder), vit_from_hf, dtype="float32")
  weights = open_weights(folder)
  params = load_network(weights, network, vit_layout(network))
  return dino_extractor(network, params, digest=weights.digest, batch_size=batch_size)


def dino_extractor(
  network: ViT, params: Any, *, digest: str, batch_size: int = 16
) -> PixelExtractor:
  """As `load_dino`, from parameters at hand."""
  prepared = crop_of(network)

  def run(params: Any, images: jax.Array) -> dict[str, jax.Array]:
    with jax.default_matmul_precision("highest"):
      found: Any = network.apply({"params": params}, prepared(images))
    return {"cls": found["embedding"]}

  return PixelExtractor(
    name="dino",
    digest=digest,
    run=jax.jit(run),
    params=params,
    facts=prepared.facts(),
    batch_size=batch_size,
    rank=4,
  )
