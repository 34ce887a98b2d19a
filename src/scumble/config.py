"""The one typed home of every option: the command line, YAML files and Python are three views of it.

An option that nobody set is None where its default depends on the data or the base; who decides it writes
down the reason (`Choice`). Knows names, types and ranges, and nothing of what they are used for.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from scumble.errors import ConfigError, MissingFileError, NotSupportedError

# What people ask for that Scumble does not do, and what does it.
ELSEWHERE = {
    **dict.fromkeys(("dpo", "ipo", "kto", "orpo", "simpo", "cpo"), "preference tuning is not done here; use TRL's trainers for it"),
    **dict.fromkeys(("ppo", "grpo", "rloo", "reinforce"), "reinforcement learning is not done here; use TRL or verl"),
    **dict.fromkeys(("vlm", "vision", "image"), "images are not trained on here; use TRL's SFTTrainer with a vision model"),
    **dict.fromkeys(("full", "qlora"), "this method comes with a later version; train with --method lora"),
}


class Choice(NamedTuple):
    """A value that was decided for the user, and why."""

    option: str
    value: Any
    reason: str


class Options(BaseModel):
    """What all option groups share: unknown keys are refused, and the nearest right one is named."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, validate_assignment=True)


class LoraOptions(Options):
    """The shape of the adapter."""

    rank: int = Field(8, ge=1, description="Rank of the update")
    alpha: float = Field(16.0, gt=0, allow_inf_nan=False, description="Scale of the update: alpha / rank")
    targets: str | list[str] = Field("minimal", description="minimal, standard, comprehensive, all-linear, names, or a pattern")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the input that each update does not see in training")
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank)")
    dora: bool = Field(False, description="Train direction and magnitude (DoRA)")


class TrainOptions(LoraOptions):
    """One run of training."""

    base: str | None = Field(None, description="Alias, folder, hub name or GGUF file")
    method: Literal["lora"] = Field("lora", description="What is trained")
    epochs: float = Field(3.0, gt=0, description="Passes over the training data")
    max_steps: int | None = Field(None, ge=1, description="Stop after so many optimizer steps")
    batch: int | None = Field(None, ge=1, description="Examples in a micro-step")
    accumulate: int | None = Field(None, ge=1, description="Micro-steps in an optimizer step")
    learning_rate: float | None = Field(None, gt=0, allow_inf_nan=False, description="Highest learning rate")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="How the rate falls after the warm-up")
    warmup: int | None = Field(None, ge=0, description="Steps of warm-up, at most a tenth of the run")
    weight_decay: float = Field(0.0, ge=0, description="Decay of A and B, as in AdamW")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient")
    max_length: int = Field(2048, ge=2, description="Tokens of the longest example")
    eval: str | float | None = Field(None, description="A file, a share such as 0.1, or 0 for none")
    seed: int = Field(0, ge=0, description="Decides A, the order of the data, and dropout")
    dtype: Literal["fp32", "bf16", "fp16", "auto"] | None = Field(None, description="Type of the base's weights")
    device: str | None = Field(None, description="cpu, cuda or mps")

    @field_validator("method", mode="before")
    @classmethod
    def _known_method(cls, value: Any) -> Any:
        if isinstance(value, str) and value.lower() in ELSEWHERE:
            raise NotSupportedError(f"--method {value}: {ELSEWHERE[value.lower()]}")
        return value

    @field_validator("eval", mode="before")
    @classmethod
    def _share_or_file(cls, value: Any) -> Any:
        try:
            share = float(value)
        except (TypeError, ValueError):
            return value
        if not 0 <= share < 1:
            raise ValueError("a share is from 0 up to, but not including, 1")
        return share


class CompareOptions(Options):
    """One comparison of before and after."""

    n: int = Field(5, ge=0, description="Examples shown side by side")
    limit: int | None = Field(None, ge=1, description="Score the first so many examples")
    max_new_tokens: int = Field(256, ge=1, description="Tokens generated at most")
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False, description="0 is greedy")
    seed: int = Field(0, ge=0, description="Of sampling, where the temperature is above 0")
    batch: int = Field(16, ge=1, description="Examples generated for at once")


Group = TypeVar("Group", bound=Options)


def make(group: type[Group], **values: Any) -> Group:
    """Build an option group from values, leaving out those that are None.

    Raises:
        ConfigError: an option is not known (the nearest is named) or has a value that it cannot have.
    """
    try:
        return group(**{name: value for name, value in values.items() if value is not None})
    except pydantic.ValidationError as error:
        raise _config_error(group, error) from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read options from a YAML file, keys as on the command line, with `-` or `_`.

    Raises:
        MissingFileError: it does not exist.
        ConfigError: it is not YAML, or no mapping.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingFileError(f"the configuration {path} does not exist", "name a YAML file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not YAML", "write one `option: value` on each line") from error
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} holds no options", "write one `option: value` on each line")
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def _config_error(group: type[Options], error: pydantic.ValidationError) -> ConfigError:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else "the options"
    shown = "--" + name.replace("_", "-")
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, group.model_fields, n=1, cutoff=0.5)
        known = f"did you mean --{near[0].replace('_', '-')}?" if near else f"options are {', '.join(group.model_fields)}"
        return ConfigError(f"the option {shown} is not known", known)
    reason = first["msg"].removeprefix("Value error, ")
    return ConfigError(f"{shown} is {first['input']!r}: {reason[0].lower()}{reason[1:]}", _described(group, name))


def _described(group: type[Options], name: str) -> str:
    field = group.model_fields.get(name)
    return f"{shown}" if field and (shown := field.description) else ""
