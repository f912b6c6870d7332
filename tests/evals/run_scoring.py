"""One of some processes that score two folders together; prints what it found."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
  import jax

  address, count, process, fake, real, missing = sys.argv[1:]
  jax.distributed.initialize(address, num_processes=int(count), process_id=int(process))

  from media_sets import extractor

  from vidgen.errors import VidgenError
  from vidgen.evals.clips import ClipRule
  from vidgen.evals.scoring import Session
  from vidgen.evals.settings import Settings

  settings = Settings(
    samples=Path(fake), reference=Path(real), clip=ClipRule(frames=10), allow_small=True,
    allow_missing=missing == "allow", extractors={"i3d": extractor()},
  )  # fmt: skip
  names = ["fvd", "kvd", "psnr"]
  session = Session(settings, names)
  for name in names:
    try:
      print(name, session.score(name).values)
    except VidgenError as error:
      print(name, error)
