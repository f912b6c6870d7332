"""Edit triplets, identities, sounds and the files of each subset."""

import dataclasses
import io
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from vidgen.evals.shapes_identity import identify, read_cells, read_portrait
from vidgen.evals.shapes_sound import read_sound
from vidgen.inputs.decode import decode_audio, decode_video
from vidgen.media.audio import decode_wav
from vidgen.shapes_world import WorldSpec, attributes, is_held_out, render, triples
from vidgen.shapes_world.edits import TASKS, sample_edit
from vidgen.shapes_world.emblem import pattern, sample_emblem
from vidgen.shapes_world.files import SUBSETS, ShapesWorldFiles
from vidgen.shapes_world.identity import CLIPS_PER_PERSON, sample_person
from vidgen.shapes_world.render import area_downsample
from vidgen.shapes_world.sound import SAMPLE_RATE, impact
from vidgen.shapes_world.world import BACKGROUNDS, COLOURS, SHAPES, is_inside

SPEC, FILES = WorldSpec(), ShapesWorldFiles()
CHANGED = {  # what a task may change in the figure
  "recolour": {"colour"},
  "reshape": {"shape"},
  "resize": {"size", "y"},
  "motion": {"motion", "speed"},
  "speed": {"speed"},
}


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_an_edit_changes_what_its_instruction_says_and_nothing_else(split):
  seen = Counter()
  for i in range(240):
    edit = sample_edit(SPEC, seed=0, split=split, index=i)
    before, after = edit.before, edit.after
    seen[edit.task] += 1
    if edit.task in ("add", "remove"):
      whole, part = (after, before) if edit.task == "add" else (before, after)
      assert part.background == whole.background
      assert len(whole.figures) == 2 and len(part.figures) == 1
      assert part.figures[0] in whole.figures
      other = next(f for f in whole.figures if f not in part.figures)
      assert other.colour in edit.instruction and other.shape in edit.instruction
    elif edit.task == "background":
      assert before.figures == after.figures and before.background != after.background
      assert after.background in edit.instruction
    else:
      assert before.background == after.background
      old, new = (dataclasses.asdict(clip.figures[0]) for clip in (before, after))
      changed = {name for name in old if old[name] != new[name]}
      main = CHANGED[edit.task] & {"colour", "shape", "size", "motion", "speed"}
      assert changed <= CHANGED[edit.task] and changed & main
      if edit.task in ("recolour", "reshape", "resize"):
        assert new[next(iter(main))] in edit.instruction
    for clip in (before, after):
      assert all(is_inside(f, seconds=SPEC.seconds) for f in clip.figures)
  assert set(seen) == set(TASKS) and len(set(seen.values())) == 1


def test_edits_keep_the_split():
  for i in range(160):
    train = sample_edit(SPEC, seed=1, index=i)
    for clip in (train.before, train.after):
      assert all((f.shape, f.colour, f.motion) in triples("train") for f in clip.figures)
    held = sample_edit(SPEC, seed=1, split="held_out", index=i)
    assert any(is_held_out(f.shape, f.colour, f.motion) for f in held.after.figures)


def test_a_recolouring_changes_the_pixels_of_the_figure_alone():
  edit = sample_edit(SPEC, seed=2, index=TASKS.index("recolour"))
  before, after = (render(clip, SPEC).astype(int) for clip in (edit.before, edit.after))
  track = edit.before.figures[0].positions(np.arange(16) / 8) * 64
  radius = 34 / 2
  at = np.arange(64) + 0.5
  for frame, (x, y) in enumerate(track):
    far = (np.abs(at - y)[:, None] > radius) | (np.abs(at - x)[None, :] > radius)
    assert (before[frame] == after[frame])[far].all()
  assert (before != after).any()


def test_the_clips_of_a_person_differ_in_motion_and_background():
  for start in range(0, 40, CLIPS_PER_PERSON):
    clips = [sample_person(SPEC, seed=0, index=start + k) for k in range(CLIPS_PER_PERSON)]
    assert len({person for person, _ in clips}) == 1
    assert len({clip.background for _, clip in clips}) == CLIPS_PER_PERSON
    assert len({clip.figures[0].motion for _, clip in clips}) == CLIPS_PER_PERSON
    assert all(is_inside(clip.figures[0], seconds=2.0) for _, clip in clips)


def test_held_out_persons_are_strangers():
  rng = np.random.default_rng(0)
  people = {s: {sample_emblem(rng, split=s) for _ in range(300)} for s in ("train", "held_out")}
  assert not people["train"] & people["held_out"]
  for person in people["train"]:
    cells = pattern(person)
    assert (cells == cells[:, ::-1]).all() and 0 < cells.sum() < 25


@pytest.fixture(scope="module")
def people():
  """Clips (after MP4) and portraits (after JPEG) of twelve persons."""
  clips, portraits = [], []
  for i in range(12 * CLIPS_PER_PERSON):
    record = FILES.record("identity", seed=3, split="train", index=i, key="k")
    if i % CLIPS_PER_PERSON == 0:
      portraits.append(np.asarray(Image.open(io.BytesIO(record.files["jpg"]))))
    if i % CLIPS_PER_PERSON < 2:
      clips.append(decode_video(record.files["mp4"]).frames)
  return clips, portraits


def test_a_person_is_recognised_by_the_portrait(people):
  clips, portraits = people
  gallery = [read_portrait(p) for p in portraits]
  for i, clip in enumerate(clips):
    for video in (clip, area_downsample(clip, size=16, frames=8)):
      seen = read_cells(video)
      assert int(np.argmin([np.abs(seen - cells).mean() for cells in gallery])) == i // 2
  assert identify(clips[4], portraits) == 2


def test_a_stranger_and_an_empty_clip_are_not_recognised(people):
  clips, portraits = people
  assert identify(clips[0], portraits[1:]) is None
  assert identify(np.full((16, 64, 64, 3), 128, np.uint8), portraits) is None


def test_impacts_are_heard_when_they_happen_after_aac():
  wrong = bouncing = 0
  for i in range(40):
    record = FILES.record("video", seed=8, split="train", index=i, key="k")
    heard = read_sound(decode_audio(record.files["mp4"]))
    wanted, facts = record.columns["impacts"], record.columns["attributes"]
    assert bool(wanted) == (facts["motion"] == "bouncing")
    assert len(heard.impacts) == len(wanted)
    assert np.allclose(heard.impacts, wanted, atol=0.005)
    if wanted:
      bouncing += 1
      wrong += (heard.shape, heard.colour) != (facts["shape"], facts["colour"])
  assert bouncing >= 4 and not wrong


def test_every_shape_and_colour_has_its_own_sound():
  for shape in SHAPES:
    for colour in COLOURS:
      sound = np.concatenate([np.zeros(4800, np.float32), impact(shape, colour)])
      heard = read_sound(sound)
      assert (heard.shape, heard.colour, len(heard.impacts)) == (shape, colour, 1)
      assert np.abs(sound).max() <= 1


def test_noise_without_a_rise_is_no_impact():
  rng = np.random.default_rng(0)
  assert read_sound(rng.normal(0, 0.1, 96_000).astype(np.float32)).impacts in ((), (0.0,))
  assert read_sound(np.zeros(96_000, np.float32)).impacts == ()


SUFFIXES = {
  "video": {"mp4"},
  "image": {"jpg"},
  "audio": {"wav"},
  "edit": {"input.mp4", "output.mp4"},
  "identity": {"mp4", "jpg"},
}


@pytest.mark.parametrize("subset", SUBSETS)
def test_records_are_the_same_bytes_whatever_came_before(subset):
  def make(index):
    return FILES.record(subset, seed=5, split="held_out", index=index, key=f"{index:09d}")

  first = [make(i).members() for i in range(8)]
  clutter = [np.random.default_rng(i).bytes(10_000 + i) for i in range(50)]
  again = [make(i).members() for i in reversed(range(8))][::-1]
  assert first == again and clutter
  assert set(make(0).files) == SUFFIXES[subset]
  assert len({json.dumps(m["txt"].decode()) for m in first}) > 3


def test_an_image_names_nothing_that_moves():
  for i in range(30):
    record = FILES.record("image", seed=5, split="train", index=i, key="k")
    facts = record.columns["attributes"]
    assert facts["motion"] is None and facts["speed"] is None
    assert facts["shape"] in record.caption and facts["background"] in record.caption
    assert not any(word in record.caption for word in ("moving", "bouncing", "still"))


def test_the_sounds_of_the_audio_subset_have_the_impacts_they_list():
  for i in range(10):
    record = FILES.record("audio", seed=5, split="train", index=i, key="k")
    sound = decode_wav(record.files["wav"])
    assert sound.sample_rate == SAMPLE_RATE and sound.samples.shape == (96_000, 1)
    heard = read_sound(sound.samples[:, 0])
    assert np.allclose(heard.impacts, record.columns["impacts"], atol=0.003)
    assert heard.colour == record.columns["attributes"]["colour"]


def test_prompts_are_held_out_spread_evenly_and_distinct():
  prompts = FILES.prompts(seed=0, count=270)
  assert len({p["key"] for p in prompts}) == len({p["prompt"] for p in prompts}) == 270
  triple = [tuple(p["attributes"][n] for n in ("shape", "colour", "motion")) for p in prompts]
  place = [p["attributes"]["background"] for p in prompts]
  assert set(triple) == set(triples("held_out"))
  assert set(Counter(zip(triple, place, strict=True)).values()) == {3}
  assert len(Counter(zip(triple, place, strict=True))) == 18 * len(BACKGROUNDS)
  few = Counter(triple[:64])
  assert len(few) == 18 and max(few.values()) - min(few.values()) == 1
  assert all(p["attributes"]["count"] == 1 for p in prompts)


def test_attributes_of_the_record_are_those_of_the_clip():
  edit = FILES.record("edit", seed=6, split="train", index=0, key="k")
  drawn = sample_edit(SPEC, seed=6, index=0)
  assert edit.columns["attributes"]["output"] == attributes(drawn.after)
  assert edit.caption == drawn.instruction
