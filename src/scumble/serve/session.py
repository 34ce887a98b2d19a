"""Opening a chat: the base of the adapters that were named, with all of them in one bank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from scumble.compare.run import trained_model
from scumble.config import ChatOptions, make
from scumble.errors import AdapterError, ConfigError, DataError
from scumble.lora.adapter import Adapter
from scumble.lora.bank import Bank
from scumble.lora.mixture import check_name
from scumble.models.base import load_base
from scumble.models.threads import threads_for
from scumble.serve.chat import Chat


def pairs(texts: Sequence[str]) -> dict[str, Path]:
    """Read `NAME=PATH` arguments. Raises `ConfigError` where one is something else or a name comes twice."""
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (equals and name and path):
            raise ConfigError(
                f"--adapter {text!r} is not NAME=PATH", "write for example --adapter legal=runs/legal"
            )
        if name in found:
            raise ConfigError(f"--adapter names {name!r} twice", "give each adapter a name of its own")
        found[name] = Path(path)
    return found


def open_chat(
    run: Path | None,
    adapters: Mapping[str, Path],
    *,
    base: str | None = None,
    system: str = "",
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    dtype: str | None = None,
    device: str | None = None,
) -> Chat:
    """Load a base and its adapters, and start a conversation.

    Args:
        run: a run or an adapter, named after its folder and answering at first.
        adapters: further adapters by name.
        base: another base than the adapters name.
        system, max_new_tokens, temperature: as in `Chat`.
        dtype, device: of the base.

    Raises:
        ScumbleError: an adapter cannot be loaded, or two of them belong to different bases.
    """
    import torch

    options = make(ChatOptions, max_new_tokens=max_new_tokens, temperature=temperature)
    named = {check_name(name): path for name, path in adapters.items()}
    if run is not None and base is None and not named and (whole := trained_model(run)) is not None:
        run, base = None, str(whole[0])  # all its weights were trained: it is a base of its own
    if run is not None:
        own = _name_of(run)
        if own in named:
            raise ConfigError(f"--adapter names {own!r}, as the run is called", "give it another name")
        named = {own: run, **named}
    loaded = {name: Adapter.load(path) for name, path in named.items()}
    wanted = {adapter.spec.base_name for adapter in loaded.values() if adapter.spec.base_name}
    if base is None and len(wanted) > 1:
        raise AdapterError(
            f"the adapters belong to different bases: {', '.join(sorted(wanted))}", "name one with --base"
        )
    if base is None and named and not wanted:
        raise AdapterError(
            f"{next(iter(named.values()))} does not say what its base is", "name it with --base"
        )
    under = load_base(next(iter(wanted), None) if base is None else base, dtype=dtype, device=device)
    if under.tokenizer is None:
        raise DataError(
            f"the base {under.name} has no tokenizer", "talking needs one; add it to the base's folder"
        )
    bank = Bank(under)
    for name, adapter in loaded.items():
        bank.add(name, adapter)
    # one row at a time: the count measured for decoding holds for the rest of the process
    torch.set_num_threads(threads_for(under.model).decode)
    first = next(iter(named)) if run is not None else "base"
    return Chat(bank, under.tokenizer, system, options.max_new_tokens, options.temperature, mixture=first)


def _name_of(run: Path) -> str:
    """A name for the adapter of a folder: the folder's own, made fit."""
    last = run.resolve().name if run.resolve().name != "adapter" else run.resolve().parent.name
    fit = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "-" for c in last).lstrip("_.-")
    return fit if fit and fit != "base" else "adapter"
