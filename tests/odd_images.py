"""Which odd files does real data hold, and what must a loader make of them? Drawn here, so that nothing is stored.

ImageNet alone has CMYK, greyscale and EXIF-rotated JPEGs and one PNG; scraped sets add the rest. `write_odd_images`
writes one file each into a folder; `ODD_IMAGES` says what to expect. Sizes are (width, height) **as stored**: the
reference loaders (torchvision's ImageFolder, mmselfsup through Pillow) ignore EXIF orientation, so must we.
"""

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

SIZE: Final = (48, 32)  # wider than high, so that a swapped pair or an applied rotation shows
ORIENTATION: Final = 0x0112  # EXIF tag
ROTATE_90: Final = 6


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What reading a file as RGB must give."""

    size: tuple[int, int] | None  # None: it must be refused, with a message naming the file
    pixels: Callable[[], Image.Image] | None = None  # what it shows, where a wrong reading would keep the size
    tolerance: float = 12.0  # allowed mean absolute difference from `pixels`, of 255


def write_odd_images(folder: Path) -> dict[str, Path]:
    """Write every odd file into `folder`; returns name -> path, with the keys of ODD_IMAGES."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / name for name in ODD_IMAGES}
    ramp().convert("L").save(paths["grey.jpg"], quality=95)
    ramp().convert("CMYK").save(paths["cmyk.jpg"], quality=95)
    _save_rotated(paths["exif_rotated.jpg"])
    _sixteen_bit().save(paths["sixteen_bit.png"])
    ramp().resize((1, 64)).save(paths["one_wide.jpg"], quality=95)
    ramp().resize((64, 1)).save(paths["one_high.jpg"], quality=95)
    _palette().save(paths["palette_transparent.png"], transparency=0)
    _with_alpha().save(paths["alpha.png"])
    ramp().save(paths["png_named_jpeg.JPEG"], "PNG")
    paths["truncated.jpg"].write_bytes(_jpeg(ramp().resize((256, 256)))[:-2000])
    paths["huge_claim.png"].write_bytes(_huge_claim())
    paths["not_an_image.jpg"].write_text("<html>404 Not Found</html>\n")
    paths["empty.jpg"].write_bytes(b"")
    return paths


def ramp() -> Image.Image:
    """A smooth RGB picture: red grows to the right, green downwards, blue is constant."""
    width, height = SIZE
    pixels = np.full((height, width, 3), 64, dtype=np.uint8)
    pixels[:, :, 0] = np.linspace(0, 255, width).astype(np.uint8)
    pixels[:, :, 1] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    return Image.fromarray(pixels)


def grey_ramp() -> Image.Image:
    """What a greyscale file of `ramp` shows as RGB."""
    return ramp().convert("L").convert("RGB")


def _jpeg(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, "JPEG", quality=95)
    return stream.getvalue()


def _save_rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = ROTATE_90
    ramp().save(path, quality=95, exif=exif)


def _sixteen_bit() -> Image.Image:
    """Mode I;16. Pillow's own convert("RGB") clips it to white: a loader has to divide by 257."""
    return Image.fromarray(np.asarray(ramp().convert("L")).astype(np.uint16) * 257)


def _palette() -> Image.Image:
    """Mode P, where palette entry 0 is also marked as transparent. RGB readers keep its colour."""
    return ramp().quantize(64)


def _with_alpha() -> Image.Image:
    """Mode RGBA, transparent on the left. RGB readers (Pillow, cv2) drop alpha and keep the colours beneath."""
    image = ramp()
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, SIZE[0]).astype(np.uint8), (SIZE[1], 1)))
    image.putalpha(alpha)
    return image


def _huge_claim() -> bytes:
    """A PNG of a few bytes whose header claims 60,000 × 60,000 pixels: Pillow's decompression-bomb check refuses it."""
    stream = BytesIO()
    Image.new("L", (1, 1)).save(stream, "PNG")
    content = bytearray(stream.getvalue())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


ODD_IMAGES: Final[Mapping[str, Expected]] = {
    "grey.jpg": Expected(size=SIZE, pixels=grey_ramp),
    "cmyk.jpg": Expected(size=SIZE, pixels=ramp),
    "exif_rotated.jpg": Expected(size=SIZE, pixels=ramp),
    "sixteen_bit.png": Expected(size=SIZE, pixels=grey_ramp),
    "one_wide.jpg": Expected(size=(1, 64)),
    "one_high.jpg": Expected(size=(64, 1)),
    "palette_transparent.png": Expected(size=SIZE, pixels=ramp, tolerance=20),
    "alpha.png": Expected(size=SIZE, pixels=ramp),
    "png_named_jpeg.JPEG": Expected(size=SIZE, pixels=ramp),
    "truncated.jpg": Expected(size=None),
    "huge_claim.png": Expected(size=None),
    "not_an_image.jpg": Expected(size=None),
    "empty.jpg": Expected(size=None),
}
