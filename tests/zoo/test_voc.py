"""A Pascal VOC annotation is read as written, and refused with everything that is wrong in it."""

from pathlib import Path

import pytest
from PIL import Image

from zoo.errors import DataError
from zoo.voc import ORIENTATION, VocAnnotation, VocObject, check_picture, read_annotation

CLASSES = ("bird", "cat", "dog")
SIZE = "<size><width>500</width><height>375</height><depth>3</depth></size>"


def thing(name: str = "cat", box: str = "8 12 352 375", extra: str = "<difficult>0</difficult>") -> str:
    named = zip(("xmin", "ymin", "xmax", "ymax"), box.split(), strict=False)  # some tests leave corners out
    corners = "".join(f"<{corner}>{value}</{corner}>" for corner, value in named)
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


@pytest.fixture
def annotation(tmp_path: Path) -> Path:
    return tmp_path / "000001.xml"


def write(path: Path, *parts: str) -> Path:
    path.write_text(f"<annotation><filename>1.jpg</filename>{''.join(parts)}</annotation>")
    return path


def problems(path: Path) -> list[str]:
    with pytest.raises(DataError) as error:
        read_annotation(path, CLASSES)
    title, *lines = str(error.value).splitlines()
    assert str(path) in title
    return [line.removeprefix("  - ") for line in lines] or [title]


def test_objects_are_read_in_order_with_their_boxes_untouched(annotation: Path) -> None:
    write(annotation, SIZE, thing("dog", "1 1 500 375"), thing("bird", extra="<difficult>1</difficult>"))
    assert read_annotation(annotation, CLASSES) == VocAnnotation(
        500, 375, (VocObject(2, (1, 1, 500, 375), False), VocObject(0, (8, 12, 352, 375), True))
    )


def test_no_difficult_means_no_and_coordinates_may_have_decimals(annotation: Path) -> None:
    write(annotation, SIZE, thing(box="45.70 1 46.9 2", extra=""))
    assert read_annotation(annotation, CLASSES).objects == (VocObject(1, (45.7, 1, 46.9, 2), False),)


def test_the_box_of_a_part_is_not_the_objects(annotation: Path) -> None:
    head = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    write(annotation, SIZE, thing(extra=head))
    assert read_annotation(annotation, CLASSES).objects == (VocObject(1, (8, 12, 352, 375), False),)


def test_an_image_may_have_no_object(annotation: Path) -> None:
    assert read_annotation(write(annotation, SIZE), CLASSES) == VocAnnotation(500, 375, ())


@pytest.mark.parametrize(
    ("box", "found"),
    [
        ("-1 1 500 375", "x within 1…500, found -1…500"),
        ("1 -0.5 500 375", "y within 1…375, found -0.5…375"),
        ("1 1 502 375", "x within 1…500, found 1…502"),
        ("1 1 500 376.2", "y within 1…375, found 1…376.2"),
    ],
)
def test_a_box_outside_its_image_is_refused_and_one_that_fills_it_is_not(
    annotation: Path, box: str, found: str
) -> None:
    write(annotation, SIZE, thing(box=box))
    assert problems(annotation) == [f"object 1: expected {found}"]
    for corners in ((1, 1, 500, 375), (0, 0, 501, 376)):  # the whole image; rounded outwards
        write(annotation, SIZE, thing(box=" ".join(map(str, corners))))
        assert read_annotation(annotation, CLASSES).objects[0].box == corners


def test_a_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "1.jpg"
    Image.new("RGB", (20, 10)).save(path)
    check_picture(path, width=20, height=10)
    Image.new("RGB", (10, 20)).save(path)
    with pytest.raises(DataError, match=r"1.jpg: expected 20 x 10 pixels as its annotation says, found 10 x 20"):
        check_picture(path, width=20, height=10)
    lying = Image.Exif()
    lying[ORIENTATION] = 6
    Image.new("RGB", (10, 20)).save(path, exif=lying)  # the engine turns it
    check_picture(path, width=20, height=10)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "1.jpg"
    with pytest.raises(DataError, match=r"1.jpg: the file has vanished since the dataset was listed; restore it."):
        check_picture(path, width=20, height=10)
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1.jpg: expected an image, found something PIL cannot identify"):
        check_picture(path, width=20, height=10)


@pytest.mark.parametrize("name", ["1.jpg", "1.png"])
def test_a_picture_that_is_cut_off_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    Image.effect_noise((200, 100), 90).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=f"^{path}: the image is cut off .*; restore the file.$"):
        check_picture(path, width=200, height=100)
    path.write_bytes(content + b"other bytes")
    check_picture(path, width=200, height=100)


def test_all_problems_of_a_file_are_told_at_once(annotation: Path) -> None:
    write(
        annotation,
        "<size><width>500</width></size>",
        thing("yeti"),
        thing("unicorn", "8 12 x"),
        thing("cat", "9 12 9 11"),
        thing("dog", "-1 12 502 990", extra="<difficult>maybe</difficult>"),
    )
    assert problems(annotation) == [
        "size/height: expected a number of pixels, found none",
        "unknown class 'unicorn', 'yeti': expected one of bird, cat, dog",
        "object 2: expected a bndbox of four numbers, found xmin '8', ymin '12', xmax 'x', ymax none",
        "object 3: expected xmin < xmax, found 9 and 9",
        "object 3: expected ymin < ymax, found 12 and 11",
        "object 4: expected x within 1…500, found -1…502",
        "object 4: difficult: expected 0 or 1, found 'maybe'",
    ]


@pytest.mark.parametrize("width", ["0", "-5", "12.5", "nan", "inf", "wide", ""])
def test_a_width_that_is_none_is_refused(annotation: Path, width: str) -> None:
    write(annotation, SIZE.replace("500", width), thing())
    assert problems(annotation) == [f"size/width: expected a number of pixels, found '{width}'"]


@pytest.mark.parametrize("corner", ["nan", "inf"])
def test_a_corner_must_be_finite(annotation: Path, corner: str) -> None:
    write(annotation, SIZE, thing(box=f"{corner} 1 2 3"))
    assert problems(annotation)[0].startswith("object 1: expected a bndbox of four numbers")


def test_an_object_without_a_name_or_box_is_refused(annotation: Path) -> None:
    write(annotation, SIZE, "<object/>")
    assert problems(annotation) == [
        "unknown class '': expected one of bird, cat, dog",
        "object 1: expected a bndbox of four numbers, found xmin none, ymin none, xmax none, ymax none",
    ]


@pytest.mark.parametrize(
    "content", [b"", b"not XML", b"<annotation>", b"\xff\xfe\x00", b"<?xml version='1.0' encoding='klingon'?><a/>"]
)
def test_what_is_no_xml_is_refused(annotation: Path, content: bytes) -> None:
    annotation.write_bytes(content)
    assert "expected a Pascal VOC annotation, found no XML" in problems(annotation)[0]


def test_a_missing_file_is_named(annotation: Path) -> None:
    assert "cannot be read (No such file or directory)" in problems(annotation)[0]
