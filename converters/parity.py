"""Is a converted checkpoint the same network inside the engine? Asked of the engine itself, in a child process.

For detectron2 in both places its weights go to: a C4 detector, whose res5 lies in the heads, and a feature pyramid.
For mmsegmentation in the dilated backbone of the FCN. Each answer says how many tensors are bit for bit the canonical
ones and how far every stage's output is from the canonical network's, in fp32 and fp64 (engines.contract).
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from converters import to_detectron2, to_mmseg
from engines import launch
from engines.contract import Job, Weights, write_job
from zoo.files import CONFIGS
from zoo.native import resolved
from zoo.transforms import Pixels

Prepare = Callable[[Path, dict[str, Tensor], str, Pixels], Weights]
PLACES: Final[dict[launch.Name, dict[str, tuple[str, Prepare]]]] = {
    "detectron2": {
        "c4": ("voc0712_faster_rcnn_r50_c4_24k_zoo.yaml", partial(to_detectron2.prepared, layout="c4")),
        "fpn": ("base_rcnn_fpn.yaml", partial(to_detectron2.prepared, layout="fpn")),
    },
    "mmseg": {"fcn_d8": ("voc12aug_fcn_r50_d8_512x512_20k_zoo.yaml", to_mmseg.prepared)},
}


def parity(engine: launch.Name, state: dict[str, Tensor], arch: str, pixels: Pixels) -> dict[str, Any]:
    """place → {tensors, largest_difference: {pixels, fp32: {feature2: …}, fp64: {…}}}.

    Raises ZooError when the engine is not installed, or when a tensor or a stage is not the canonical one.
    """
    found: dict[str, Any] = {}
    for place, (config, prepare) in PLACES[engine].items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            weights = prepare(folder, state, arch, pixels)
            native = resolved(CONFIGS / "engines" / engine / config)
            if engine == "mmseg":
                to_mmseg.check_target(native)
            write_job(folder, Job(**vars(weights), task="check", config=native, device="cpu", seed=0, workers=0))
            found[place] = launch.measure(engine, folder)[0]["proofs"]
    return found
