"""Image autoencoders as diffusers' AutoencoderKL names their weights, and their inflation.

Of the shape of Stable Diffusion 3's: no convolutions around the latents (`quant_conv`).
"""

from typing import Any

from vidgen.interop.layout import Layout, Source
from vidgen.models.tae import TAE

KERNEL = "o i h w -> h w i o"


def layout(network: TAE) -> Layout:
  """`encoder...` and `decoder...` of an image autoencoder, a TAE without layers over time."""
  sources: dict[str, Source] = {}

  def norm(ours: str, theirs: str) -> None:
    sources[f"{ours}/scale"] = Source((f"{theirs}.weight",))
    sources[f"{ours}/bias"] = Source((f"{theirs}.bias",))

  def matrix(ours: str, theirs: str, pattern: str) -> None:
    sources[f"{ours}/kernel"] = Source((f"{theirs}.weight",), pattern)
    sources[f"{ours}/bias"] = Source((f"{theirs}.bias",))

  def block(ours: str, theirs: str, *, shortcut: bool) -> None:
    for i in (1, 2):
      norm(f"{ours}/norm{i}", f"{theirs}.norm{i}")
      matrix(f"{ours}/conv{i}/spatial", f"{theirs}.conv{i}", KERNEL)
    if shortcut:
      matrix(f"{ours}/shortcut/spatial", f"{theirs}.conv_shortcut", KERNEL)

  def half(name: str, widths: list[int], blocks: int, *, levels: str, resize: str) -> None:
    inner = 0 if name == "decoder" else len(widths) - 1
    before = widths[0]
    for i, width in enumerate(widths):
      ours, theirs = f"{name}/level_{i}", f"{name}.{levels}.{i}"
      for j in range(blocks):
        block(f"{ours}/block_{j}", f"{theirs}.resnets.{j}", shortcut=j == 0 and before != width)
      if i < len(widths) - 1:
        matrix(f"{ours}/resize/spatial", f"{theirs}.{resize}.0.conv", KERNEL)
      before = width
    ours, theirs = f"{name}/level_{inner}", f"{name}.mid_block"
    for i in (0, 1):
      block(f"{ours}/middle_{i}", f"{theirs}.resnets.{i}", shortcut=False)
    norm(f"{ours}/attention/norm", f"{theirs}.attentions.0.group_norm")
    names = {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
    for mine, other in names.items():
      matrix(f"{ours}/attention/{mine}", f"{theirs}.attentions.0.{other}", "o i -> i o")
    last = f"{name}/level_{len(widths) - 1}"
    matrix(f"{name}/level_0/conv_in/spatial", f"{name}.conv_in", KERNEL)
    norm(f"{last}/norm_out", f"{name}.conv_norm_out")
    matrix(f"{last}/conv_out/spatial", f"{name}.conv_out", KERNEL)

  widths, n = list(network.channels), network.blocks
  half("encoder", widths, n, levels="down_blocks", resize="downsamplers")
  half("decoder", widths[::-1], n + 1, levels="up_blocks", resize="upsamplers")
  return Layout(sources)


def inflate(image: Any, video: Any) -> Any:
  """The parameters `video` of a TAE with an image autoencoder's in place of its spatial ones.

  What `image` does not have, the layers over time, stays the array that it was.
  """
  if not isinstance(video, dict):
    return image
  return {name: inflate(image[name], part) if name in image else part
          for name, part in video.items()}  # fmt: skip
