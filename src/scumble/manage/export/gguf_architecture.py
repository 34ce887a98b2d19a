"""What llama.cpp calls the parts of a model: architectures, tensor names, the order of rows, metadata.

Only architectures whose files were read back are here, all others are refused by name, and so is every
setting that llama.cpp would compute otherwise than transformers. Knows configurations and names, no files.

Llama's q and k are stored with the rows of each head in another order, since llama.cpp rotates neighbouring
pairs where transformers rotates the two halves: row 2i + j of a head is row j * (d / 2) + i of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scumble.errors import NotSupportedError

# From the class that a configuration names to GGUF's name, and whether q and k are permuted.
TESTED = {
    "LlamaForCausalLM": ("llama", True),
    "MistralForCausalLM": ("llama", True),
    "Qwen2ForCausalLM": ("qwen2", False),
    "Qwen3ForCausalLM": ("qwen3", False),
}
_ELSEWHERE = (
    "llama.cpp's own converter, convert_hf_to_gguf.py, knows more architectures; give it the merged model"
)


@dataclass(frozen=True)
class Architecture:
    """A model's shape in llama.cpp's words.

    Attributes:
        name: what GGUF calls it.
        made: what transformers calls it.
        permuted: rows of q and k are stored in llama.cpp's order.
        config: the model's configuration.
    """

    name: str
    made: str
    permuted: bool
    config: Any

    @property
    def heads(self) -> int:
        """Heads of attention."""
        return int(self.config.num_attention_heads)

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return int(getattr(self.config, "num_key_value_heads", None) or self.heads)

    @property
    def head_width(self) -> int:
        """Numbers in a head."""
        return int(getattr(self.config, "head_dim", None) or self.config.hidden_size // self.heads)

    @property
    def layers(self) -> int:
        """Blocks."""
        return int(self.config.num_hidden_layers)

    def tensor_name(self, parameter: str) -> str:
        """GGUF's name of a parameter, such as `blk.0.attn_q.weight`.

        Raises:
            NotSupportedError: the architecture has no such tensor in llama.cpp.
        """
        import gguf

        kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.name)
        names = gguf.get_tensor_name_map(kind, self.layers)
        found = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise NotSupportedError(
                f"{parameter} has no place in llama.cpp's {self.name}", "merge into a model of a plain shape"
            )
        return found

    def ordered(self, name: str, rows: Tensor) -> Tensor:
        """Rows of a GGUF tensor in llama.cpp's order, (out, ...) in and out: permuted for q and k, else as given.

        Args:
            name: GGUF's name, of a weight or a bias.
            rows: all of W's rows, all of a bias, or all rows of a B.
        """
        heads = self.permuted_heads(name)
        if not heads:
            return rows
        half = rows.shape[0] // heads // 2
        return rows.reshape(heads, 2, half, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)

    def permuted_heads(self, name: str) -> int:
        """How many heads the rows of a GGUF tensor are permuted within; 0 for none."""
        if not self.permuted:
            return 0
        return self.heads if ".attn_q." in name else self.kv_heads if ".attn_k." in name else 0

    def rope_factors(self) -> Tensor | None:
        """(head width / 2,): what llama.cpp divides each frequency by; None where the rotation is the plain one.

        The ratio of transformers' plain and scaled frequencies, so that both compute the same rotation.
        """
        if _rope_type(self.config) != "llama3":
            return None
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](self.config, torch.device("cpu"))
        theta = float(self.config.rope_parameters["rope_theta"])
        plain = theta ** -(torch.arange(0, self.head_width, 2, dtype=torch.float64) / self.head_width)
        return (plain / scaled.double()).float()

    def write_metadata(self, writer: Any) -> None:
        """Write what llama.cpp needs to build the model, under the architecture's own keys."""
        config = self.config
        writer.add_block_count(self.layers)
        writer.add_context_length(int(config.max_position_embeddings))
        writer.add_embedding_length(int(config.hidden_size))
        writer.add_feed_forward_length(int(config.intermediate_size))
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        writer.add_key_length(self.head_width)
        writer.add_value_length(self.head_width)
        writer.add_rope_dimension_count(self.head_width)
        writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
        writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
        writer.add_vocab_size(int(config.vocab_size))


def architecture_of(config: Any, where: str) -> Architecture:
    """The architecture of a configuration.

    Args:
        config: of transformers.
        where: what an error calls the model.

    Raises:
        NotSupportedError: the architecture has no tested conversion, or a setting that llama.cpp does not have.
    """
    made = (
        getattr(config, "architectures", None) or [type(config).__name__.replace("Config", "ForCausalLM")]
    )[0]
    if made not in TESTED:
        raise NotSupportedError(
            f"{where} is {made}, which has no tested conversion to GGUF here (there are {', '.join(TESTED)})",
            _ELSEWHERE,
        )
    name, permuted = TESTED[made]
    for unlike in _unlike(config, name):
        raise NotSupportedError(
            f"{where} has {unlike}, for which there is no tested conversion to GGUF here", _ELSEWHERE
        )
    return Architecture(name, made, permuted, config)


def _rope_type(config: Any) -> str:
    rope = getattr(config, "rope_parameters", None) or {}
    return str(rope.get("rope_type", "default"))


def _unlike(config: Any, name: str) -> list[str]:
    """The settings of a configuration that llama.cpp would compute otherwise."""
    found = []
    rope = _rope_type(config)
    if rope != "default" and not (rope == "llama3" and name == "llama"):
        found.append(f"rope scaling of type {rope!r}")
    if (config.rope_parameters or {}).get("partial_rotary_factor", 1.0) not in (None, 1.0):
        found.append("rotary embeddings of part of a head")
    if getattr(config, "hidden_act", "silu") not in ("silu", "swish"):
        found.append(f"the activation {config.hidden_act!r}")
    if name == "llama" and (getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False)):
        found.append("biases, which transformers leaves out when it reads such a file")
    window = getattr(config, "sliding_window", None)
    used = getattr(config, "use_sliding_window", True)
    if window and used and window < config.max_position_embeddings:
        found.append(
            f"attention within a sliding window of {window} tokens "
            f"(without one where max_position_embeddings is {window} at most)"
        )
    if getattr(config, "quantization_config", None):
        found.append("quantised weights")
    return found
