"""ShapesWorld as files: what each subset holds, sample by sample.

video: `.mp4` with sound. image: `.jpg`, a frame. audio: `.wav` of a bouncing figure. edit:
`.input.mp4` and `.output.mp4`, the caption is the instruction. identity: `.mp4` and `.jpg`, the
portrait of the person in it; `CLIPS_PER_PERSON` clips in a row show the same person.

In each metadata, "attributes" are the facts of the clip (for edit: of both, under "input" and
"output"), and "impacts" the times in seconds at which a figure touches the floor.
"""

import dataclasses
import hashlib
import io
from typing import Any

import numpy as np
from PIL import Image

from vidgen.inputs.writers import Record
from vidgen.media.audio import encode_wav
from vidgen.media.video import encode_mp4
from vidgen.shapes_world import captions
from vidgen.shapes_world.edits import sample_edit
from vidgen.shapes_world.identity import CLIPS_PER_PERSON, portrait, sample_person
from vidgen.shapes_world.render import render
from vidgen.shapes_world.sound import SAMPLE_RATE, clip_sound
from vidgen.shapes_world.world import (
  BACKGROUNDS,
  Clip,
  WorldSpec,
  attributes,
  pick,
  sample_clip,
  sample_figure,
  stream,
  triples,
)

SUBSETS = ("video", "image", "audio", "edit", "identity")


@dataclasses.dataclass(frozen=True)
class ShapesWorldFiles:
  """Makes the records of a ShapesWorld data set. `crf`: quality of the H.264, 0 to 51."""

  world: WorldSpec = dataclasses.field(default_factory=WorldSpec)
  crf: int = 18

  @property
  def subsets(self) -> tuple[str, ...]:
    """The subsets that there are."""
    return SUBSETS

  def record(self, subset: str, *, seed: int, split: str, index: int, key: str) -> Record:
    """Sample `index` of a subset: a function of the arguments alone."""
    make = {
      "video": self._video,
      "image": self._image,
      "audio": self._audio,
      "edit": self._edit,
      "identity": self._identity,
    }[subset]
    files, caption, facts, measured = make(seed, split, index)
    columns = {"url": f"shapes-world://{seed}/{subset}/{split}/{index}", "caption": caption}
    return Record(key, files, caption, {**columns, **facts}, measured)

  def prompts(self, *, seed: int, count: int) -> list[dict[str, Any]]:
    """Held-out captions of one figure: "key", "prompt", "attributes" (None: not said).

    However few of them are used, they are spread evenly over the held-out triples and the
    backgrounds: five times 18 go through all pairs, and then again with other words.
    """
    held, places = triples("held_out"), tuple(BACKGROUNDS)
    prompts, seen = [], set()
    for i in range(count):
      rng = stream(seed, split="held_out", index=i, purpose="prompt")
      background = places[(i + i // len(held)) % len(places)]
      for _ in range(32):  # with few templates the words may run out
        figure = sample_figure(rng, held[i % len(held)], seconds=self.world.seconds)
        caption = captions.draw_caption(rng, Clip(background, (figure,)), self.world)
        if caption.text not in seen:
          break
      seen.add(caption.text)
      prompts.append({"key": f"{i:05d}", "prompt": caption.text, "attributes": caption.attributes})
    return prompts

  def _mp4(self, clip: Clip) -> bytes:
    return encode_mp4(
      render(clip, self.world),
      fps=self.world.fps,
      audio=clip_sound(clip, seconds=self.world.seconds),
      sample_rate=SAMPLE_RATE,
      crf=self.crf,
    )

  def _impacts(self, clip: Clip) -> list[float]:
    return sorted(round(t, 6) for f in clip.figures for t in f.impacts(self.world.seconds))

  def _video(self, seed: int, split: str, index: int):
    clip = sample_clip(self.world, seed=seed, split=split, index=index)
    caption = captions.caption_clip(clip, self.world, seed=seed, split=split, index=index)
    data = self._mp4(clip)
    facts = {"attributes": attributes(clip), "impacts": self._impacts(clip)}
    return {"mp4": data}, caption.text, facts, self._video_measured(data)

  def _image(self, seed: int, split: str, index: int):
    clip = sample_clip(self.world, seed=seed, split=split, index=index, purpose="image")
    moment = int(stream(seed, split=split, index=index, purpose="caption").integers(2**31))
    picture = render(clip, self.world, frames=[moment % self.world.frames])[0]
    template = captions.IMAGE_TEMPLATES[len(clip.figures) - 1]
    caption = captions.word(clip, template, stated=("size",))
    facts = attributes(clip)
    for group in (facts, facts.get("second", {})):  # a picture does not show these
      group |= {name: None for name in ("motion", "speed") if name in group}
    data = encode_jpeg(picture)
    return {"jpg": data}, caption.text, {"attributes": facts}, _image_measured(picture, data)

  def _audio(self, seed: int, split: str, index: int):
    rng = stream(seed, split=split, index=index, purpose="sound")
    triple = pick(rng, tuple(t for t in triples(split) if t[2] == "bouncing"))
    figure = sample_figure(rng, triple, seconds=self.world.seconds)
    clip = Clip(str(pick(rng, tuple(BACKGROUNDS))), (figure,))
    sound = clip_sound(clip, seconds=self.world.seconds)
    caption = captions.word(clip, captions.SOUND_TEMPLATE, stated=("speed",)).text
    heard = {name: attributes(clip)[name] for name in ("shape", "colour", "motion", "speed")}
    measured = {
      "sample_rate": SAMPLE_RATE,
      "channels": 1,
      "duration": len(sound) / SAMPLE_RATE,
    }
    facts = {"attributes": heard, "impacts": self._impacts(clip)}
    return {"wav": encode_wav(sound, sample_rate=SAMPLE_RATE)}, caption, facts, measured

  def _edit(self, seed: int, split: str, index: int):
    edit = sample_edit(self.world, seed=seed, split=split, index=index)
    clips = {"input": edit.before, "output": edit.after}
    files = {f"{name}.mp4": self._mp4(clip) for name, clip in clips.items()}
    facts = {
      "task": edit.task,
      "input_caption": captions.describe(edit.before),
      "output_caption": captions.describe(edit.after),
      "attributes": {name: attributes(clip) for name, clip in clips.items()},
    }
    return files, edit.instruction, facts, self._video_measured(files["output.mp4"])

  def _identity(self, seed: int, split: str, index: int):
    person, clip = sample_person(self.world, seed=seed, split=split, index=index)
    rng = stream(seed, split=split, index=index, purpose="caption")
    caption = captions.word(clip, pick(rng, captions.PERSON_TEMPLATES), stated=("speed",)).text
    data, picture = self._mp4(clip), portrait(person, side=2 * self.world.height)
    facts = {
      "identity": index // CLIPS_PER_PERSON,
      "emblem": person,
      "attributes": attributes(clip),
      "impacts": self._impacts(clip),
    }
    files = {"mp4": data, "jpg": encode_jpeg(picture)}
    return files, caption, facts, self._video_measured(data)

  def _video_measured(self, data: bytes) -> dict[str, Any]:
    """What video2dataset notes of a video, in ffprobe's words."""
    world, duration = self.world, f"{self.world.seconds:.6f}"
    picture = {
      "index": 0,
      "codec_name": "h264",
      "codec_type": "video",
      "width": world.width,
      "height": world.height,
      "pix_fmt": "yuv420p",
      "r_frame_rate": f"{world.fps:g}/1",
      "nb_frames": str(world.frames),
      "duration": duration,
    }
    sound = {
      "index": 1,
      "codec_name": "aac",
      "codec_type": "audio",
      "sample_rate": str(SAMPLE_RATE),
      "channels": 1,
      "duration": duration,
    }
    form = {"format_name": "mov,mp4,m4a,3gp,3g2,mj2", "duration": duration, "size": str(len(data))}
    return {
      "yt_meta_dict": None,
      "video_metadata": {"streams": [picture, sound], "format": {"nb_streams": 2, **form}},
      "clips": [[0.0, world.seconds]],
    }


def encode_jpeg(picture: np.ndarray) -> bytes:
  """A JPEG of [h, w, 3] bytes, colour at full resolution."""
  buffer = io.BytesIO()
  Image.fromarray(picture).save(buffer, "JPEG", quality=95, subsampling=0)
  return buffer.getvalue()


def _image_measured(picture: np.ndarray, data: bytes) -> dict[str, Any]:
  """What img2dataset notes of an image."""
  height, width, _ = picture.shape
  return {
    "width": width,
    "height": height,
    "original_width": width,
    "original_height": height,
    "exif": "{}",
    "sha256": hashlib.sha256(data).hexdigest(),
  }
