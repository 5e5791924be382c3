"""The tiny world, and a Slurm of our own: these tests cancel jobs, so they run on no other."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.evaluate.conftest import tiny_files, tree

__all__ = ["tiny_files", "tree"]


def _is_ours() -> bool:
    path = Path(os.environ.get("SLURM_CONF", ""))
    if not path.is_file() or "ClusterName=zoo\n" not in path.read_text():
        return False
    return subprocess.run(["sinfo", "--noheader"], capture_output=True, timeout=60, check=False).returncode == 0


@pytest.fixture(scope="session", autouse=True)
def loopback() -> Path:
    """The folder of the Slurm that scripts/slurm_on_loopback.sh has started."""
    if not _is_ours():
        pytest.skip("needs SLURM_CONF of a running scripts/slurm_on_loopback.sh")
    return Path(os.environ["SLURM_CONF"]).parent
