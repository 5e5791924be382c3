"""Is a file an image, and is all of it there? Told from its header and its last bytes, before anything trains on it.

A file that was cut off keeps its header. Some readers then fill the rest with grey and say nothing (cv2 before 5),
others fail hours later.
"""

import os
from pathlib import Path
from typing import Final

from PIL import Image, UnidentifiedImageError

from zoo.errors import DataError

# what PIL raises at a file that is damaged, or no image
UNREADABLE: Final = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_ENDS: Final = {  # of a whole file, by its first two bytes; other formats are not looked at
    b"\xff\xd8": b"\xff\xd9",  # JPEG's end of image
    b"\x89P": b"\0\0\0\0IEND\xaeB`\x82",  # PNG's last chunk
}


def opened(path: Path) -> Image.Image:
    """The image at `path`, of which only the header has been read. Raises DataError naming the file."""
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise DataError(f"{path}: the file has vanished since the dataset was listed; restore it.") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: expected an image, found something PIL cannot identify; replace the file.") from None
    except UNREADABLE as error:
        raise DataError(f"{path}: the image cannot be decoded ({error}); replace the file.") from error


def check_whole(path: Path) -> None:
    """Raise DataError naming the file where a JPEG or PNG is cut off.

    Its first and last bytes are read. Only one that does not end as its format does is decoded: it may be whole, with
    other bytes behind its end.
    """
    try:
        with path.open("rb") as stream:
            end = _ENDS.get(stream.read(2))
            if end is None:
                return
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - len(end)))
            if stream.read() == end:
                return
        if end not in path.read_bytes():  # PIL does without a PNG's, cv2 does not
            raise DataError(f"{path}: the image is cut off (the file has no end of image); restore the file.")
    except OSError as error:
        raise DataError(f"{path}: the image cannot be read ({error.strerror}); restore the file.") from error
    try:
        with Image.open(path) as image:
            image.load()
    except UNREADABLE as error:
        raise DataError(f"{path}: the image is cut off ({error}); restore the file.") from error
