"""The checkpoint layouts that are known; LAYOUTS is the whole list. A new one is a function, a line here, a test."""

from collections.abc import Callable
from typing import Final

from converters.layouts import arrays, libraries, research
from converters.layouts.table import Content, Reading

LAYOUTS: Final[dict[str, Callable[[Content], Reading | None]]] = {
    "simsiam": research.simsiam,
    "moco": research.moco,
    "moco_v3": research.moco_v3,
    "dino": research.dino,
    "swav": research.swav,
    "barlow_twins": research.barlow_twins,
    "vicreg": research.vicreg,
    "pycontrast": research.pycontrast,
    "pixpro": research.pixpro,
    "torchvision": libraries.torchvision,
    "mm_extracted": libraries.mm_extracted,
    "backbone": libraries.backbone,
    "mmselfsup0": libraries.mmselfsup0,
    "openselfsup": libraries.openselfsup,
    "mmselfsup1": libraries.mmselfsup1,
    "vissl": libraries.vissl,
    "lightly": libraries.lightly,
    "solo_learn": libraries.solo_learn,
    "detectron2": arrays.detectron2,
    "byol": arrays.byol,
}
