"""The command line as a whole: help for every verb, exit codes, and one-line errors."""

import importlib
import subprocess
import sys

import pytest

from vidgen import cli, errors


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_and_documents_exit_codes(verb, capsys):
  with pytest.raises(SystemExit) as end:
    cli.main([verb, "--help"])
  assert end.value.code == 0
  text = capsys.readouterr().out
  assert "143 preempted and saved" in text and "--debug" in text


def test_help_imports_nothing_heavy():
  code = (
    "import sys\nfrom vidgen import cli\n"
    "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
    "heavy = {'jax', 'flax', 'orbax', 'grain', 'numpy', 'av'} & set(sys.modules)\n"
    "assert not heavy, heavy"
  )
  subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
  ("error", "code"),
  [
    (errors.ConfigError, 2),
    (errors.DataError, 3),
    (errors.CheckpointError, 4),
    (errors.NonFiniteError, 5),
    (errors.Preempted, 143),
    (OSError, 1),
  ],
)
def test_typed_errors_become_one_line_and_their_exit_code(error, code, monkeypatch, capsys):
  def run(args):
    raise error("shard 00003, key 42: truncated")

  monkeypatch.setattr(importlib.import_module("vidgen.cli.inspect"), "run", run)
  assert cli.main(["inspect", "--workdir", "x"]) == code
  assert capsys.readouterr().err == "vidgen inspect: shard 00003, key 42: truncated\n"
  assert cli.main(["inspect", "--workdir", "x", "--debug"]) == code
  assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_one_line_and_130(monkeypatch, capsys):
  def run(args):
    raise KeyboardInterrupt

  monkeypatch.setattr(importlib.import_module("vidgen.cli.inspect"), "run", run)
  assert cli.main(["inspect", "--workdir", "x"]) == 130
  assert capsys.readouterr().err == "vidgen inspect: interrupted\n"


def test_unknown_arguments_and_verbs_end_with_2(capsys):
  assert cli.main(["inspect", "--workdir", "x", "--nonsense"]) == 2
  assert "unknown argument '--nonsense'" in capsys.readouterr().err
  for arguments in (["fly"], []):
    with pytest.raises(SystemExit) as end:
      cli.main(arguments)
    assert end.value.code == 2


def test_a_bucket_is_not_taken_for_a_folder(capsys):
  assert cli.main(["inspect", "--workdir", "gs://bucket/run"]) == 2
  assert "mount the bucket" in capsys.readouterr().err
