"""How does one file get two names? Some layouts want the same picture in two folders."""

import os
import shutil
from pathlib import Path


def link(source: Path, target: Path) -> None:
    """One file under two names; a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
