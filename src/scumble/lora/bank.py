"""`Bank`: any number of adapters beside one frozen model, and the weight of each for every row.

    bank = Bank(base); bank.add("legal", "adapter-legal"); bank.add("medical", "adapter-medical")
    bank.use({"legal": 0.7, "medical": 0.3})         # every row
    bank.use_rows([{}, "legal", "legal*0.7+medical*0.3"])   # row by row; {} is the base
    logits = bank.model(input_ids=ids).logits        # an ordinary causal model

Training, comparing, swapping, blending and serving are all a bank with other weights. The bank knows
modules and slots; it knows nothing of data, of training, or of where a base comes from.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from scumble.errors import AdapterError
from scumble.lora.adapter import Adapter
from scumble.lora.fit import Fit, fit, saved_paths, token_paths
from scumble.lora.fresh import fresh_adapter
from scumble.lora.layer import BankLayer, Slot
from scumble.lora.mixture import Mixture, check_name, parse_mixture
from scumble.lora.routing import Routing
from scumble.lora.saved import SavedModule
from scumble.lora.spec import LoraSpec

_MARK = "_scumble_bank"


class Bank:
    """Adapters beside one frozen model.

    Args:
        base: a `scumble.Base`, or a causal model of transformers. Its parameters are frozen.

    Attributes:
        model: the model, computing with whatever `use` or `use_rows` said last; at first the base alone.
        routing: the weights of the rows, shared by all layers.
    """

    def __init__(self, base: Any) -> None:
        self.model: nn.Module = getattr(base, "model", base) if not _is_causal(base) else base
        if getattr(self.model, _MARK, False):
            raise AdapterError("this model is in a bank already", "use that bank, or close() it first")
        self.base_name: str | None = getattr(base, "name", None) or getattr(self.model, "name_or_path", None) or None
        self.base_hash: str | None = getattr(base, "hash", None)
        self.model.requires_grad_(False)
        self.routing = Routing()
        # the paths as PEFT's format names them, taken before anything is wrapped
        self.modules: dict[str, nn.Module] = dict(self.model.named_modules())
        self._head: nn.Module | None = self.model.get_output_embeddings()  # type: ignore[operator]
        self._wrapped: dict[str, BankLayer | SavedModule] = {}
        self._adapters: dict[str, Adapter] = {}
        self._slots: dict[str, str] = {}  # from an adapter's name to the key of its slots, which has no dots
        self._made = 0
        self._hook = self.model.register_forward_pre_hook(self._note_shape, with_kwargs=True)
        setattr(self.model, _MARK, True)

    # -- which adapters there are ------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """The adapters' names, in the order in which they came."""
        return list(self._adapters)

    def adapter(self, name: str) -> Adapter:
        """The adapter as it came; for one that is being trained see `snapshot`."""
        self._slot(name)
        return self._adapters[name]

    def add(self, name: str, adapter: Adapter | str | Path) -> Fit:
        """Put an adapter beside the base, in use by no row yet.

        Args:
            name: letters, digits, `_`, `.`, `-`; not `base`. Compared whole.
            adapter: an `Adapter`, or the folder of one or of a run.

        Returns:
            What of it was found in the base.

        Raises:
            AdapterError: the name is taken, or the adapter does not fit the base whole.
        """
        if check_name(name) in self._adapters:
            raise AdapterError(f"the bank has an adapter {name!r} already", "swap() gives a name new contents")
        slot, found = self._install(name, adapter)
        self._slots[name] = slot
        return found

    def trainable(self, name: str, spec: LoraSpec | Any, *, seed: int = 0, start: Adapter | None = None) -> None:
        """Add a new slot to train: A random by PEFT's rule, B zero, so that it starts as the base.

        Args:
            name: as in `add`.
            spec: a `LoraSpec` or a `peft.LoraConfig`.
            seed: of A and of the dropout; other adapters of the bank change nothing.
            start: an adapter of the same spec to go on from, instead of a fresh one.
        """
        spec = spec if isinstance(spec, LoraSpec) else LoraSpec.from_peft(spec)
        spec = spec.with_base(self.base_name)
        adapter = start or fresh_adapter(spec, self.modules, self._head, seed)
        adapter.base_hash = self.base_hash
        self.add(name, adapter)
        for module in self._modules_of(name):
            if isinstance(module, Slot):
                module.seed, module.dropout = seed, spec.dropout
            module.requires_grad_(True)

    def swap(self, name: str, adapter: Adapter | str | Path) -> Fit:
        """Give a name new contents; rows that use it go on with those. On an error nothing changes."""
        old = self._slot(name)
        slot, found = self._install(name, adapter)
        state = self.routing.state()
        self._slots[name] = slot
        self.routing.restore(_renamed(state, old, slot))
        self._drop(old)
        return found

    def remove(self, name: str) -> None:
        """Take an adapter out and free its memory; layers that no adapter reaches are unwrapped.

        Raises:
            AdapterError: there is none of that name, or a row still uses it.
        """
        slot = self._slot(name)
        if self.routing.uses(slot):
            raise AdapterError(f"the adapter {name!r} is in use", "use({}) or other rows first")
        del self._adapters[name], self._slots[name]
        self._drop(slot)

    def close(self) -> None:
        """Give the base's model back as it was, without any adapter."""
        self.use({})
        for name in self.names:
            self.remove(name)
        self._hook.remove()
        delattr(self.model, _MARK)

    # -- which rows they act on --------------------------------------------------------------------

    def use(self, mixture: Mixture) -> None:
        """Compute every row with one mixture, until told otherwise."""
        self.routing.set_uniform(self._by_slot(mixture))

    def use_rows(self, mixtures: Sequence[Mixture]) -> None:
        """Compute each row of the batch with its own mixture; batches must have as many rows."""
        if not mixtures:
            raise AdapterError("use_rows was given no rows", "give one mixture for each row of the batch")
        self.routing.set_rows([self._by_slot(mixture) for mixture in mixtures])

    @contextmanager
    def using(self, mixtures: Mixture | Sequence[Mixture], *, rows: bool = False) -> Iterator[None]:
        """`use`, or with `rows` `use_rows`, for the body of a `with`; then as before."""
        state = self.routing.state()
        if rows:
            self.use_rows(cast("Sequence[Mixture]", mixtures))
        else:
            self.use(cast("Mixture", mixtures))
        try:
            yield
        finally:
            self.routing.restore(state)

    # -- what they hold ----------------------------------------------------------------------------

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """An adapter's parameters by the name that PEFT gives each, sorted; what an optimizer takes."""
        return {
            key: tensor
            for key, tensor in self._live(name).tensors().items()
            if isinstance(tensor, nn.Parameter)
        }

    def snapshot(self, name: str) -> Adapter:
        """The adapter as it is now, its tensors copied to the CPU."""
        live = self._live(name)
        tensors = {key: tensor.detach().to("cpu", copy=True) for key, tensor in live.tensors().items()}
        from scumble.lora.adapter import from_tensors

        adapter = from_tensors(live.spec, tensors, where=f"the adapter {name!r}")
        adapter.base_hash = live.base_hash
        return adapter

    def save(self, name: str, folder: str | Path, *, force: bool = False) -> Path:
        """Write an adapter as it is now, in the PEFT format."""
        return self.snapshot(name).save(folder, force=force)

    # -- inside ------------------------------------------------------------------------------------

    def _install(self, name: str, adapter: Adapter | str | Path) -> tuple[str, Fit]:
        title = f"the adapter {name!r}"
        adapter = adapter if isinstance(adapter, Adapter) else Adapter.load(adapter)
        found = fit(adapter, self.modules, self._head, title)
        self._warn_of_another_base(name, adapter)
        self._made += 1
        slot = f"s{self._made}"
        for path in {*adapter.factors, *adapter.biases, *self._tied(adapter)}:
            layer = cast(BankLayer, self._wrap(path, BankLayer))
            layer.slots[slot] = self._fill(adapter, path, layer)
        for path in saved_paths(adapter.spec, self.modules):
            prefix = path + "."
            tensors = {k.removeprefix(prefix): v for k, v in adapter.saved.items() if k.startswith(prefix)}
            cast(SavedModule, self._wrap(path, SavedModule)).add(slot, tensors)
        self._adapters[name] = adapter
        return slot, found

    def _fill(self, adapter: Adapter, path: str, layer: BankLayer) -> Slot:
        device = layer.weight.device
        factors, rows = adapter.factors.get(path), self._tied(adapter).get(path)
        slot = Slot(adapter.spec.scale_of(path))

        def own(tensor: Tensor | None) -> Tensor | None:
            # a copy, in fp32 at least: an adapter in half precision is widened without loss, as in PEFT
            if tensor is None:
                return None
            return tensor.detach().to(device, torch.promote_types(tensor.dtype, torch.float32), copy=True)

        slot.fill(base_bias=own(adapter.biases.get(path)))
        if factors is not None:
            slot.fill(A=own(factors.A), B=own(factors.B), lora_bias=own(factors.bias), magnitude=own(factors.magnitude))
        if rows is not None:
            source, numbers = rows
            shared = self._token_parameter(adapter, source)
            slot.fill(token_rows=torch.tensor(numbers, device=device))
            slot.tokens = shared if shared is not None else nn.Parameter(cast(Tensor, own(adapter.tokens[source])))
            slot.tokens.requires_grad_(False)
        return slot

    def _tied(self, adapter: Adapter) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The modules with replaced rows, also an output layer tied to one: path -> (its source, rows)."""
        found = {path: (path, rows) for path, rows in token_paths(adapter.spec, self.modules).items()}
        for path, (source, rows) in list(found.items()):
            for other, module in self.modules.items():
                tied = isinstance(module, nn.Linear) and module.weight is self.modules[path].weight
                if tied:
                    found[other] = (source, rows)
        return found

    def _token_parameter(self, adapter: Adapter, source: str) -> nn.Parameter | None:
        """The parameter that the tied partner of this install already holds, so that both train as one."""
        key = f"s{self._made}"
        layer = self._wrapped.get(source)
        slot = layer.slots[key] if isinstance(layer, BankLayer) and key in layer.slots else None
        return cast("nn.Parameter | None", getattr(slot, "tokens", None))

    def _wrap(self, path: str, kind: type[BankLayer] | type[SavedModule]) -> nn.Module:
        layer = self._wrapped.get(path)
        if layer is None:
            layer = kind(self.modules[path], path, self.routing)
            _set_module(self.model, path, layer)
            self._wrapped[path] = layer
        if not isinstance(layer, kind):
            raise AdapterError(
                f"one adapter replaces {path} whole and another updates it; a bank cannot hold both",
                "keep them in two banks",
            )
        return layer

    def _drop(self, slot: str) -> None:
        for path, layer in list(self._wrapped.items()):
            held = layer.slots if isinstance(layer, BankLayer) else layer.copies
            if slot in held:
                del held[slot]
            if not held:
                _set_module(self.model, path, self.modules[path])
                del self._wrapped[path]

    def _modules_of(self, name: str) -> list[nn.Module]:
        slot = self._slot(name)
        held = [layer.slots if isinstance(layer, BankLayer) else layer.copies for layer in self._wrapped.values()]
        return [modules[slot] for modules in held if slot in modules]

    def _live(self, name: str) -> Adapter:
        """The adapter with the bank's own parameters in place of the tensors it came with."""
        slot, adapter = self._slot(name), self._adapters[name]
        live = Adapter(adapter.spec, {}, base_hash=adapter.base_hash)
        for path, layer in self._wrapped.items():
            if isinstance(layer, SavedModule) and slot in layer.copies:
                for key, parameter in layer.copies[slot].named_parameters():
                    live.saved[f"{path}.{key}"] = parameter
            elif isinstance(layer, BankLayer) and slot in layer.slots:
                held = cast(Slot, layer.slots[slot])
                if held.A is not None:
                    from scumble.lora.adapter import Factors

                    live.factors[path] = Factors(held.A, held.B, held.lora_bias, held.magnitude, layer.embedding)
                if held.base_bias is not None:
                    live.biases[path] = held.base_bias
                if held.tokens is not None and path in adapter.tokens:
                    live.tokens[path] = held.tokens
        return live

    def _slot(self, name: str) -> str:
        if name not in self._slots:
            known = ", ".join(self._slots) or "none"
            raise AdapterError(f"the bank has no adapter {name!r}", f"it has: {known}")
        return self._slots[name]

    def _by_slot(self, mixture: Mixture) -> dict[str, float]:
        weights = parse_mixture(mixture)
        for name, weight in weights.items():
            part = self._adapters[name].exclusive if name in self._adapters else None
            if part and (len(weights) > 1 or weight != 1.0):
                raise AdapterError(
                    f"{name!r} has {part}, which belong to one adapter and are not blended",
                    f"use {name!r} alone, with weight 1",
                )
        return {self._slot(name): weight for name, weight in weights.items()}

    def _warn_of_another_base(self, name: str, adapter: Adapter) -> None:
        if adapter.base_hash and self.base_hash and adapter.base_hash != self.base_hash:
            warnings.warn(
                f"the adapter {name!r} was trained on a base with hash {adapter.base_hash} "
                f"({adapter.spec.base_name}), and this base has hash {self.base_hash} ({self.base_name})",
                stacklevel=4,
            )

    def _note_shape(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        seen = kwargs.get("input_ids")
        seen = kwargs.get("inputs_embeds") if seen is None else seen
        seen = args[0] if seen is None and args else seen
        if isinstance(seen, Tensor):
            self.routing.shape = (int(seen.shape[0]), int(seen.shape[1]))
            self.routing.check()


def _is_causal(base: Any) -> bool:
    """Whether `base` is itself the model: a model may also have an attribute `.model`, its decoder."""
    return isinstance(base, nn.Module)


def _set_module(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, last = path.rpartition(".")
    holder = model.get_submodule(parent)
    # a parent that is itself wrapped holds its children in its base
    setattr(getattr(holder, "base", holder) if isinstance(holder, SavedModule) else holder, last, module)


def _renamed(
    state: tuple[dict[str, float], Tensor | None, list[str]], old: str, new: str
) -> tuple[dict[str, float], Tensor | None, list[str]]:
    uniform, matrix, columns = state
    return (
        {new if slot == old else slot: weight for slot, weight in uniform.items()},
        matrix,
        [new if slot == old else slot for slot in columns],
    )


