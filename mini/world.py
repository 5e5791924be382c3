"""Is the small world there and whole, and if not, how is it built?

A world is built in a hidden sibling folder and renamed into place, so it is whole or absent. Its last file,
`mini.json`, says what it was made from and holds a hash of everything in it; a later call that finds the stamp and the
same number of files and bytes returns at once. Any other state (other seed or version, missing files) is built anew.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from mini import cityscapes, coco, imagenet, inaturalist, places205, voc
from mini.crew import hire
from mini.material import CLASS_NAMES, load_material
from zoo.errors import DataError
from zoo.files import write_atomic

Counts = Mapping[str, Mapping[str, int]]  # dataset -> split -> number of images

GENERATOR: Final = "python -m mini"
GENERATOR_VERSION: Final = 3  # raise it whenever a byte of the world changes
STAMP: Final = "mini.json"
README: Final = "README.txt"
WRITERS: Final = {
    "imagenet": imagenet.write,
    "places205": places205.write,
    "inaturalist2018": inaturalist.write,
    "VOCdevkit": voc.write,
    "coco": coco.write,
    "cityscapes": cityscapes.write,
}
FULL_COUNTS: Final[Counts] = {
    "imagenet": {"train": 12_000, "val": 2_000},
    "places205": {"train": 400, "val": 100},
    "inaturalist2018": {"train": 400, "val": 100},
    "VOCdevkit": {
        "train2007": 60,
        "val2007": 60,
        "test2007": 80,
        "train2012": 60,
        "val2012": 60,
        "segmentation_val2012": 50,
    },
    "coco": {"train2017": 40, "val2017": 24},
    "cityscapes": {"train": 20, "val": 10, "test": 4},
}
WITHOUT_LABELS: Final = {("cityscapes", "test")}  # (dataset, split): need not show all classes
README_TEXT: Final = f"""\
Made by `{GENERATOR}` (TransferZoo). Everything in this folder may be deleted; the same command makes it again.

imagenet, places205, inaturalist2018, VOCdevkit, coco and cityscapes have the layouts and file formats of ILSVRC2012,
Places205, iNaturalist 2018, Pascal VOC 2007 and 2012, COCO 2017 and Cityscapes, and none of their pictures.

Digits: scans of the "Optical Recognition of Handwritten Digits" data set (E. Alpaydin, C. Kaynak; UCI, CC BY 4.0).
Backgrounds: softened crops of two photographs by danielbuechele and vultilion (Flickr, CC BY 2.0).
Both as bundled with scikit-learn; cropped, scaled, blurred and re-coloured.
"""

log = logging.getLogger(__name__)


def build(
    root: Path,
    *,
    seed: int = 0,
    counts: Counts = FULL_COUNTS,
    workers: int = 1,
    force: bool = False,
    advance: Callable[[int], None] = lambda images: None,
) -> bool:
    """Make `root` hold the world; True if it had to be built. `advance` hears of each few images drawn.

    Raises DataError if the folder cannot be written or holds something that is not a small world.
    """
    _check_counts(counts)
    recipe = {"generator": GENERATOR, "version": GENERATOR_VERSION, "seed": seed, "counts": counts}
    root = root.resolve()  # a link to a scratch disk stays a link: its target is replaced
    try:
        if not force and is_whole(root, recipe):
            return False
        _check_replaceable(root)
        root.parent.mkdir(parents=True, exist_ok=True)
        with _only_builder(root):
            # Whoever held the lock before may have built this very world.
            if not force and is_whole(root, recipe):
                return False
            _build_and_swap(root, recipe, workers=workers, advance=advance)
    except OSError as error:
        raise DataError(
            f"cannot build the small world in {root}: {error}. Expected a folder that can be written, with 80 MB free. "
            "Free space there, or choose another place with --root."
        ) from error
    return True


def is_whole(root: Path, recipe: Mapping[str, Any]) -> bool:
    """Whether `root` holds this recipe's world, judged by its stamp and the number of files and bytes."""
    stamp = read_stamp(root)
    if stamp is None or any(stamp.get(key) != value for key, value in recipe.items()):
        return False
    sizes = [entry.stat().st_size for entry in _files(root)]
    return (len(sizes), sum(sizes)) == (stamp.get("files"), stamp.get("bytes"))


def read_stamp(root: Path) -> dict[str, Any] | None:
    """The world's stamp; None if there is none, or not one of ours."""
    try:
        stamp = json.loads((root / STAMP).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) and stamp.get("generator") == GENERATOR else None


def _check_counts(counts: Counts) -> None:
    for dataset, splits in counts.items():
        expected = list(FULL_COUNTS[dataset])
        if sorted(splits) != sorted(expected):
            raise ValueError(f"{dataset}: expected the splits {', '.join(expected)}, found {', '.join(splits)}")
        for split, count in splits.items():
            if (dataset, split) in WITHOUT_LABELS:
                if count < 1:
                    raise ValueError(f"{dataset}/{split}: expected at least one image, found {count}")
            elif count < len(CLASS_NAMES):
                raise ValueError(f"{dataset}/{split}: expected at least one image a class (10), found {count}")


def _check_replaceable(root: Path) -> None:
    """Refuse to replace what is not ours: --root may point at somebody's real data."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    readme = root / README
    marked = readme.is_file() and readme.read_bytes() == README_TEXT.encode()
    if not marked and read_stamp(root) is None:
        found = f"{sum(1 for _ in root.iterdir())} other entries" if root.is_dir() else "a file"
        raise DataError(
            f"{root}: expected a small world, an empty folder or nothing, found {found}. "
            "Nothing was touched; choose another --root, or remove it first."
        )


def _build_and_swap(root: Path, recipe: Mapping[str, Any], *, workers: int, advance: Callable[[int], None]) -> None:
    building, outdated = (root.with_name(f".{root.name}.{suffix}") for suffix in ("building", "outdated"))
    for leftover in (building, outdated):  # of a killed build: we hold the lock, so nobody is using them
        if leftover.exists():
            shutil.rmtree(leftover)
    try:
        building.mkdir()
        (building / README).write_text(README_TEXT)
        _write_datasets(building, recipe["seed"], recipe["counts"], workers=workers, advance=advance)
        write_atomic(building / STAMP, json.dumps(_stamp(building, recipe), indent=2) + "\n")
        if root.exists():
            root.rename(outdated)
        building.rename(root)
    finally:
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(outdated, ignore_errors=True)


def _write_datasets(root: Path, seed: int, counts: Counts, *, workers: int, advance: Callable[[int], None]) -> None:
    material = load_material()
    with hire(workers, advance) as each:
        for dataset, splits in counts.items():
            WRITERS[dataset](root / dataset, material, seed=seed, counts=splits, each=each)


def _stamp(root: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    total, digest = 0, hashlib.sha256()
    files = sorted(Path(entry.path) for entry in _files(root))
    for path in files:
        content = path.read_bytes()
        total += len(content)
        digest.update(f"{path.relative_to(root).as_posix()}\n{len(content)}\n".encode())
        digest.update(content)
    # The versions are told, not compared: another Pillow writes slightly other bytes, but an existing world stays good.
    made_with = {package: version(package) for package in ("numpy", "pillow", "scikit-learn")}
    return {**recipe, "files": len(files), "bytes": total, "sha256": digest.hexdigest(), "made_with": made_with}


def _files(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """All files below a folder but a world's stamp, in no fixed order."""
    # scandir, not rglob: the check that a world is whole is made before every run, over 18,000 files.
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _files(entry.path)
            elif entry.name != STAMP:
                yield entry


@contextmanager
def _only_builder(root: Path) -> Iterator[None]:
    """Hold the world's lock, waiting while another process builds. The system frees it if we are killed."""
    path = root.with_name(f".{root.name}.lock")
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.warning("another process is building %s: waiting for it", root)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    # A former holder removes its lock file, so what we locked may be a file without a name: then lock the new one.
    while not (path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())):
        os.close(descriptor)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
