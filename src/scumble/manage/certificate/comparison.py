"""`Comparison`: every tensor of a written merge held against the base's: reached, untouched, tied, missing, extra.

It goes through the base's parameters one by one, finds what transformers would give each from the written
folder, and judges that. Knows tensors and names; nothing of prompts or of limits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from scumble.manage.certificate.achieved import Achieved, achieved, changed, untouched
from scumble.manage.certificate.intended import Rows, Wanted
from scumble.manage.certificate.result import Result, named_dtype
from scumble.manage.certificate.verdict import judge_types
from scumble.models.checkpoint import Checkpoint
from scumble.progress import Reporter


@dataclass
class Comparison:
    """The written tensors held against the base's, one by one.

    Attributes:
        structure: faults of files, ties and types, in words.
        modules: what the adapter reaches.
        spoilt: untouched tensors that changed, with how many elements.
        untouched: how many tensors were not reached.
    """

    base: Checkpoint
    result: Result
    wanted: Mapping[str, Wanted]
    structure: list[str] = field(default_factory=list)
    modules: dict[str, Achieved] = field(default_factory=dict)
    spoilt: dict[str, str] = field(default_factory=dict)
    untouched: int = 0

    def run(self, reporter: Reporter) -> None:
        """Look at every tensor of the base, and at what the result has beside them."""
        self._tied = self.result.tied
        self._pair = _embedding_and_head(self.base)
        owned, pairs = self._owners()
        self.structure += self.result.faults
        self._check_ties()
        seen: set[str] = set()
        originals: dict[str, torch.dtype] = {}
        with reporter.bar("certificate: tensors", max(1, len(pairs))):
            for parameter, source in pairs:
                name = self._written(parameter)
                if name is None:
                    self._missing(parameter)
                else:
                    seen.add(name)
                    originals[name] = self.base.tensors[source].dtype
                    self._compare(parameter, source, name)
                reporter.advance()
        seen |= self._new_biases(owned)
        extra = sorted(set(self.result.tensors) - seen - {self.result.own(p) for p in self._pair})
        if extra:
            self.structure.append(f"{len(extra)} tensors are not of the base, such as {extra[0]}")
        kinds = {name: stored.dtype for name, stored in self.result.tensors.items()}
        self.structure += judge_types(kinds, originals, self.result.dtype, _base_dtype(self.base))

    def _new_biases(self, owned: set[str]) -> set[str]:
        """Judge biases that the base does not have: lora_bias calls for some, and then its neighbours are zero."""
        seen = set()
        new = [name for name in self.wanted if name not in owned]
        for name in new:
            stored = self.result.own(name)
            if stored is None:
                self.structure.append(f"{name}: the adapter adds a bias, and the files hold none")
                continue
            seen.add(stored)
            shape = self.result.tensors[stored].shape
            self.modules[name] = achieved(self.wanted[name], _zeros, _rows(self.result, stored), shape)
        for path, module in self.base.modules.items() if new else ():
            stored = self.result.own(f"{path}.bias")
            beside = getattr(module, "weight", None) is not None and getattr(module, "bias", None) is None
            if beside and stored and stored not in seen and not bool(self.result.read(stored).any()):
                seen.add(stored)
        return seen

    def _owners(self) -> tuple[set[str], list[tuple[str, str]]]:
        """The parameters there are, and with each the base's tensor; then tensors that no parameter has as such."""
        model: nn.Module = self.base.skeleton.model
        names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        pairs, used = [], set()
        for name in names + [name for name, _ in model.named_buffers()]:
            sources = (name, *self.base.ties.get(name, ()))
            source = next((own for other in sources if (own := self.base.own_tensor(other))), None)
            if source is not None:
                pairs.append((name, source))
                used |= {source, self.base.own_tensor(name) or source}
        # fused experts and the like are stored in another form, which both folders share
        return {name for name, _ in pairs}, pairs + [
            (n, n) for n in sorted(self.base.tensors) if n not in used
        ]

    def _written(self, parameter: str) -> str | None:
        """The written tensor that transformers gives a parameter; a twin's where the two are tied."""
        own = self.result.own(parameter)
        if own is not None:
            return own
        twins = self.base.ties.get(parameter, ())
        if parameter in self._pair:
            twins = tuple(name for name in self._pair if name != parameter) if self._tied else ()
        return next((found for twin in twins if (found := self.result.own(twin))), None)

    def _missing(self, parameter: str) -> None:
        if parameter in self._pair and not self._tied and self.base.ties.get(parameter):
            self.structure.append(f"tie: config.json ties nothing, and the files hold no {parameter}")
        else:
            self.structure.append(f"{parameter} is missing from the files")

    def _check_ties(self) -> None:
        config = self.base.skeleton.model.config
        apart = getattr(config, "tie_word_embeddings", False) and not self.base.ties.get(self._pair[0])
        if not (self._tied and len(self._pair) == 2) or apart:
            return  # a base whose own files hold two tensors against its configuration is taken as it is
        first, second = (self.result.own(name) for name in self._pair)
        if first and second and first != second:
            one, two = self.result.tensors[first], self.result.tensors[second]
            if one.shape != two.shape or changed(*self._both(first, second), one.shape):
                self.structure.append(
                    f"tie: config.json ties {self._pair[1]} to {self._pair[0]}, and the files hold two that differ"
                )

    def _both(self, first: str, second: str) -> tuple[Rows, Rows]:
        return _rows(self.result, first), _rows(self.result, second)

    def _compare(self, parameter: str, source: str, name: str) -> None:
        shape, stored = self.base.tensors[source].shape, self.result.tensors[name]
        if stored.shape != shape:
            self.structure.append(f"{name} has shape {stored.shape}, and the base's is {shape}")
            return
        original, found = _rows(self.base, source), _rows(self.result, name)
        shape = shape or (1,)
        shared = self.result.own(parameter) is None
        if (want := self.wanted.get(parameter)) is not None:
            outcome = achieved(want, original, found, shape)
            self.modules[parameter] = outcome
            bad = bool(outcome.misrounded)
        else:
            self.untouched += 1
            count, lost = untouched(original, found, shape)
            bad = bool(count)
            if count and not shared:
                self.spoilt[name] = (
                    f"{name} is not reached by the adapter, and {count} of its elements changed"
                )
            elif lost:
                self.spoilt[name] = (
                    f"{name}: {lost} elements overflow {str(stored.dtype).removeprefix('torch.')}"
                )
        if bad and shared:
            self.structure.append(
                f"tie: {parameter} shares the tensor {name}, and the adapter makes the two differ: it needs a "
                "tensor of its own, and tie_word_embeddings must be false"
            )


def _base_dtype(base: Checkpoint) -> torch.dtype | None:
    """The type that the base's config.json names, read as the result's is."""
    return named_dtype(json.loads((base.folder / "config.json").read_text(encoding="utf-8")))


def _embedding_and_head(base: Checkpoint) -> tuple[str, ...]:
    """The parameters of the input embedding and of the output layer."""
    model: Any = base.skeleton.model
    modules = [model.get_input_embeddings(), base.head]
    paths = [next((path for path, own in base.modules.items() if own is module), None) for module in modules]
    return tuple(f"{path}.weight" for path in paths if path is not None)


def _rows(source: Checkpoint | Result, name: str) -> Rows:
    """Rows of a stored tensor; one without dimensions counts as a row."""
    if not source.tensors[name].shape:
        return lambda start, stop: source.read(name).reshape(1)[start:stop]
    return lambda start, stop: source.rows(name, start, stop)


def _zeros(start: int, stop: int) -> Tensor:
    """Rows of a bias that the base does not have."""
    return torch.zeros(stop - start)
