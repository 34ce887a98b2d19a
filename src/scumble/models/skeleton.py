"""`Skeleton`: a model without weights, built from a folder's config.json, so that its modules are known.

It tells which classes stand at which paths, their shapes, and which parameters are tied. Nothing of the
weights is read, no code that comes with a model is run, and nothing is allocated (the `meta` device).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scumble.errors import NotSupportedError
from scumble.models.weights import check_causal, quiet


@dataclass
class Skeleton:
    """A model on the `meta` device.

    Attributes:
        model: a transformers causal language model whose parameters have shapes and no data.
        modules: its modules by path, as PEFT's format names them.
        head: its output layer, None where it has none.
        prefix: the name of its decoder (`model`, `transformer`), which checkpoints may leave out.
    """

    model: Any
    modules: dict[str, nn.Module]
    head: nn.Module | None
    prefix: str

    def ties(self) -> dict[str, tuple[str, ...]]:
        """The parameters that share one tensor: from each one's name to the names of the others."""
        groups: dict[int, list[str]] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            groups.setdefault(id(parameter), []).append(name)
        return {
            name: tuple(other for other in names if other != name)
            for names in groups.values()
            for name in names
            if len(names) > 1
        }

    def untie(self, name: str) -> None:
        """Give a tied parameter a tensor of its own."""
        path, _, last = name.rpartition(".")
        shape = self.model.get_parameter(name).shape
        setattr(self.modules[path], last, nn.Parameter(torch.empty(shape, device="meta")))


def build_skeleton(folder: Path, title: str) -> Skeleton:
    """Build the skeleton that a folder's config.json describes.

    Args:
        folder: holds config.json.
        title: what an error calls the base.

    Raises:
        NotSupportedError: it is not a causal language model, or its weights are quantised.
        Exception: whatever transformers raises for a configuration that is missing or broken.
    """
    from transformers import AutoConfig

    with quiet():
        config: Any = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    return _build(config, title)


def skeleton_of(config: Mapping[str, Any], title: str) -> Skeleton:
    """Build the skeleton that the contents of a config.json describe.

    Raises:
        As `build_skeleton`.
    """
    with tempfile.TemporaryDirectory(prefix="scumble-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return build_skeleton(Path(folder), title)


def _build(config: Any, title: str) -> Skeleton:
    from transformers import AutoModelForCausalLM

    check_causal(title, config)
    _refuse_quantised(title, config)
    with quiet(), torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    modules = dict(model.named_modules())
    return Skeleton(model, modules, model.get_output_embeddings(), str(model.base_model_prefix))


def _refuse_quantised(title: str, config: Any) -> None:
    asked = getattr(config, "quantization_config", None)
    if asked is None:
        return
    values = asked if isinstance(asked, dict) else asked.to_dict()
    method = values.get("quant_method") or values.get("quantization_method") or "an unknown method"
    raise NotSupportedError(
        f"base {title} has quantised weights ({getattr(method, 'value', method)}), which are not read here",
        "name the base that it was made from, in fp32, bf16 or fp16",
    )
