"""Do the engines import, and do the parts the benchmarks need work without compiled operators? A child process
each: their imports warn and the compatibility patches below are global, neither of which other tests should see."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # some seconds each: the imports

# The least that lets detectron2 v0.6's Python files import beside today's numpy and Pillow. Its compiled extension is
# not in the package; Faster and Mask R-CNN call nothing from it (ROIAlign and NMS come from torchvision).
DETECTRON2_SHIM = """
import builtins, sys, types
import numpy as np, PIL.Image
for name in ("bool", "int", "float", "object", "str"):
    if name not in vars(np):
        setattr(np, name, getattr(builtins, name))
if not hasattr(PIL.Image, "LINEAR"):
    PIL.Image.LINEAR = PIL.Image.BILINEAR
import detectron2
detectron2._C = sys.modules["detectron2._C"] = types.ModuleType("detectron2._C")
"""


def run_in_child(code: str) -> str:
    """What the code prints; no GPU and no network are looked for."""
    child = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


def test_mmsegmentation_imports_and_runs_a_segmentor() -> None:
    out = run_in_child("""
import cv2, mmcv, mmengine, mmseg, mmseg.apis, torch
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
register_all_modules()
norm = dict(type="BN")
model = MODELS.build(dict(
    type="EncoderDecoder",
    backbone=dict(type="ResNet", depth=18, norm_cfg=norm),
    decode_head=dict(type="FCNHead", in_channels=512, channels=32, num_classes=21, norm_cfg=norm),
    test_cfg=dict(mode="whole"),
)).eval()
with torch.no_grad():
    print(tuple(model(torch.zeros(1, 3, 64, 64)).shape))
""")
    assert out.splitlines()[-1] == "(1, 21, 2, 2)"


def test_detectron2_imports_and_runs_a_detector() -> None:
    out = run_in_child(
        DETECTRON2_SHIM
        + """
import torch
import detectron2.checkpoint, detectron2.data, detectron2.engine, detectron2.evaluation, detectron2.model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model
cfg = get_cfg()
cfg.MODEL.DEVICE = "cpu"
cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "StandardROIHeads", 20
cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 1
cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 10
cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
model = build_model(cfg).eval()
with torch.no_grad():
    (result,) = model([{"image": torch.zeros(3, 64, 64), "height": 64, "width": 64}])
print(len(result["instances"]) > 0)
"""
    )
    assert out.splitlines()[-1] == "True"
