"""`vidgen report`: one self-contained HTML page about a run."""

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The arguments of `vidgen report`."""
  parser.add_argument("--workdir", type=Path, required=True, help="a run, as `train` left it")
  parser.add_argument("--samples", type=Path, help="folder of `sample` (default: WORKDIR/samples)")
  parser.add_argument("--scores", type=Path, help="file of `eval` (default: WORKDIR/scores.json)")
  parser.add_argument(
    "--out", type=Path, metavar="FILE", help="the page (default: WORKDIR/report.html)"
  )
  parser.add_argument("--videos", type=int, default=16, help="samples shown at most (default: 16)")
  parser.add_argument(
    "--video-mb", type=float, default=24.0, help="size of all their videos at most (default: 24)"
  )
  parser.add_argument("--json", type=Path, metavar="FILE", help="write a summary")


def run(args: argparse.Namespace) -> int:
  """Writes the page and says where it is and what is not in it."""
  from vidgen.errors import ConfigError
  from vidgen.media.report import write_report

  if args.videos < 0 or not args.video_mb >= 0:
    raise ConfigError("--videos and --video-mb must not be negative")
  out = args.out or args.workdir / "report.html"
  try:
    summary = write_report(
      args.workdir, out=out, samples=args.samples, scores=args.scores, videos=args.videos,
      video_bytes=int(args.video_mb * 1e6),
    )  # fmt: skip
  except OSError as error:
    raise ConfigError(f"report: {error}") from error
  print(f"{out}: {summary['bytes'] / 1e6:.2f} MB, {summary['videos']} videos")
  for part, reason in summary["missing"].items():
    print(f"  without {part}: {reason}")
  if args.json:
    args.json.write_text(json.dumps(summary, indent=2) + "\n")
  return 0
