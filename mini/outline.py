"""Which polygons show a mask? The contours that cv2 finds, in integers, so they are the same everywhere.

A polygon shows neither holes nor several pieces. So a mask with a hole (a zero has one) is cut in two through the hole,
and so on until there is none; every piece is then a polygon of its own.
"""

import numpy as np
from numpy.typing import NDArray


def outlines(mask: NDArray[np.bool_]) -> list[NDArray[np.int32]]:
    """(N, 2) each, x and y of the pixels at the corners of one piece's border, in order.

    A piece of a single pixel has one corner, a line has two.
    """
    import cv2  # not at the top: a call that finds the world built should not pay for it

    # CCOMP: outer borders have no parent, holes have one.
    contours, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return []
    corners = [np.asarray(contour, dtype=np.int32)[:, 0] for contour in contours]
    parents = np.asarray(hierarchy)[0, :, 3]
    for points, parent in zip(corners, parents, strict=True):
        if parent >= 0:
            # A hole's contour runs over the mask's pixels around it: it spans 3 columns or more, so both parts shrink.
            cut = (int(points[:, 0].min()) + int(points[:, 0].max()) + 1) // 2
            left, right = mask.copy(), mask.copy()
            left[:, cut:], right[:, :cut] = False, False
            return [*outlines(left), *outlines(right)]
    return corners
