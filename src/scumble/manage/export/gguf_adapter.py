"""An adapter as a GGUF LoRA, which llama.cpp and Ollama apply to the GGUF of its base.

llama.cpp knows one alpha for the whole file, and scales the update of a tensor by alpha / rank, the rank being
that of the tensor. The true scale s of each module (rsLoRA, `rank_pattern`, `alpha_pattern`) is folded into B:

    alpha / r * (B s r / alpha) A  =  s B A

Rows of B are put in the order of the base's rows (llama.cpp permutes Llama's q and k). Whatever llama.cpp
would leave out without a word is refused by name. Reads the base's configuration, and not its weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scumble.errors import AdapterError, ConfigError, NotSupportedError
from scumble.lora.adapter import Adapter, Factors
from scumble.manage.export.gguf_architecture import Architecture, architecture_of
from scumble.manage.export.gguf_file import Planned, gguf_path, type_named, write_gguf
from scumble.manage.export.ollama import modelfile_path, write_adapter_modelfile
from scumble.models.embedded import ensure
from scumble.models.hub import explain, hub_reachable
from scumble.models.resolve import EMBEDDED_NAME, resolve
from scumble.models.weights import quiet as silenced

_MERGE = "merge it first (scumble merge), and export the merged model"
_TYPES = ("f32", "f16", "bf16")


@dataclass(frozen=True)
class GgufAdapter:
    """An adapter written as a GGUF LoRA.

    Attributes:
        out: the file.
        modelfile: Ollama's, beside it.
        architecture: of the base, in GGUF's words.
        base: its name.
        type: of the factors.
        alpha: the one that the file holds.
        modules: how many are in it.
        folded: how many of them have a scale that was folded into B.
        bytes: of the file.
        notes: what the user should know.
    """

    out: str
    modelfile: str
    architecture: str
    base: str
    type: str
    alpha: float
    modules: int
    folded: int
    bytes: int
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"kind": "gguf", **asdict(self)}


def export_adapter(
    adapter: str | Path,
    *,
    out: str | Path,
    base: str | None = None,
    type: str = "f32",
    force: bool = False,
) -> GgufAdapter:
    """Write an adapter as a GGUF LoRA, and Ollama's Modelfile beside it.

    Args:
        adapter: folder of an adapter or of a run.
        out: the file, ending in `.gguf`.
        base: another base than the adapter names; its configuration alone is read.
        type: `f32`, `f16` or `bf16`.
        force: replace what is there.

    Raises:
        ConfigError: an unknown type, or `out` does not end in `.gguf`.
        NotSupportedError: the base's architecture has no tested conversion, or llama.cpp cannot take what the
            adapter is made of; by name.
        AdapterError: the adapter cannot be read, or does not fit its base.
        OutputExistsError, OutputError: the file cannot be written.
    """
    kind = type_named(type)
    if type.lower() not in _TYPES:
        raise ConfigError(
            f"--type {type!r} is not written for adapters", f"choose one of {', '.join(_TYPES)}"
        )
    read = Adapter.load(adapter)
    # the base that the adapter names may itself be a GGUF file
    path = gguf_path(out, force=force, inputs=[adapter, base, read.spec.base_name])
    beside = modelfile_path(path, force=force)
    refuse_what_llama_cpp_lacks(read, str(adapter))
    name = base or read.spec.base_name
    if not name:
        raise AdapterError(f"{adapter} does not say what its base is", "name it with --base")
    config = read_configuration(name)
    made = architecture_of(config, f"base {name}")
    planned = list(_tensors(read, made, _shapes(config), kind, str(adapter)))
    alpha = float(read.spec.alpha)
    size = write_gguf(path, made.name, lambda writer: _metadata(writer, alpha, path.stem), planned)
    notes = write_adapter_modelfile(beside, path.name, name)
    ratios = [_ratio(read, module) for module in read.factors]
    return GgufAdapter(
        str(path),
        str(beside),
        made.name,
        name,
        kind,
        alpha,
        len(ratios),
        sum(r != 1 for r in ratios),
        size,
        notes,
    )


def refuse_what_llama_cpp_lacks(adapter: Adapter, where: str) -> None:
    """Raise `NotSupportedError` for the first thing in an adapter that a GGUF LoRA cannot hold."""
    spec = adapter.spec
    asked = {
        "DoRA": spec.dora,
        "lora_bias": spec.lora_bias or any(each.bias is not None for each in adapter.factors.values()),
        f"trained biases of the base (bias={spec.bias!r})": bool(adapter.biases),
        f"modules_to_save ({', '.join(spec.modules_to_save)})": bool(adapter.saved or spec.modules_to_save),
        "trained token rows (trainable_token_indices)": bool(adapter.tokens or spec.trainable_token_indices),
        "factors of an embedding": any(each.embedding for each in adapter.factors.values()),
    }
    for title, there in asked.items():
        if there:
            raise NotSupportedError(f"{where} has {title}, which llama.cpp cannot take in an adapter", _MERGE)
    if not adapter.factors:
        raise AdapterError(f"{where} holds no low-rank update", "train it again")


def read_configuration(name: str) -> Any:
    """The configuration of a base: of the embedded default, a folder, or the hub.

    Raises:
        BaseModelError, MissingFileError: it cannot be found or read.
        ConfigError: a GGUF file was named.
    """
    from transformers import AutoConfig

    source = resolve(name)
    if source.kind == "gguf":
        raise ConfigError(
            f"--base {name} is a GGUF file", "name the model folder or hub name that it was made from"
        )
    where = str(ensure().folder) if source.name == EMBEDDED_NAME else source.name
    local = source.kind != "hub" or not hub_reachable()
    try:
        with silenced():
            return AutoConfig.from_pretrained(where, local_files_only=local, trust_remote_code=False)
    except Exception as error:
        raise explain(error, source) from error


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a base that has a tensor of its own, from its configuration."""
    from transformers import AutoModelForCausalLM

    with silenced(), torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _ratio(adapter: Adapter, module: str) -> float:
    """s r / alpha: 1 where llama.cpp's own scale is the true one."""
    spec = adapter.spec
    ratio = spec.scale_of(module) * spec.rank_of(module) / spec.alpha
    return 1.0 if abs(ratio - 1) < 1e-12 else ratio  # what rounding alone leaves


def _tensors(
    adapter: Adapter, made: Architecture, shapes: dict[str, tuple[int, ...]], kind: str, where: str
) -> Iterator[Planned]:
    for module, factors in adapter.factors.items():
        shape, fits = shapes.get(f"{module}.weight"), (factors.B.shape[0], factors.A.shape[1])
        if shape is None and module.endswith("lm_head"):
            raise NotSupportedError(
                f"{where} adapts {module}, which is tied to the embedding in its base", _MERGE
            )
        if shape != fits:
            is_there = f"there it is {shape}" if shape else "there is none of that name"
            raise AdapterError(
                f"{where}: {module} is for a weight of {fits}, and in its base {is_there}",
                "name its base with --base",
            )
        name = made.tensor_name(f"{module}.weight")
        B = made.ordered(name, folded(factors, _ratio(adapter, module)))
        yield Planned(f"{name}.lora_a", tuple(factors.A.shape), kind, partial(_given, factors.A))
        yield Planned(f"{name}.lora_b", tuple(B.shape), kind, partial(_given, B))


def _given(tensor: Tensor) -> Tensor:
    return tensor


def folded(factors: Factors, ratio: float) -> Tensor:
    """B times a scale, (out, rank), rounded once: fp64 to fp32."""
    return factors.B if ratio == 1 else (factors.B.double() * ratio).float()


def _metadata(writer: Any, alpha: float, title: str) -> None:
    import gguf

    writer.add_type("adapter")
    writer.add_name(title)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
