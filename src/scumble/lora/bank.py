"""`Bank`: any number of adapters beside one frozen model, and the weight of each for every row.

    bank = Bank(base); bank.add("legal", "adapter-legal"); bank.add("medical", "adapter-medical")
    bank.use({"legal": 0.7, "medical": 0.3})         # every row
    bank.use_rows([{}, "legal", "legal*0.7+medical*0.3"])   # row by row; {} is the base
    logits = bank.model(input_ids=ids).logits        # an ordinary causal model

Weights are learned by gradient where they are tensors: within `with bank.using_learned({"legal": w, ...})`,
`loss.backward()` gives `w.grad`.

Training, comparing, swapping, blending and serving are all a bank with other weights. The bank knows
modules and slots; it knows nothing of data, of training, or of where a base comes from.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from scumble.errors import AdapterError
from scumble.lora.adapter import Adapter, from_tensors
from scumble.lora.fit import Fit, fit, refuse_fused_experts
from scumble.lora.fresh import fresh_adapter
from scumble.lora.install import Installation
from scumble.lora.layer import Slot
from scumble.lora.mixture import Mixture, check_name, parse_mixture
from scumble.lora.routing import ByModule, Routing, RoutingState, Span
from scumble.lora.spec import LoraSpec

_MARK = "_scumble_bank"


class Bank:
    """Adapters beside one frozen model.

    Args:
        base: a `scumble.Base`, or a causal model of transformers. Its parameters are frozen.

    Attributes:
        model: the model, computing with whatever `use` or `use_rows` said last; at first the base alone.
        routing: the weights of the rows, shared by all layers.
        base_parameters: numbers of the base alone.
    """

    def __init__(self, base: Any) -> None:
        self.model: nn.Module = getattr(base, "model", base) if not _is_causal(base) else base
        if getattr(self.model, _MARK, False):
            raise AdapterError("this model is in a bank already", "use that bank, or close() it first")
        self.base_name: str | None = (
            getattr(base, "name", None) or getattr(self.model, "name_or_path", None) or None
        )
        self.base_hash: str | None = getattr(base, "hash", None)
        self._trained = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        self.base_parameters = sum(parameter.numel() for parameter, _ in self._trained)
        self.model.requires_grad_(False)
        self.routing = Routing()
        # the paths as PEFT's format names them, taken before anything is wrapped
        self.modules: dict[str, nn.Module] = dict(self.model.named_modules())
        self._head: nn.Module | None = self.model.get_output_embeddings()
        self._installed = Installation(self.model, self.modules, self.routing)
        self._adapters: dict[str, Adapter] = {}
        self._slots: dict[str, str] = {}  # from an adapter's name to the key of its slots, which has no dots
        self._made = 0
        self._suspended: list[RoutingState] = []
        # the decoder too: it may be called by itself, where no logits are wanted
        decoder = getattr(self.model, "base_model", self.model)
        self._hooks = [
            module.register_forward_pre_hook(self._note_shape, with_kwargs=True)
            for module in dict.fromkeys([self.model, decoder])
        ]
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
            raise AdapterError(
                f"the bank has an adapter {name!r} already", "swap() gives a name new contents"
            )
        self._slots[name], self._adapters[name], found = self._install(name, adapter)
        return found

    def trainable(
        self, name: str, spec: LoraSpec | Any, *, seed: int = 0, start: Adapter | None = None
    ) -> None:
        """Add a new slot to train: A random by PEFT's rule, B zero, so that it starts as the base.

        Args:
            name: as in `add`.
            spec: a `LoraSpec` or a `peft.LoraConfig`.
            seed: of A and of the dropout; other adapters of the bank change nothing.
            start: an adapter of the same spec to go on from, instead of a fresh one.
        """
        spec = spec if isinstance(spec, LoraSpec) else LoraSpec.from_peft(spec)
        spec = spec.with_base(self.base_name)
        refuse_fused_experts(spec, self.model)
        if start is not None and start.spec.shape() != spec.shape():
            raise AdapterError(
                f"{name!r} should go on from an adapter of another shape: {start.spec.difference(spec)}",
                "ask for the same rank, alpha, targets and variants as it has",
            )
        begun = start or fresh_adapter(spec, self.modules, self._head, seed)
        self.add(name, replace(begun, spec=spec, base_hash=self.base_hash))
        for module in self._installed.of(self._slot(name)):
            if isinstance(module, Slot):
                module.seed, module.dropout = seed, spec.dropout
            module.requires_grad_(True)

    def swap(self, name: str, adapter: Adapter | str | Path) -> Fit:
        """Give a name new contents; rows that use it go on with those. On an error nothing changes."""
        old = self._slot(name)
        adapter = adapter if isinstance(adapter, Adapter) else Adapter.load(adapter)
        if adapter.exclusive and any(state.blends(old) for state in self._states()):
            raise _not_blended(name, adapter.exclusive)
        new, adapter, found = self._install(name, adapter)
        self._installed.drop(old)
        # under the old key, so that weights set before, here or around a `using`, still mean this name
        self._installed.rename(new, old)
        self._adapters[name] = adapter
        return found

    def remove(self, name: str) -> None:
        """Take an adapter out and free its memory; layers that no adapter reaches are unwrapped.

        Raises:
            AdapterError: there is none of that name, or a row still uses it.
        """
        slot = self._slot(name)
        if any(state.uses(slot) for state in self._states()):
            raise AdapterError(f"the adapter {name!r} is in use", "use({}) or other rows first")
        del self._adapters[name], self._slots[name]
        self._installed.drop(slot)

    def close(self) -> None:
        """Give the base's model back as it was, without any adapter."""
        self.use({})
        self._suspended.clear()
        for name in self.names:
            self.remove(name)
        for hook in self._hooks:
            hook.remove()
        for parameter, trained in self._trained:
            parameter.requires_grad_(trained)
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
        with self._restored():
            if rows:
                self.use_rows(cast("Sequence[Mixture]", mixtures))
            else:
                self.use(cast("Mixture", mixtures))
            yield

    @contextmanager
    def using_spans(self, spans: Sequence[Span]) -> Iterator[None]:
        """Compute a batch of one row with one adapter for each run of its tokens, for the body of a `with`.

        Args:
            spans: with adapters' names as slots, in the order of the tokens, without gaps.
        """
        with self._restored():
            self.routing.set_spans([span._replace(slot=self._slot(span.slot)) for span in spans])
            yield

    @contextmanager
    def using_learned(self, weights: Mapping[str, Tensor | ByModule]) -> Iterator[None]:
        """Compute every row with weights that are tensors, for the body of a `with`; then as before.

        A gradient flows from the logits to the weights, through everything that the adapter adds. A tensor's
        value counts as a number does: the logits are bit for bit those of `use` with equal numbers, save that
        a weight in fp32 is that number rounded.

        Args:
            weights: by adapter, a floating-point tensor without dimensions, or a function from a module's path
                to one (so that each layer has its own), which is called in every forward pass.

        Raises:
            AdapterError: there is none of that name, it has parts that belong to one adapter only, or the
                tensor is no scalar.
        """
        by_slot = {self._slot(name): _by_module(name, weight) for name, weight in weights.items()}
        for name in weights:
            part = self._adapters[name].exclusive
            if part:
                raise _not_blended(name, part)
        with self._restored():
            self.routing.set_uniform(by_slot)
            yield

    @contextmanager
    def _restored(self) -> Iterator[None]:
        """Go back afterwards to the weights in use now."""
        state = self.routing.state()
        self._suspended.append(state)
        try:
            yield
        finally:
            # close() forgets what it would go back to
            if self._suspended:
                self._suspended.pop()
                self.routing.restore(state)

    # -- what they hold ----------------------------------------------------------------------------

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """An adapter's parameters by the name that PEFT gives each, sorted; what an optimizer takes."""
        return {
            key: tensor
            for key, tensor in self._live(name).tensors().items()
            if isinstance(tensor, nn.Parameter)
        }

    def reached(self, name: str) -> list[str]:
        """The paths of the modules that an adapter acts on."""
        return self._installed.reached(self._slot(name))

    def plain(self, name: str) -> bool:
        """Whether an adapter trains, and is A and B alone."""
        parts = list(self._installed.of(self._slot(name)))
        return bool(parts) and all(isinstance(part, Slot) and part.plain for part in parts)

    def snapshot(self, name: str) -> Adapter:
        """The adapter as it is now, its tensors copied to the CPU."""
        live = self._live(name)
        tensors = {key: tensor.detach().to("cpu", copy=True) for key, tensor in live.tensors().items()}
        adapter = from_tensors(live.spec, tensors, where=f"the adapter {name!r}")
        adapter.base_hash = live.base_hash
        return adapter

    def save(self, name: str, folder: str | Path, *, force: bool = False) -> Path:
        """Write an adapter as it is now, in the PEFT format."""
        return self.snapshot(name).save(folder, force=force)

    # -- inside ------------------------------------------------------------------------------------

    def _install(self, name: str, adapter: Adapter | str | Path) -> tuple[str, Adapter, Fit]:
        adapter = adapter if isinstance(adapter, Adapter) else Adapter.load(adapter)
        found = fit(adapter, self.modules, self._head, f"the adapter {name!r}")
        self._warn_of_another_base(name, adapter)
        self._made += 1
        slot = f"s{self._made}"
        self._installed.put(slot, adapter)
        return slot, adapter, found

    def _live(self, name: str) -> Adapter:
        return self._installed.live(self._slot(name), self._adapters[name])

    def _states(self) -> list[RoutingState]:
        """The weights in use, and those that a `using` will go back to."""
        return [self.routing.state(), *self._suspended]

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
                raise _not_blended(name, part)
        return {self._slot(name): weight for name, weight in weights.items()}

    def _warn_of_another_base(self, name: str, adapter: Adapter) -> None:
        if adapter.base_hash and self.base_hash and adapter.base_hash != self.base_hash:
            warnings.warn(
                f"the adapter {name!r} was trained on a base with hash {adapter.base_hash} "
                f"({adapter.spec.base_name}), and this base has hash {self.base_hash} ({self.base_name}); "
                "its answers may differ (the same base in another data type has another hash too)",
                stacklevel=4,
            )

    def _note_shape(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        seen = kwargs.get("input_ids")
        seen = kwargs.get("inputs_embeds") if seen is None else seen
        seen = args[0] if seen is None and args else seen
        if isinstance(seen, Tensor) and seen.ndim > 1:
            self.routing.shape = (int(seen.shape[0]), int(seen.shape[1]))
            self.routing.check()


def _is_causal(base: Any) -> bool:
    """Whether `base` is itself the model: a model may also have an attribute `.model`, its decoder."""
    return isinstance(base, nn.Module)


def _by_module(name: str, weight: Tensor | ByModule) -> ByModule:
    if not isinstance(weight, Tensor):
        return weight
    if weight.ndim or not weight.is_floating_point():
        raise AdapterError(
            f"the weight of {name!r} is a tensor of shape {tuple(weight.shape)} and type {weight.dtype}",
            "give one floating-point number without dimensions, or a function from a module's path to one",
        )
    return lambda path: weight


def _not_blended(name: str, part: str) -> AdapterError:
    return AdapterError(
        f"{name!r} has {part}, which belong to one adapter and are not blended",
        f"use {name!r} alone, with weight 1",
    )
