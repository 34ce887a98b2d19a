"""`Certificate`: a written merge judged against its base and adapter, by code that does not merge.

`certify` recomputes what every tensor should hold (`intended`), reads what it does hold (`achieved`, `result`),
compares answers on prompts (`fidelity`), and passes or fails it by fixed limits (`verdict`). It writes nothing.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from scumble.errors import ScumbleError
from scumble.lora.adapter import Adapter
from scumble.manage.certificate.achieved import Achieved, Sums
from scumble.manage.certificate.comparison import Comparison
from scumble.manage.certificate.fidelity import Fidelity, measure
from scumble.manage.certificate.intended import wanted_of
from scumble.manage.certificate.prompts import LONGEST, PROMPTS, EncodedPrompts, encode_prompts, made_up_ids
from scumble.manage.certificate.result import Result
from scumble.manage.certificate.verdict import TOLERANCES, judge_fidelity, judge_modules
from scumble.models.checkpoint import Checkpoint
from scumble.models.threads import with_threads
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
        """The document: plain JSON values alone; null for a figure that is no finite number."""
        document = {
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
        return cast("dict[str, Any]", _finite(document))


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
        files = Comparison(base, result, wanted)
        with with_threads(1):  # each tensor is small, and read from a file
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
    if not overall.ii:
        lines[0] += "; the adapter changes nothing"
    elif overall.cosine is None:
        lines[0] += (
            f"; the update is {overall.relative:.2g} of the weights' norm, too little to be told from "
            "arithmetic noise, and is not judged"
        )
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


def _put_together(
    base: Checkpoint,
    adapter: Adapter,
    result: Result,
    files: Comparison,
    logits: Fidelity | None,
    prompts: EncodedPrompts | None,
) -> Certificate:
    overall = sum((found.sums for found in files.modules.values()), Sums())
    floats = [stored.dtype for stored in result.tensors.values() if stored.dtype.is_floating_point]
    all_fp32 = all(kind == torch.float32 for kind in floats)
    failures, warned = judge_modules(files.modules, overall, all_fp32)
    spoilt = list(files.spoilt.values())
    if len(spoilt) > _SHOWN:
        spoilt = [*spoilt[:_SHOWN], f"and {len(spoilt) - _SHOWN} more tensors like these"]
    failures = [*files.structure, *failures, *spoilt]
    if logits is not None:
        failures += judge_fidelity(logits, all_fp32)
    base_hash = logits.base_hash if logits else base.hash(torch.float32)
    if adapter.base_hash and base_hash and not _is_hash_of(adapter.base_hash, base_hash, base):
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
            "hash": logits.result_hash if logits else _hash(result, base.name),
            "hash_dtype": "fp32",
        },
        modules=files.modules,
        overall=overall,
        untouched={"tensors": files.untouched, "changed": len(files.spoilt)},
        logits=logits,
        no_logits=None if logits else "not computed: the weights alone were asked for",
        prompts=prompts,
    )


def _is_hash_of(asked: str, in_fp32: str, base: Checkpoint) -> bool:
    """Whether a hash is the base's in any type that it may have been loaded in."""
    if asked == in_fp32:
        return True
    return any(base.hash(kind) == asked for kind in (None, torch.bfloat16, torch.float16))


def _hash(result: Result, name: str) -> str | None:
    """The hash of the result as loaded in fp32, from its files; None where they cannot be read as a model."""
    try:
        with Checkpoint(result.folder, name) as written:
            return written.hash(torch.float32)
    except ScumbleError:
        return None


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


def _finite(value: Any) -> Any:
    """JSON knows no infinity and no NaN."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _versions() -> dict[str, str]:
    names = ("scumble", "torch", "transformers", "peft")
    return {name: importlib.metadata.version(name) for name in names}
