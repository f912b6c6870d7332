"""The command line: `vidgen VERB`.

Each verb is a module here with `add_arguments(parser)` and `run(args)`.
"""

import argparse
import importlib
import sys
import traceback
from collections.abc import Sequence

from vidgen import __version__
from vidgen.errors import ConfigError, VidgenError

# verb -> one line of help; its module is vidgen.cli.<verb>, imported only when it is called
VERBS = {
  "data": "build a dataset from a recipe, or check one",
  "train": "train a stage; resumes by itself",
  "average": "the mean of the parameters of several runs",
  "sample": "generate videos from prompts",
  "cascade": "generate videos through a chain of runs, each making more of the last one's",
  "decode": "saved latents to videos",
  "upsample": "make samples larger",
  "reconstruct": "held-out clips through an autoencoder, to score beside what it was given",
  "eval": "score generated samples",
  "plan": "compile a config for accelerators that are not there",
  "export": "write weights or a runnable program for serving",
  "inspect": "show step, config, parameters and digests",
  "report": "write one self-contained HTML page about a run",
  "bench": "time the train step, networks, sampling, loading and checkpoints",
}

QUICK = ("train", "bench")  # their processes have the settings of `dist.flags` from the start

EXIT_CODES = """exit codes: 0 done; 1 any other failure, nothing saved for it;
2 bad usage or config; 3 bad data; 4 bad or mismatched checkpoint; 5 non-finite training;
6 hung: no step for train.hang_seconds, nothing saved for it;
130 interrupted (Ctrl-C); 143 preempted and saved"""
INTERRUPTED = 130  # as a shell says it of SIGINT
OF_URLS = ("--rewriter",)  # the options whose value is a URL


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs one verb, of the command line if there are no `arguments`, and returns its exit code."""
  if arguments is None and sys.argv[1:2] and sys.argv[1] in QUICK:
    from vidgen.dist import flags

    flags.restart()
  arguments = list(sys.argv[1:] if arguments is None else arguments)
  parser = argparse.ArgumentParser(
    prog="vidgen",
    description="Train, sample, evaluate and export text-to-video systems in JAX.",
    epilog=EXIT_CODES,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--version", action="version", version=f"vidgen {__version__}")
  verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
  wanted = next((a for a in arguments if not a.startswith("-")), None)
  for verb, summary in VERBS.items():
    sub = verbs.add_parser(verb, help=summary, description=summary, epilog=EXIT_CODES)
    if verb == wanted:
      importlib.import_module(f"vidgen.cli.{verb}").add_arguments(sub)
    sub.add_argument("--debug", action="store_true", help="show tracebacks")
  args, rest = parser.parse_known_args(arguments)
  try:
    args.overrides = rest
    if rest and not getattr(args, "takes_overrides", False):
      raise ConfigError(f"unknown argument {rest[0]!r}; see vidgen {args.verb} --help")
    bucket = next((a for a in _paths(arguments) if "://" in a), None)
    if bucket:
      raise ConfigError(f"{bucket}: URLs are not paths; mount the bucket and name that folder")
    return importlib.import_module(f"vidgen.cli.{args.verb}").run(args) or 0
  except VidgenError as error:
    if args.debug:
      traceback.print_exc()
    print(f"vidgen {args.verb}: {error}", file=sys.stderr)
    return error.exit_code
  except OSError as error:  # a full disk, a file that may not be read: it says which
    if args.debug:
      traceback.print_exc()
    print(f"vidgen {args.verb}: {error}", file=sys.stderr)
    return VidgenError.exit_code
  except KeyboardInterrupt:
    print(f"vidgen {args.verb}: interrupted", file=sys.stderr)
    return INTERRUPTED


def _paths(arguments: Sequence[str]) -> list[str]:
  """The arguments less the values of options that take a URL."""
  pairs = zip(["", *arguments], arguments, strict=False)
  return [a for before, a in pairs if before not in OF_URLS and a.split("=")[0] not in OF_URLS]
