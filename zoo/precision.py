"""Which numbers must not be in bf16, whatever the network computes in? Losses and batch-norm statistics.

Under autocast a layer's output may be bf16, with three significant digits; `full_precision` is where it stops being so.
"""

import torch
from torch import Tensor


def full_precision(values: Tensor) -> Tensor:
    """`values` as float32, or as they are where they hold more."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
