"""How does the small world look as Pascal VOC 2007 and 2012?

    VOCdevkit/VOC2007/JPEGImages/000001.jpg            VOC2012's are called 2012_000001.jpg
    …/Annotations/000001.xml                           boxes: integers from 1, the last pixel included
    …/ImageSets/Main/{train,val,trainval,test}.txt     ids; VOC2012 has no test, as its labels were never given out
    …/ImageSets/Main/zero_train.txt …                  "id  1", "id -1", "id  0": there, not there, difficult ones only
    …/ImageSets/Segmentation/{train,val,trainval}.txt
    …/SegmentationClass/000001.png                     colour map; 0 ground, 1 + class, 255 borders and difficult
    VOCdevkit/VOC2012/ImageSets/Segmentation/aug.txt   more training ids, masks only in SegmentationClassAug, as the
    …/SegmentationClassAug/2012_000001.png             extra annotations that segmentation benchmarks train on

Main's train and val are both training data (detection trains on trainval of both years and tests on VOC2007's test), so
they show scans of the world's "train" only: train one half of them, val the other. VOC2012's segmentation val is what
segmentation tests on; it therefore shows "val" scans, and its images are in no list of Main, though they have boxes.

Every sixteenth image of Main shows only small and faint digits, all difficult: the labels 0 must be met by all readers.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mini.files import link
from mini.material import CLASS_NAMES, Material, choose_scans, deal_scans, generator
from mini.scene import Scene, SceneObject, SceneStyle, draw_scene

STYLE: Final = SceneStyle(width=128, height=96, digit_size=(0.3, 0.6), contrast=0.2, saturation=0.3)
FAINT: Final = SceneStyle(width=128, height=96, digit_size=(0.2, 0.28), contrast=0.2, ink=(0.1, 0.2), saturation=0.3)
JPEG_QUALITY: Final = 90
PORTRAIT_SHARE: Final = 0.25
MOST_DIGITS: Final = 4
FAINT_EVERY, FAINT_PLACE = 16, 5
DIFFICULT_SHARE: Final = 0.06  # of the digits that nothing covers
MOSTLY_COVERED: Final = 0.5
IGNORE: Final = 255


@dataclass(frozen=True, kw_only=True)
class Split:
    """What the images of one split have in common."""

    year: str
    first: int  # the first image's number; the others follow in steps of 3, so a year's splits mix, as VOC's do
    main: str | None  # its list in ImageSets/Main
    pool: str  # the scans of deal_scans that it shows,
    part: slice  # and which of them
    segmentation: tuple[str | None, ...]  # the lists in ImageSets/Segmentation that its images are dealt to in turn


ALL, HALF, OTHER_HALF = slice(None), slice(0, None, 2), slice(1, None, 2)
TRAIN_OR_AUG = "train", "aug", "aug", "train", "aug", None
SPLITS: Final = {
    "train2007": Split(year="2007", first=1, main="train", pool="train", part=HALF, segmentation=("train", None, None)),
    "val2007": Split(year="2007", first=2, main="val", pool="train", part=OTHER_HALF, segmentation=("val", None, None)),
    "test2007": Split(year="2007", first=3, main="test", pool="val", part=ALL, segmentation=(None,)),
    "train2012": Split(year="2012", first=1, main="train", pool="train", part=HALF, segmentation=TRAIN_OR_AUG),
    "val2012": Split(year="2012", first=2, main="val", pool="train", part=OTHER_HALF, segmentation=TRAIN_OR_AUG),
    "segmentation_val2012": Split(year="2012", first=3, main=None, pool="val", part=ALL, segmentation=("val",)),
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One image to draw."""

    split: str  # a key of SPLITS
    index: int
    name: str  # VOC's id
    scans: tuple[int, ...]
    faint: bool
    segmentation: str | None  # the list in ImageSets/Segmentation that names it


def write(
    folder: Path,
    material: Material,
    *,
    seed: int,
    counts: Mapping[str, int],
    each: Callable[[Callable[[Sequence[Entry]], None], Sequence[Entry]], None],
) -> None:
    """Write both years into the new folder `folder`; `each(task, entries)` runs a task over all entries in pieces."""
    entries = [
        entry for split, count in counts.items() for entry in plan(material, seed=seed, split=split, count=count)
    ]
    for year in ("2007", "2012"):
        for name in ("Annotations", "ImageSets/Main", "ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
            (folder / f"VOC{year}" / name).mkdir(parents=True)
    (folder / "VOC2012" / "SegmentationClassAug").mkdir()
    each(partial(_draw, folder, material, seed), entries)
    for year in ("2007", "2012"):
        _write_lists(folder / f"VOC{year}", [entry for entry in entries if SPLITS[entry.split].year == year])


def plan(material: Material, *, seed: int, split: str, count: int) -> list[Entry]:
    """What each image of a split, a key of SPLITS, will show."""
    kind = SPLITS[split]
    scans = [dealt[kind.part] for dealt in deal_scans(material.labels, seed=seed)[kind.pool]]
    return [
        Entry(
            split=split,
            index=index,
            name=f"{'2012_' if kind.year == '2012' else ''}{3 * index + kind.first:06d}",
            scans=choose_scans(scans, seed=seed, dataset="VOCdevkit", split=split, index=index, most=MOST_DIGITS),
            faint=kind.main is not None and index % FAINT_EVERY == FAINT_PLACE,
            segmentation=kind.segmentation[index % len(kind.segmentation)],
        )
        for index in range(count)
    ]


def compose(material: Material, entry: Entry, *, seed: int) -> tuple[Scene, tuple[bool, ...]]:
    """An entry's scene, and which of its objects are difficult."""
    rng = generator(seed, "VOCdevkit", entry.split, entry.index)
    style = FAINT if entry.faint else STYLE
    if rng.random() < PORTRAIT_SHARE:
        style = replace(style, width=style.height, height=style.width)
    scene = draw_scene(material, style, entry.scans, rng)
    unlucky = rng.random(len(scene.objects)) < DIFFICULT_SHARE
    return scene, tuple(
        bool(entry.faint or chance or thing.covered > MOSTLY_COVERED)
        for thing, chance in zip(scene.objects, unlucky, strict=True)
    )


def class_mask(scene: Scene, difficult: Sequence[bool]) -> NDArray[np.uint8]:
    """(H, W): 0 ground, 1 + class, IGNORE on difficult objects and on two pixels at every object's border."""
    mask = np.zeros(scene.image.shape[:2], dtype=np.uint8)
    for thing, hard in zip(scene.objects, difficult, strict=True):
        mask[thing.mask] = IGNORE if hard else thing.label + 1
    for thing in scene.objects:
        picture = Image.fromarray(thing.mask.astype(np.uint8))
        # One pixel outside and one inside: the strokes of the smallest digits keep some pixels between their borders.
        mask[np.asarray(picture.filter(ImageFilter.MaxFilter(3))) > picture.filter(ImageFilter.MinFilter(3))] = IGNORE
    return mask


def colour_map() -> NDArray[np.uint8]:
    """(256, 3): VOC's colours. A label's bits, three at a time, are the highest, next … bits of red, green and blue."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    labels = np.arange(256)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((labels >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def _draw(folder: Path, material: Material, seed: int, entries: Sequence[Entry]) -> None:
    for entry in entries:
        year = folder / f"VOC{SPLITS[entry.split].year}"
        scene, difficult = compose(material, entry, seed=seed)
        Image.fromarray(scene.image).save(year / "JPEGImages" / f"{entry.name}.jpg", "JPEG", quality=JPEG_QUALITY)
        (year / "Annotations" / f"{entry.name}.xml").write_text(_annotation(entry, scene, difficult))
        if entry.segmentation is not None:
            _write_masks(year, entry, class_mask(scene, difficult))


def _write_masks(year: Path, entry: Entry, mask: NDArray[np.uint8]) -> None:
    picture = Image.fromarray(mask)
    picture.putpalette(colour_map().tobytes())
    usual, augmented = (year / name / f"{entry.name}.png" for name in ("SegmentationClass", "SegmentationClassAug"))
    picture.save(augmented if entry.segmentation == "aug" else usual, "PNG")
    if augmented.parent.is_dir() and entry.segmentation != "aug":
        link(usual, augmented)


def _annotation(entry: Entry, scene: Scene, difficult: Sequence[bool]) -> str:
    root = ElementTree.Element("annotation")
    _add(root, "folder", f"VOC{SPLITS[entry.split].year}")
    _add(root, "filename", f"{entry.name}.jpg")
    source = _add(root, "source")
    _add(source, "database", "TransferZoo small world")
    _add(source, "annotation", "TransferZoo small world")
    _add(source, "image", "drawn")
    height, width, depth = scene.image.shape
    size = _add(root, "size")
    for name, value in ("width", width), ("height", height), ("depth", depth):
        _add(size, name, value)
    _add(root, "segmented", int(entry.segmentation is not None))
    for thing, hard in zip(scene.objects, difficult, strict=True):
        _add_object(root, thing, hard)
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add_object(root: ElementTree.Element, thing: SceneObject, difficult: bool) -> None:
    element = _add(root, "object")
    _add(element, "name", CLASS_NAMES[thing.label])
    _add(element, "pose", "Unspecified")
    _add(element, "truncated", int(thing.covered > 0))
    _add(element, "difficult", int(difficult))
    x0, y0, x1, y1 = thing.box
    box = _add(element, "bndbox")
    for name, value in ("xmin", x0 + 1), ("ymin", y0 + 1), ("xmax", x1), ("ymax", y1):
        _add(box, name, value)


def _add(parent: ElementTree.Element, name: str, text: str | int | None = None) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, name)
    element.text = None if text is None else str(text)
    return element


def _write_lists(year: Path, entries: Sequence[Entry]) -> None:
    main = {name: [entry for entry in entries if SPLITS[entry.split].main == name] for name in ("train", "val", "test")}
    segmentation = {
        name: [entry for entry in entries if entry.segmentation == name] for name in ("train", "val", "aug")
    }
    for folder, lists in ("Main", main), ("Segmentation", segmentation):
        for name, members in {**lists, "trainval": [*lists["train"], *lists["val"]]}.items():
            if not members:  # VOC2012 has no test, VOC2007 no aug
                continue
            names = sorted(entry.name for entry in members)
            (year / "ImageSets" / folder / f"{name}.txt").write_text("".join(f"{one}\n" for one in names))
            if folder == "Main":
                _write_class_lists(year, name, names)


def _write_class_lists(year: Path, split: str, names: Iterable[str]) -> None:
    # Read from the annotations, because which digits are wholly covered or difficult is known once they are drawn.
    present = {name: _present(year / "Annotations" / f"{name}.xml") for name in names}
    for class_name in CLASS_NAMES:
        lines = (f"{name} {classes.get(class_name, -1):2d}\n" for name, classes in present.items())
        (year / "ImageSets" / "Main" / f"{class_name}_{split}.txt").write_text("".join(lines))


def _present(annotation: Path) -> dict[str, int]:
    """1 for the classes of which an object is not difficult, 0 for those with difficult ones only."""
    found: dict[str, int] = {}
    for element in ElementTree.parse(annotation).iterfind("object"):
        name, difficult = element.findtext("name", ""), element.findtext("difficult") == "1"
        found[name] = max(found.get(name, 0), int(not difficult))
    return found
