"""How much memory a GPU has: by its name, or as a size such as 24GB.

    find_card("rtx 4090").usable     what the driver shows, less what CUDA takes for itself
    find_card("24GB").usable         24 * 10 ** 9, less the same
    parse_size("24 GiB")             24 * 2 ** 30

Both stand for an otherwise empty card. A size on a CPU is what the run's tensors may take, all of it. Totals are those that nvidia-smi and rocm-smi show, with ECC on where the card has it on as sold: less than
the name says on most of them (15,360 MiB on a T4 of 16 GB). Knows names and sizes, and no device.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import asdict, dataclass
from typing import Any

from scumble.errors import ConfigError, shown

# what the driver takes for a process that computes with PyTorch: context, loaded kernels. An assumption: 0.4 to 0.6 GB
# are usual on cards from Turing to Hopper, and PyTorch's own counters do not see them
CONTEXT = 600_000_000
SMALLEST, LARGEST = 10**6, 10**13
# name -> MiB in all, by the GB that the card is sold with
CARDS: dict[str, dict[int, int]] = {
    "t4": {16: 15_360},
    "p100": {16: 16_280},
    "v100": {16: 16_160, 32: 32_510},
    "a10": {24: 23_028},
    "a10g": {24: 23_028},
    "a30": {24: 24_576},
    "a40": {48: 46_068},
    "a100": {40: 40_960, 80: 81_920},
    "l4": {24: 23_034},
    "l40": {48: 46_068},
    "l40s": {48: 46_068},
    "h100": {80: 81_559},
    "h20": {96: 97_871},
    "h200": {141: 143_771},
    "b200": {180: 183_359},
    "rtx 2080 ti": {11: 11_264},
    "rtx 3060": {12: 12_288},
    "rtx 3070": {8: 8_192},
    "rtx 3080": {10: 10_240, 12: 12_288},
    "rtx 3090": {24: 24_576},
    "rtx 4060": {8: 8_188},
    "rtx 4060 ti": {8: 8_188, 16: 16_380},
    "rtx 4070": {12: 12_282},
    "rtx 4080": {16: 16_376},
    "rtx 4090": {24: 24_564},
    "rtx 5080": {16: 16_303},
    "rtx 5090": {32: 32_607},
    "rtx a5000": {24: 24_564},
    "rtx a6000": {48: 49_140},
    "rtx 6000 ada": {48: 49_140},
    "rtx pro 6000": {96: 97_887},
    "rx 7900 xtx": {24: 24_560},
    "mi210": {64: 65_520},
    "mi250x": {64: 65_520},  # of one of its two dies, which are two devices
    "mi300x": {192: 196_592},
}
_MAKERS = re.compile(r"nvidia|geforce|tesla|quadro|amd|radeon|instinct")


@dataclass(frozen=True)
class Card:
    """Memory of one device, in bytes.

    Attributes:
        name: as the table has it, or the size as it was given.
        total: all that the driver shows.
        usable: of which tensors may take so much.
    """

    name: str
    total: int
    usable: int

    def to_dict(self) -> dict[str, Any]:
        """The same by name."""
        return asdict(self)


def find_card(text: str, *, on_gpu: bool = True) -> Card:
    """A card by its name (`rtx 4090`, `A100-80GB`), or by a size (`24GB`).

    Args:
        text: as the user wrote it.
        on_gpu: a size is that of a GPU, of which CUDA takes its part.

    Raises:
        ConfigError: no card is called that (the nearest is named), it is sold with several sizes and none is given, or
            the size is out of range.
    """
    text = str(text).strip()
    plain = _plain(text)
    # the longer name first: a100 80GB is no a10
    for name in sorted(CARDS, key=len, reverse=True):
        found = re.fullmatch(rf"(?:rtx)?{_plain(name).removeprefix('rtx')}(?:([1-9]\d*)gb?)?", plain)
        if found:
            return _sold(name, found.group(1), text)
    if _SIZE.fullmatch(text.lower()):
        size = parse_size(text)
        usable = size - CONTEXT if on_gpu else size
        if usable <= 0:
            raise ConfigError(
                f"--gpu {shown(text)} is no more than CUDA itself takes ({CONTEXT / 1e9:.1f} GB)",
                "give more, or --device cpu for a limit on a CPU's tensors",
            )
        return Card(text, size, usable)
    raise ConfigError(f"--gpu {shown(text)} is no card that is known here", _nearest(plain))


def parse_size(text: str, option: str = "--gpu") -> int:
    """Bytes of a size with its unit: `24GB` (10 ** 9), `24 GiB` (2 ** 30), `80g`, `500MB`.

    Raises:
        ConfigError: it is no size, has no unit, or is below 1 MB or above 10 TB.
    """
    found = _SIZE.fullmatch(str(text).strip().lower())
    if not found:
        raise ConfigError(f"{option} {shown(text)} is no size", "write for example 24GB, 24GiB or 500MB")
    number, unit, binary = found.groups()
    if not unit:
        raise ConfigError(f"{option} {shown(text)} has no unit", f"write for example {number.strip()}GB")
    size = float(number) * (1024 if binary else 1000) ** ("kmgt".index(unit) + 1)
    if not SMALLEST <= size <= LARGEST:
        raise ConfigError(f"{option} {shown(text)} is out of range", "from 1MB to 10TB")
    return round(size)


_SIZE = re.compile(r"([+-]?\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*(?:([kmgt])(i)?b?)?")


def _sold(name: str, size: str | None, text: str) -> Card:
    """The card of a name that is sold with `size` GB, or with one size only."""
    sizes = CARDS[name]
    if (int(size) not in sizes) if size else len(sizes) > 1:
        of = " or ".join(f"{name} {each}GB" for each in sizes)
        raise ConfigError(f"--gpu {shown(text)}: this card is sold as {of}", f"say {of}")
    sold = int(size) if size else next(iter(sizes))
    total = sizes[sold] * 2**20
    return Card(f"{name} {sold}GB" if len(sizes) > 1 else name, total, total - CONTEXT)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", _MAKERS.sub("", text.lower()))


def _nearest(plain: str) -> str:
    by_plain = {_plain(name): name for name in CARDS}
    near = difflib.get_close_matches(plain[:40], by_plain, n=3, cutoff=0.4)
    names = ", ".join(by_plain[each] for each in near)
    return f"did you mean {names}? Or give a size, such as 24GB" if near else "give a size, such as 24GB"
