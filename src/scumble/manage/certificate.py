"""`Certificate`: a written merge judged against its base and adapter, by code that does not merge.

`certify` recomputes what every tensor should hold (`intended`), reads what it does hold (`achieved`, `result`),
compares answers on prompts (`fidelity`), and passes or fails it by fixed limits (`verdict`). It writes nothing.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scumble.lora.adapter import Adapter
from scumble.manage.achieved import Achieved, Sums, achieved, changed, overflowed
from scumble.manage.fidelity import Fidelity, measure
from scumble.manage.intended import Rows, Wanted, wanted_of
from scumble.manage.prompts import LONGEST, PROMPTS, EncodedPrompts, encode_prompts, made_up_ids
from scumble.manage.result import Result
from scumble.manage.verdict import TOLERANCES, judge_fidelity, judge_modules, judge_types
from scumble.models.checkpoint import Checkpoint
from scumble.models.weights import read_tokenizer
from scumble.progress import Reporter

VERSION = 1
_SHOWN = 8  # tensors that are named one by one


@dataclass(frozen=True)
class Certificate:
    """The judgement on a merge; `to_dict` is the document of `certificate.json`.

    Attributes:
        passed: there is no failure.
        failures, warnings: one line each, the worst first.
        base: name, hash and data type of the base.
        adapter: hash and shape of the adapter.
        result: type, size, shards and hash of what was written.
        modules: by parameter name, what each tensor that the adapter reaches holds.
        overall: the same sums over all of them.
        untouched: how many other tensors there are, and how many of them changed.
        logits: figures on prompts; None where they were not computed.
        no_logits: why not.
        prompts: what was asked.
    """

    passed: bool
    failures: tuple[str, ...]
    warnings: tuple[str, ...]
    base: Mapping[str, Any]
    adapter: Mapping[str, Any]
    result: Mapping[str, Any]
    modules: Mapping[str, Achieved]
    overall: Sums
    untouched: Mapping[str, int]
    logits: Fidelity | None
    no_logits: str | None
    prompts: EncodedPrompts | None

    def to_dict(self) -> dict[str, Any]:
        """The document: plain JSON values alone."""
        return {
            "version": VERSION,
            "passed": self.passed,
            "failures": list(self.failures),
            "warnings": list(self.warnings),
            "base": dict(self.base),
            "adapter": dict(self.adapter),
            "result": dict(self.result),
            "overall": self.overall.to_dict(),
            "modules": {name: found.to_dict() for name, found in self.modules.items()},
            "untouched": dict(self.untouched),
            "logits": self.logits.to_dict() if self.logits else None,
            "logits_reason": self.no_logits,
            "prompts": self.prompts.to_dict() if self.prompts else None,
            "tolerances": TOLERANCES,
            "versions": _versions(),
        }


def certify(
    base: Checkpoint,
    adapter: Adapter,
    written: Path,
    *,
    prompts: Sequence[str] | None = None,
    weights_only: bool = False,
    reporter: Reporter | None = None,
) -> Certificate:
    """Judge a merged model folder.

    Args:
        base: what was merged into.
        adapter: what was merged.
        written: the folder of the result.
        prompts: what the models are compared on; by default a fixed list, or token ids without a tokenizer.
        weights_only: look at the files alone, and load no model.
        reporter: told how far it is.

    Raises:
        AdapterError: the adapter does not fit the base.
        MissingFileError: there is no such folder.
        BaseModelError: the base itself cannot be loaded.
    """
    reporter = reporter or Reporter(quiet=True)
    wanted = wanted_of(adapter, base)
    result = Result(Path(written), base.skeleton.prefix)
    try:
        files = _Comparison(base, result, wanted)
        files.run(reporter)
        words = read_tokenizer(str(base.folder))
        asked = _prompts(base, words, prompts)
        files.structure += _tokenizer_faults(base, result, words, asked)
        logits = None
        if not weights_only:
            reporter.note("certificate: asking the unmerged and the merged model the same prompts")
            logits = measure(base, adapter, result, wanted, asked)
        return _put_together(base, adapter, result, files, logits, None if weights_only else asked)
    finally:
        result.close()


def describe(certificate: Certificate) -> list[str]:
    """The certificate in a few lines for people."""
    overall, logits = certificate.overall, certificate.logits
    lines = [f"certificate: {'passed' if certificate.passed else 'FAILED'}"]
    if overall.cosine is None:
        lines[0] += "; the adapter changes nothing"
    else:
        lines[0] += (
            f"; {len(certificate.modules)} tensors changed as intended to {1 - (overall.lost or 0):.2%} "
            f"(cosine {overall.cosine:.6f}, ratio of norms {overall.ratio:.6f})"
        )
    if logits is not None and logits.loaded is not None:
        gap = logits.loaded
        lines.append(
            f"loaded from disk, on {len(gap.divergences)} positions: largest logit difference "
            f"{gap.difference:.2g}, KL {gap.mean_kl:.2g} nats on average and {gap.max_kl:.2g} at most, "
            f"same first choice at {gap.agreeing / max(1, len(gap.divergences)):.1%} "
            f"(the adapter's own effect: {logits.effect.mean_kl:.2g} nats)"
        )
    elif certificate.no_logits:
        lines.append(f"logits: {certificate.no_logits}")
    lines += [f"failed: {line}" for line in certificate.failures]
    return lines + [f"warning: {line}" for line in certificate.warnings]


@dataclass
class _Comparison:
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
        homeless = [name for name in self.wanted if name not in owned]
        self.structure += [
            f"{name}: the adapter trains it, and the base has none to merge it into" for name in homeless
        ]
        extra = sorted(set(self.result.tensors) - seen - {self.result.own(p) for p in self._pair})
        if extra:
            self.structure.append(f"{len(extra)} tensors are not of the base, such as {extra[0]}")
        kinds = {name: stored.dtype for name, stored in self.result.tensors.items()}
        self.structure += judge_types(kinds, originals, self.result.dtype)

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
        if not (self._tied and len(self._pair) == 2):
            return
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
            count = changed(original, found, shape)
            bad = bool(count)
            if count and not shared:
                self.spoilt[name] = (
                    f"{name} is not reached by the adapter, and {count} of its elements changed"
                )
            elif stored.dtype.is_floating_point and (lost := overflowed(original, found, shape)):
                self.spoilt[name] = (
                    f"{name}: {lost} elements overflow {str(stored.dtype).removeprefix('torch.')}"
                )
        if bad and shared:
            self.structure.append(
                f"tie: {parameter} shares the tensor {name}, and the adapter makes the two differ: it needs a "
                "tensor of its own, and tie_word_embeddings must be false"
            )


def _put_together(
    base: Checkpoint,
    adapter: Adapter,
    result: Result,
    files: _Comparison,
    logits: Fidelity | None,
    prompts: EncodedPrompts | None,
) -> Certificate:
    overall = sum((found.sums for found in files.modules.values()), Sums())
    failures, warned = judge_modules(files.modules, overall)
    spoilt = list(files.spoilt.values())
    if len(spoilt) > _SHOWN:
        spoilt = [*spoilt[:_SHOWN], f"and {len(spoilt) - _SHOWN} more tensors like these"]
    failures = [*files.structure, *failures, *spoilt]
    if logits is not None:
        floats = [stored.dtype for stored in result.tensors.values() if stored.dtype.is_floating_point]
        failures += judge_fidelity(logits, all(kind == torch.float32 for kind in floats))
    base_hash = logits.base_hash if logits else base.hash(torch.float32)
    if adapter.base_hash and base_hash and adapter.base_hash != base_hash:
        warned.append(
            f"the adapter was trained on a base with hash {adapter.base_hash}, and this base, loaded in fp32, "
            f"has {base_hash}"
        )
    return Certificate(
        passed=not failures,
        failures=tuple(failures),
        warnings=tuple(warned),
        base={"name": base.name, "hash": base_hash, "hash_dtype": "fp32"},
        adapter=_adapter_facts(adapter),
        result={
            **result.to_dict(),
            "hash": logits.result_hash if logits else None,
            "hash_dtype": "fp32",
        },
        modules=files.modules,
        overall=overall,
        untouched={"tensors": files.untouched, "changed": len(files.spoilt)},
        logits=logits,
        no_logits=None if logits else "not computed: the weights alone were asked for",
        prompts=prompts,
    )


def _adapter_facts(adapter: Adapter) -> dict[str, Any]:
    """What identifies the adapter: a sha256 over its shape, and over name, type, shape and bytes of each tensor."""
    shape = adapter.spec.shape()
    state = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for name, tensor in adapter.tensors().items():
        state.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        state.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return {
        "sha256": state.hexdigest(),
        "base_hash": adapter.base_hash,
        "parameters": adapter.parameters,
        "spec": {key: value for key, value in shape.items() if value not in (None, False, {}, [])},
    }


def _prompts(base: Checkpoint, tokenizer: Any, prompts: Sequence[str] | None) -> EncodedPrompts:
    config = base.skeleton.model.config
    longest = min(LONGEST, int(getattr(config, "max_position_embeddings", LONGEST) or LONGEST))
    if tokenizer is None:
        made = made_up_ids(int(config.vocab_size), longest)
        return made
    return encode_prompts(tokenizer, PROMPTS if prompts is None else prompts, longest)


def _tokenizer_faults(base: Checkpoint, result: Result, words: Any, asked: EncodedPrompts) -> list[str]:
    """What of the base's tokenizer and generation settings the result lacks, or reads differently."""
    faults = result.missing_beside(base.folder)
    if words is None or any("tokenizer is left out" in fault for fault in faults):
        return faults
    try:
        other = read_tokenizer(str(result.folder))
    except Exception as error:
        return [*faults, f"the tokenizer cannot be read: {str(error)[:200]}"]
    if other is None:
        return [*faults, "the tokenizer is left out"]
    if getattr(other, "chat_template", None) != getattr(words, "chat_template", None):
        faults.append("the chat template is not the base's")
    elif replace(asked, ids=encode_prompts(other, asked.texts).ids) != asked and not asked.shortened:
        faults.append("the tokenizer gives the prompts other tokens than the base's")
    return faults


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


def _versions() -> dict[str, str]:
    names = ("scumble", "torch", "transformers", "peft")
    return {name: importlib.metadata.version(name) for name in names}
