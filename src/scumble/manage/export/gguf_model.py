"""A model folder as one GGUF file, the form of llama.cpp, Ollama and LM Studio.

    F32, F16, BF16      every matrix in that type
    Q8_0                every matrix in blocks of 32, one scale each; the embedding and the head too
    Q4_0                the same, the head (of a tied model the embedding) in Q8_0, as 4 bits cost it most

Norms, biases and whatever has one dimension stay F32, and a matrix whose rows are no whole number of blocks
is kept in F16, which the result says. The scale of a block is fp16. Streaming: one tensor is held at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scumble.errors import BaseModelError
from scumble.manage.export.gguf_architecture import Architecture, architecture_of
from scumble.manage.export.gguf_file import TYPES, Planned, block_fits, gguf_path, type_named, write_gguf
from scumble.manage.export.gguf_tokenizer import Vocabulary, vocabulary_of
from scumble.manage.export.ollama import modelfile_path, write_modelfile
from scumble.models.checkpoint import Checkpoint, open_checkpoint
from scumble.models.weights import read_tokenizer
from scumble.progress import Reporter


@dataclass(frozen=True)
class GgufModel:
    """A model written as GGUF.

    Attributes:
        out: the file.
        modelfile: Ollama's, beside it.
        architecture: in GGUF's words.
        type: asked for.
        pre: llama.cpp's name of the tokenizer's rules.
        bytes: of the file.
        source_bytes: of the weights it was made from.
        tensors: how many, by the type they are stored in.
        kept: matrices stored in F16 because their rows are no whole number of blocks.
        notes: what the user should know.
    """

    out: str
    modelfile: str
    architecture: str
    type: str
    pre: str
    bytes: int
    source_bytes: int
    tensors: dict[str, int]
    kept: list[str]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"kind": "gguf", **asdict(self)}


def export_model(
    model: str | Path,
    *,
    out: str | Path,
    type: str = "f16",
    pre: str | None = None,
    force: bool = False,
    quiet: bool = True,
) -> GgufModel:
    """Write a model folder as a GGUF file, and Ollama's Modelfile beside it.

    Args:
        model: a merged model's folder, or anything that names a base.
        out: the file, ending in `.gguf`.
        type: `f32`, `f16`, `bf16`, `q8_0` or `q4_0`.
        pre: llama.cpp's name of the tokenizer's rules, where it is not found by itself.
        force: replace what is there.
        quiet: say nothing while it runs.

    Raises:
        ConfigError: an unknown type, or `out` does not end in `.gguf`.
        NotSupportedError: an architecture, a setting or a tokenizer without a tested conversion, by name.
        BaseModelError, MissingFileError: the model cannot be read.
        OutputExistsError, OutputError: the file cannot be written.
    """
    wanted = type_named(type)
    path = gguf_path(out, force=force, inputs=[model])
    beside = modelfile_path(path, force=force)
    with open_checkpoint(str(model)) as checkpoint:
        where = f"model {model}"
        made = architecture_of(checkpoint.skeleton.model.config, where)
        tokenizer = read_tokenizer(str(checkpoint.folder))
        words = vocabulary_of(tokenizer, int(made.config.vocab_size), where, pre=pre)
        planned, kept = _plan(checkpoint, made, wanted)
        notes = _notes(made, kept)
        with Reporter(quiet=quiet).bar(f"writing {path.name}", max(1, len(planned))) as bar:
            size = write_gguf(
                path,
                made.name,
                lambda writer: _metadata(writer, made, words, wanted, _title(checkpoint)),
                planned,
                done=lambda count: bar.advance(),
            )
        source = checkpoint.bytes
    notes += write_modelfile(beside, path.name, tokenizer)
    types = dict(Counter(each.type for each in planned))
    return GgufModel(
        str(path),
        str(beside),
        made.name,
        wanted,
        words.pre,
        size,
        source,
        types,
        [each.name for each in kept],
        notes,
    )


def _title(checkpoint: Checkpoint) -> str:
    """A name for the model: the last part of its folder's or hub name, never a path of this machine."""
    title = Path(checkpoint.name).name or "model"
    # transformers takes a file of exactly that name for another architecture, and cannot read it
    return "Mistral" if title == "mistral" else title


def _metadata(writer: Any, made: Architecture, words: Vocabulary, wanted: str, title: str) -> None:
    import gguf

    writer.add_type("model")
    writer.add_name(title)
    writer.add_file_type(int(gguf.LlamaFileType[TYPES[wanted.lower()]]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    made.write_metadata(writer)
    words.write(writer)


def _plan(checkpoint: Checkpoint, made: Architecture, wanted: str) -> tuple[list[Planned], list[Planned]]:
    """The tensors to be written, and those of them that their type does not fit.

    Raises:
        BaseModelError: a tensor has another shape than the configuration says.
    """
    planned, kept = [], []
    factors = made.rope_factors()
    if factors is not None:
        planned.append(Planned("rope_freqs.weight", tuple(factors.shape), "F32", lambda: factors))
    names = {each: made.tensor_name(each) for each, _ in checkpoint.skeleton.model.named_parameters()}
    head = "output.weight" if "output.weight" in names.values() else "token_embd.weight"
    for parameter, meta in checkpoint.skeleton.model.named_parameters():
        stored, name, shape = checkpoint.tensor_name(parameter), names[parameter], tuple(meta.shape)
        if checkpoint.tensors[stored].shape != shape:
            found = checkpoint.tensors[stored].shape
            raise BaseModelError(
                f"{stored} has shape {found}, and the configuration says {shape}", "the folder is not whole"
            )
        kind = stored_type(name, shape, wanted, head)
        each = Planned(name, shape, kind, _reading(checkpoint, made, stored, name))
        planned.append(each)
        if kind == "F16" and wanted not in ("F16", "F32"):
            kept.append(each)
    return planned, kept


def _reading(checkpoint: Checkpoint, made: Architecture, stored: str, name: str) -> Any:
    def read() -> Tensor:
        return made.ordered(name, checkpoint.read(stored))

    return read


def stored_type(name: str, shape: Sequence[int], wanted: str, head: str) -> str:
    """The type that a tensor is stored in.

    Args:
        name: GGUF's.
        shape: as torch has it.
        wanted: the type of the file.
        head: the name of the tensor that makes the logits.
    """
    if len(shape) < 2 or name.endswith("_norm.weight"):
        return "F32"
    kind = "Q8_0" if wanted == "Q4_0" and name == head else wanted
    return kind if block_fits(shape, kind) else "F16"


def _notes(made: Architecture, kept: Sequence[Planned]) -> list[str]:
    notes = []
    if kept:
        notes.append(f"{len(kept)} matrices whose rows are no whole number of blocks are kept in F16")
    if made.rope_factors() is not None:
        notes.append(
            "the llama3 rope scaling is in the file (rope_freqs); transformers ignores it when it reads GGUF"
        )
    return notes
