"""The metrics there are. One is imported when it is asked for, so that none costs the others."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vidgen.errors import ConfigError

SMALL = 2048  # samples; below, a Frechet distance is mostly bias


@dataclasses.dataclass(frozen=True)
class Metric:
  """Where a metric is, "module:function", what it says, in a line, and what it needs.

  The function takes (session: `evals.scoring.Session`, name) and returns an
  `evals.protocol.Score`; where `media` is "samples" it takes (samples: `evals.samples.SampleSet`,
  *, reference: Path).

  media: what is read of each item, "video", "image" (of clips, every frame), "audio", "votes".
  against: what `--reference` is, "set", "pairs" (items of the same names), "prompts" or "" for
  nothing. extractors: whose weights it needs, the first being the one its record names. tensor:
  the feature it is of; keeps: "rows", or their "moments". frames: of a clip, unless asked
  otherwise. minimum: samples below which it is refused unless asked for. conventions: variants of
  its own, the first being the default; a metric without any hands `--convention` to its extractor.
  """

  target: str
  help: str
  media: str = "video"
  against: str = "set"
  extractors: tuple[str, ...] = ()
  tensor: str = ""
  keeps: str = "rows"
  frames: int | None = None
  minimum: int = 0
  conventions: tuple[str, ...] = ()

  def load(self) -> Callable[..., Any]:
    """Imports the function."""
    return _imported(self.target)


@dataclasses.dataclass(frozen=True)
class Weights:
  """How an extractor is loaded: its function, and the public files it is for.

  option: the keyword that takes a convention's name, "" where there are none. keyword: the one of
  its own path, where it is not the first argument; beside: further names of `--weights`, and their
  keywords.
  """

  target: str
  public: str
  option: str = "convention"
  keyword: str = ""
  beside: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def load(self) -> Callable[..., Any]:
    """Imports the function."""
    return _imported(self.target)


def _imported(target: str) -> Callable[..., Any]:
  module, _, function = target.partition(":")
  return getattr(importlib.import_module(module), function)


EXTRACTORS: dict[str, Weights] = {
  "i3d": Weights(
    "vidgen.evals.extractors.i3d:load_i3d",
    "I3D of Kinetics-400: i3d_torchscript.pt as StyleGAN-V uses it, or rgb_imagenet.pt of"
    " pytorch-i3d",
  ),
  "c3d": Weights(
    "vidgen.evals.extractors.c3d:load_c3d",
    "C3D finetuned on UCF-101: c3d_ucf101.pt as StyleGAN-V uses it",
  ),
  "inception": Weights(
    "vidgen.evals.extractors.inception:load_inception",
    "Inception-v3 of FID: pt_inception-2015-12-05-6726825d.pth",
  ),
  "lpips": Weights(
    "vidgen.evals.extractors.lpips:load_lpips",
    "the heads of LPIPS 0.1: alex.pth or vgg.pth of the lpips package; with lpips_trunk=PATH,"
    " torchvision's alexnet or vgg16",
    option="net",
    keyword="heads",
    beside={"lpips_trunk": "trunk"},
  ),
  "clip": Weights(
    "vidgen.evals.extractors.clip:load_clip",
    "a Hugging Face folder of CLIP, transformers' or open_clip's: openai/clip-vit-base-patch32 is"
    " the usual one",
    option="crop",
  ),
  "dino": Weights(
    "vidgen.evals.extractors.dino:load_dino",
    "a Hugging Face folder of DINO: facebook/dino-vits16 is the usual one",
    option="",
  ),
  "vggish": Weights(
    "vidgen.evals.extractors.vggish:load_vggish",
    "VGGish in PyTorch: vggish-10086976.pth of torchvggish",
  ),
  "cnn14": Weights(
    "vidgen.evals.extractors.cnn14:load_cnn14",
    "Cnn14 of PANNs: Cnn14_mAP=0.431.pth, or Cnn14_16k_mAP=0.438.pth for conventions of 16 kHz",
  ),
}

METRICS: dict[str, Metric] = {
  "shapes_probe": Metric(
    "vidgen.evals.shapes_accuracy:score",
    "share of ShapesWorld samples that show what their caption says, read back from pixels",
    media="samples",
  ),
  "fvd": Metric(
    "vidgen.evals.distances:frechet",
    "Frechet distance of clips to a reference set, over logits of I3D",
    extractors=("i3d",), tensor="logits", keeps="moments", frames=16, minimum=SMALL,
  ),
  "kvd": Metric(
    "vidgen.evals.distances:kernel",
    "kernel distance of clips to a reference set, over logits of I3D; unbiased",
    extractors=("i3d",), tensor="logits", frames=16,
  ),
  "rfvd": Metric(
    "vidgen.evals.distances:frechet",
    "FVD of reconstructions to the very clips they are of",
    against="pairs", extractors=("i3d",), tensor="logits", keeps="moments", frames=16,
    minimum=SMALL,
  ),
  "is_c3d": Metric(
    "vidgen.evals.distances:inception",
    "inception score of clips, by C3D finetuned on UCF-101",
    against="", extractors=("c3d",), tensor="logits", frames=16,
  ),
  "fid": Metric(
    "vidgen.evals.distances:frechet",
    "Frechet distance of pictures, or of frames, to a reference set, over Inception-v3",
    media="image", extractors=("inception",), tensor="2048", keeps="moments", minimum=SMALL,
  ),
  "kid": Metric(
    "vidgen.evals.distances:kernel",
    "kernel distance of pictures or frames to a reference set, over Inception-v3; unbiased",
    media="image", extractors=("inception",), tensor="2048",
    conventions=("subsets", "whole"),
  ),
  "rfid": Metric(
    "vidgen.evals.distances:frechet",
    "FID of reconstructions to the very pictures or clips they are of",
    media="image", against="pairs", extractors=("inception",), tensor="2048", keeps="moments",
    minimum=SMALL,
  ),
  "is": Metric(
    "vidgen.evals.distances:inception",
    "inception score of pictures or frames",
    media="image", against="", extractors=("inception",), tensor="logits_unbiased",
  ),
  "clip_score": Metric(
    "vidgen.evals.alignment:clip_score",
    "100 * cosine of prompt and frames in CLIP, mean over frames and clips",
    media="image", against="prompts", extractors=("clip",), tensor="image_embeds",
    conventions=("x100", "torchmetrics", "hessel"),
  ),
  "clipsim": Metric(
    "vidgen.evals.alignment:clip_score",
    "cosine of prompt and frames in CLIP, mean over frames and clips",
    media="image", against="prompts", extractors=("clip",), tensor="image_embeds",
  ),
  "r_precision": Metric(
    "vidgen.evals.alignment:r_precision",
    "share of clips whose own prompt is nearest in CLIP among 99 others",
    media="image", against="prompts", extractors=("clip",), tensor="image_embeds",
    conventions=("cosines", "embeddings"),
  ),
  "tem_con": Metric(
    "vidgen.evals.alignment:temporal_consistency",
    "cosine of consecutive frames in CLIP",
    media="image", against="", extractors=("clip",), tensor="image_embeds",
  ),
  "frame_acc": Metric(
    "vidgen.evals.edits:frame_accuracy",
    "share of edited frames nearer to the prompt of the result than to that of the input",
    media="image", against="prompts", extractors=("clip",), tensor="image_embeds",
  ),
  "frame_acc_input": Metric(
    "vidgen.evals.edits:frame_accuracy_of_input",
    "share of edited frames nearer to the prompt of the result than the input's frames are",
    media="image", against="pairs", extractors=("clip",), tensor="image_embeds",
  ),
  "clip_dir": Metric(
    "vidgen.evals.edits:clip_direction",
    "cosine of the change of picture and the change of prompt in CLIP",
    media="image", against="pairs", extractors=("clip",), tensor="image_embeds",
  ),
  "clip_im": Metric(
    "vidgen.evals.edits:similarity",
    "cosine of edited and input picture in CLIP",
    media="image", against="pairs", extractors=("clip",), tensor="image_embeds",
  ),
  "clip_out": Metric(
    "vidgen.evals.edits:clip_output",
    "cosine of the edited picture and the prompt of the output in CLIP",
    media="image", against="prompts", extractors=("clip",), tensor="image_embeds",
  ),
  "dino": Metric(
    "vidgen.evals.edits:similarity",
    "cosine of edited and input picture in DINO",
    media="image", against="pairs", extractors=("dino",), tensor="cls",
  ),
  "l1": Metric(
    "vidgen.evals.pairs:l1",
    "mean absolute difference of pixels, of 1, to the item of the same name",
    media="image", against="pairs",
  ),
  "psnr": Metric(
    "vidgen.evals.pairs:psnr",
    "peak signal-to-noise ratio in dB to the item of the same name, mean over frames and clips",
    media="image", against="pairs",
  ),
  "ssim": Metric(
    "vidgen.evals.pairs:ssim",
    "structural similarity to the item of the same name",
    media="image", against="pairs", conventions=("mean", "gray"),
  ),
  "lpips": Metric(
    "vidgen.evals.pairs:lpips",
    "LPIPS 0.1 to the item of the same name",
    media="image", against="pairs", extractors=("lpips",),
  ),
  "fad": Metric(
    "vidgen.evals.sounds:fad",
    "Frechet distance of sounds to a reference set, over windows of VGGish",
    media="audio", extractors=("vggish",), tensor="embedding", keeps="moments",
  ),
  "fd_panns": Metric(
    "vidgen.evals.sounds:fd_panns",
    "Frechet distance of sounds to a reference set, over Cnn14; not FAD",
    media="audio", extractors=("cnn14",), tensor="embedding", keeps="moments", minimum=SMALL,
  ),
  "audio_kl": Metric(
    "vidgen.evals.sounds:audio_kl",
    "divergence of the classes that Cnn14 hears, from the sound of the same name",
    media="audio", against="pairs", extractors=("cnn14",), tensor="logits",
    conventions=("softmax", "sigmoid"),
  ),
  "win_rate": Metric(
    "vidgen.evals.votes:win_rate",
    "net win rate of one system over another, from a file of votes",
    media="votes", against="", conventions=("majority", "mean"),
  ),
}  # fmt: skip


def parse_metrics(names: str) -> list[str]:
  """The metrics in a comma-separated list.

  Raises:
    ConfigError: one is unknown, named twice, or none is named.
  """
  chosen = [name.strip() for name in names.split(",") if name.strip()]
  for name in chosen:
    if name not in METRICS:
      raise ConfigError(f"unknown metric {name!r}; known are {', '.join(METRICS)}")
  if not chosen or len(set(chosen)) < len(chosen):
    raise ConfigError(f"--metrics {names!r}: name each metric once; known are {', '.join(METRICS)}")
  return chosen


def weight_names() -> tuple[str, ...]:
  """The names that `--weights` knows."""
  return tuple(n for name, weights in EXTRACTORS.items() for n in (name, *weights.beside))


def help_lines(metrics: Sequence[str] | None = None) -> list[str]:
  """A line for each metric: its name and what it says."""
  names = list(METRICS) if metrics is None else list(metrics)
  width = max(map(len, names))
  return [f"{name:{width}}  {METRICS[name].help}" for name in names]
