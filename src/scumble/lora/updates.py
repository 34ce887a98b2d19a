"""What an adapter adds to one weight matrix, in blocks of rows: also where it is no low-rank matrix (DoRA).

    plain:  s B A
    DoRA:   (g - 1) W + g s B A,   g = m / |W + s B A|, by rows (Liu et al. 2024, arXiv:2402.09353)

Rows of W decide rows of the update, so that nothing larger than a block is ever held. Knows one module.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from scumble.errors import AdapterError
from scumble.lora.adapter import Factors

BLOCK = 2**22  # numbers held at once: 32 MB in fp64


def row_blocks(shape: tuple[int, int], numbers: int = BLOCK) -> Iterator[tuple[int, int]]:
    """(start, stop) of blocks of rows of an (out, in) matrix, each of about `numbers` numbers."""
    height = max(1, numbers // max(1, shape[1]))
    for start in range(0, shape[0], height):
        yield start, min(start + height, shape[0])


def update_rows(
    factors: Factors, scale: float, start: int, stop: int, weight: Tensor | None = None
) -> Tensor:
    """Rows `start` to `stop` of the update of W as (out, in), in fp64.

    Args:
        factors: of the module.
        scale: s.
        start, stop: rows, of `out`.
        weight: (stop - start, in), those rows of W; needed by DoRA alone.

    Returns:
        (stop - start, in).

    Raises:
        AdapterError: DoRA without the rows of W, or with a row that it cannot rescale.
    """
    low = (factors.B[start:stop].double() * scale) @ factors.A.double()
    if factors.magnitude is None:
        return low
    if weight is None:
        raise AdapterError("DoRA's update depends on the base's weights", "give the base")
    base = weight.double()
    norm = torch.linalg.vector_norm(base + low, dim=1, keepdim=True)
    if not bool(norm.all()):
        row = start + int((norm.squeeze(1) == 0).nonzero()[0])
        raise AdapterError(
            f"DoRA's update is not defined in row {row}: W + s B A is zero there",
            "it cannot be computed at all",
        )
    gain = factors.magnitude[start:stop, None].double() / norm
    return (gain - 1) * base + gain * low
