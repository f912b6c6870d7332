"""Movie Gen Video at 256 pixels: text-to-image and text-to-video, jointly (section 3.1.4).

  vidgen train --config configs/movie_gen/t2v_256.py:tiny --data DIR --workdir DIR
  vidgen train --config configs/movie_gen/t2v_256.py:30b --data DIR --workdir T2V_256 \\
    --start-from T2I_256 --config.inputs.autoencoder.workdir=TAE
  vidgen train --config configs/movie_gen/t2v_256.py:30b.2 ... --start-from T2V_256

Variants: 30b (the paper's model) and 30b.2, its second phase with twice the batch; 5b, 1b; tiny,
which learns ShapesWorld in pixel space on two CPU cores; tiny_latent, which learns it in the
latents of tae.py's tiny, from t2i_256.py's. Full sizes eat latents (16 channels,
stride 8 x 8 x 8) and the embeddings of UL2, ByT5 and MetaCLIP. A batch never mixes shapes: three
lengths in five aspect ratios, and images in the same five; a clip goes to those of its length (4 to
16 seconds) and the nearest ratio, and there are ten videos to an image. Learning rates, batch and
iterations of 30b are the paper's Table 3, but that its first phase lasts 123,000 steps there, for
which both its number of samples (173.6 million) and its total (185,000 steps) say 113,000; the
optimizer, its warm-up, weight decay and EMA are not given by the paper. Meant for v5p or H100 pods
(t2v_256.plans.json). One forward pass of 30b over 256 frames of 256 x 256 (8,192 tokens) is 0.506
PFLOP by the network's own formula.
"""

import ml_collections

# layers, width, heads, MLP width. The MLP width of 5b, and all of 1b, are not given by the paper.
SIZES = {
  "1b": (24, 1536, 16, 4096),
  "5b": (32, 3072, 24, 8192),
  "30b": (48, 6144, 48, 16384),
}

# The devices a size is meant for, and how it lies on them: context, tensor, and what a device has
# of a micro-batch. Plans for other devices are in t2v_256.plans.json.
DEVICES = {
  "1b": ("v5e:8x8", 1, 1, 24),
  "5b": ("v6e:8x16", 1, 1, 12),
  "30b": ("v5p:4x4x8", 1, 2, 12),
}

# Steps, batch in units of the first phase's.
PHASES = {"": (113_000, 1), "2": (72_000, 2)}

# height, width: about 256 x 256 pixels each; all but the square are not given by the paper.
SHAPES = [(256, 256), (192, 336), (336, 192), (224, 288), (288, 224)]

# Seconds of the clips of so many frames, spread over all of a clip: 32 to 16 of them a second. Of
# clips longer than 16 s so many seconds are cut.
LENGTHS = {128: (4.0, 8.0), 192: (8.0, 12.0), 256: (12.0, 0.0)}

# A clip goes to the nearest aspect ratio, if it is not a quarter wider or taller still (not given
# by the paper); buckets of images, and of clips, are mixed by how many samples they have.
CHOICE = {"aspect_tolerance": 0.25}

VARIANTS = ("30b", "30b.2", "5b", "1b", "tiny", "tiny_latent")

RULES = [
  ["batch", ["data", "fsdp"]],
  ["tokens", ["context", "tensor"]],
  ["sequence", "context"],
  ["embed", "fsdp"],
  ["heads", "tensor"],
  ["mlp", "tensor"],
  ["embed_out", "tensor"],
]


def get_config(arg: str = "30b") -> ml_collections.ConfigDict:
  """The config of variant `arg`, a size with or without its phase, or a tiny one."""
  size, _, phase = arg.partition(".")
  tinies = {"tiny": tiny, "tiny_latent": tiny_latent}
  config = tinies[arg]() if arg in tinies else full(size, PHASES[phase])
  return ml_collections.ConfigDict({**config, "name": f"movie_gen_t2v_256_{arg}", "rules": RULES})


def bucket(name: str, frames: int, height: int, width: int, *, fps: float, weight: float) -> dict:
  """A batch shape of the input pipeline."""
  sides = {"frames": frames, "height": height, "width": width}
  return {"name": name, "subset": "image" if frames == 1 else "video", **sides,
          "fps": fps, "weight": weight}  # fmt: skip


def choice(frames: int, group: str) -> dict:
  """Which clips are for a bucket of so many frames; 16 frames a second is the paper's least."""
  if frames == 1:
    return {"group": group}
  low, high = LENGTHS[frames]
  return {"group": group, "rate": "spread", "min_seconds": low, "max_seconds": high, "min_rate": 16}


def shape(bucket: dict) -> dict:
  """The same batch shape, as the stage knows it."""
  return {key: bucket[key] for key in ("name", "frames", "height", "width")}


def full(size: str, phase: tuple[int, int]) -> dict:
  """A model over latents; defaults of the stage are the paper's."""
  layers, width, heads, mlp_width = SIZES[size]
  topology, context, tensor, parts = DEVICES[size]
  steps, larger = phase
  buckets = []
  for frames in (256, 192, 128, 1):
    kind, weight = ("video", 1.0) if frames > 1 else ("image", 0.3)  # one image to ten videos
    for h, w in SHAPES:
      name = f"{kind}_{frames}x{h}x{w}" if (h, w) != (256, 256) else f"{kind}_{frames}"
      # the longest clips and the images go by the plain names
      name = kind if (h, w) == (256, 256) and frames in (256, 1) else name
      buckets.append(bucket(name, frames, h, w, fps=16.0, weight=weight) | choice(frames, kind))
  fields = {
    "layers": layers,
    "width": width,
    "heads": heads,
    "mlp_width": mlp_width,
    "max_grid": [32, 32, 32],
    "remat": "names",
    "buckets": [shape(b) for b in buckets],
  }
  return {
    "stage": {"name": "movie_gen/t2v", "fields": fields},
    "inputs": {"buckets": buckets, "prefix": ["fps"], **CHOICE},
    "train": {
      "steps": steps,
      "batch_size": 1536 * larger,
      "accumulate": parts * larger,
      "save_every": 50,
      "optimizer": {"learning_rate": 6e-5},
    },
    # of twice as many positions at the same resolution, the first rows are those that there were
    "start": {"positions": "keep"},
    "topology": topology,
    "mesh": {"data": 1, "fsdp": -1, "context": context, "tensor": tensor},
    "sample": {"steps": 50, "guidance_scale": 7.5, "linear_steps": 250},
  }


def tiny() -> dict:
  """ShapesWorld, 8 frames of 16 x 16 pixels; what was tried is in the system's README."""
  buckets = [bucket("video", 8, 16, 16, fps=4.0, weight=1.0)]
  fields = {
    "layers": 6,
    "width": 128,
    "heads": 4,
    "mlp_width": 352,
    "latent": None,
    "patch": [8, 2, 2],  # 64 tokens of pixels: motion within a token, outlines between them
    "max_grid": [1, 8, 8],
    "position_scale": 0.5,
    "pooled_text": True,
    "text_streams": {},
    "text_encoder": {"length": 96, "words": 16, "width": 128},
    "buckets": [shape(b) for b in buckets],
    "prediction": "data",
    "noise_floor": 0.5,
    "time_loc": -0.3,
    "dtype": "float32",
    "remat": "none",
    "scan_unroll": 6,
  }
  muon = {"name": "muon", "learning_rate": 8e-3, "warmup_steps": 20, "decay": "linear", "b2": 0.99}
  cadence = {"save_every": 200, "eval_every": 400, "sheet_every": 400}
  return {
    "stage": {"name": "movie_gen/t2v", "fields": fields},
    "inputs": {"buckets": buckets, "text_length": 96, "cache_bytes": 2**28},
    "train": {"steps": 1300, "batch_size": 64, "ema_decay": 0.99, **cadence, "optimizer": muon},
    "mesh": {"data": -1, "fsdp": 1, "context": 1, "tensor": 1},
    "sample": {"steps": 32, "guidance_scale": 4.0, "linear_steps": 64},
  }


def tiny_latent() -> dict:
  """ShapesWorld, 16 frames of 32 x 32 pixels as 2 x 4 x 4 latents, and images."""
  config = tiny()
  buckets = [
    bucket("video", 16, 32, 32, fps=16.0, weight=1.0),
    bucket("image", 1, 32, 32, fps=16.0, weight=0.1),
  ]
  fields = config["stage"]["fields"]
  del fields["latent"]
  fields |= {"patch": [1, 1, 1], "max_grid": [2, 4, 4]}
  fields["buckets"] = [shape(b) for b in buckets]
  config["inputs"] |= {"buckets": buckets, "autoencoder": {}, "temporal_crop": "center"}
  config["train"] |= {"steps": 3000, "sheet_every": 0}
  config["train"]["optimizer"] |= {"learning_rate": 4e-3}
  return config
