"""Movie Gen Video, supervised fine-tuning on curated clips (the paper's section on finetuning).

  vidgen train --config configs/movie_gen/sft.py:30b --data DIR --workdir SFT_1 \\
    --start-from T2V_768_4 --config.inputs.autoencoder.workdir=TAE
  vidgen average SFT_1 SFT_2 SFT_3 --out SFT

Variant: 30b. Clips of 10.6 to 16 seconds, half of them of 16 s at 16 frames per second, the others
at 24, all of 256 frames. The paper gives the cosine decay, the 512 GPUs and that batches are small;
batch, learning rate, warm-up and iterations are not given by it, and are placeholders to be chosen
by the loss on held-out clips. The model that is shipped is the plain average of several such runs,
of different data, settings and checkpoints of pre-training. Meant for v5p or H100 pods
(sft.plans.json).
"""

import ml_collections

# height, width; the last two are not given by the paper.
SHAPES = [(768, 768), (576, 1024), (1024, 576), (640, 896), (896, 640)]

# Half of the batches are the middle 16 s of clips that last as long, half the middle 256 frames at
# 24 a second of shorter ones; within a half, shapes are mixed by how many clips they have.
SLOW = {"fps": 16.0, "group": "16fps", "min_seconds": 16.0, "min_rate": 16.0}
FAST = {"fps": 24.0, "group": "24fps", "min_seconds": 256 / 24, "max_seconds": 16.0,
        "min_rate": 24.0}  # fmt: skip

VARIANTS = ("30b",)


def get_config(arg: str = "30b") -> ml_collections.ConfigDict:
  """The config of variant `arg`."""
  config = {"30b": full}[arg]()
  return ml_collections.ConfigDict({**config, "name": f"movie_gen_sft_{arg}"})


def full() -> dict:
  """The model of t2v_768.py; a batch has one shape, and clips of one rate."""
  shapes = [
    {"name": "video" if h == w else f"video_{h}x{w}", "frames": 256, "height": h, "width": w}
    for h, w in SHAPES
  ]
  slow = [{**shape, "subset": "video", **SLOW} for shape in shapes]
  fast = [{**b, "name": f"{b['name']}_24fps", **FAST} for b in slow]
  return {
    "stage": {
      "name": "movie_gen/t2v",
      "fields": {"max_grid": [32, 96, 96], "remat": "names", "buckets": shapes},
    },
    "inputs": {
      "buckets": slow + fast,
      "prefix": ["fps"],
      "temporal_crop": "center",
      # neither is given by the paper: at most a quarter wider or taller; nothing is enlarged
      "aspect_tolerance": 0.25,
      "max_upsampling": 1.0,
    },
    "train": {
      "steps": 10_000,  # not given by the paper
      "batch_size": 64,  # not given by the paper
      "save_every": 100,
      "eval_every": 100,
      # the rate is not given by the paper: that of the last phase of pre-training
      "optimizer": {"learning_rate": 1e-5, "warmup_steps": 500, "decay": "cosine"},
    },
    "topology": "v5p:8x8x8",
    "mesh": {"data": 1, "fsdp": -1, "context": 4, "tensor": 2},
    "sample": {"steps": 50, "guidance_scale": 7.5, "linear_steps": 250},
  }
