"""The one typed home of every option: the command line, YAML files and Python are three views of it.

An option that nobody set is None where its default depends on the data or the base; who decides it writes
down the reason (`Choice`). Knows names, types and ranges, and nothing of what they are used for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import pydantic
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from scumble.complaints import config_error, flag
from scumble.errors import NotSupportedError

# What people ask for that Scumble does not do, and what does it.
ELSEWHERE: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("dpo", "ipo", "kto", "orpo", "simpo", "cpo"),
        ("preference tuning is not done here", "use TRL's trainers, such as DPOTrainer"),
    ),
    **dict.fromkeys(
        ("ppo", "grpo", "rloo", "reinforce", "rl", "rlhf"),
        ("reinforcement learning is not done here", "use TRL's GRPOTrainer, or verl"),
    ),
    **dict.fromkeys(
        ("vlm", "vision", "image", "images"),
        ("images are not trained on here", "use TRL's SFTTrainer with a vision model"),
    ),
    "qlora": ("this method comes with a later version", "train with --method lora"),
    "dora": ("DoRA is a kind of lora", "train with --method lora --dora"),
    "rslora": ("rsLoRA is a kind of lora", "train with --method lora --rslora"),
}
_SEEDS = 2**32 - 1
_MANY = 10**6  # far more passes than any run has, and examples than any step


class Choice(NamedTuple):
    """A value that was decided for the user, and why."""

    option: str
    value: Any
    reason: str


class Options(BaseModel):
    """What all option groups share: unknown keys are refused, and the nearest right one is named."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, validate_assignment=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic takes `rank: yes` of a YAML file for a rank of 1
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("must not be true or false")
        return value


class LoraOptions(Options):
    """The shape of the adapter."""

    rank: int = Field(8, ge=1, description="Rank of the update")
    alpha: float = Field(16.0, gt=0, allow_inf_nan=False, description="The update is scaled by alpha / rank")
    targets: str | list[str] = Field(
        "minimal", description="minimal, standard, comprehensive, all-linear, names, or a pattern"
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the input that each update does not see in training"
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank)")
    dora: bool = Field(False, description="Train direction and magnitude (DoRA)")


class DataOptions(Options):
    """How data become what a model is trained on."""

    format: Literal["chat", "prompt_completion", "alpaca", "sharegpt", "text"] | None = Field(
        None, description="chat, prompt_completion, alpaca, sharegpt or text; recognised where not told"
    )
    template: str | None = Field(None, description="File with a chat template, instead of the tokenizer's")
    train_on: Literal["all", "last"] = Field(
        "all", description="Every answer of a conversation carries a loss, or only the last"
    )


class PreviewOptions(Options):
    """How much of a data set is looked at."""

    n: int = Field(3, ge=0, description="Examples shown token by token")
    limit: int = Field(2000, ge=1, description="Measure the first so many examples")
    batch: int = Field(8, ge=1, description="Examples in the batches that savings are measured on")
    max_length: int = Field(2048, ge=2, description="Tokens of the longest example that is kept")


class SplitOptions(Options):
    """How a data set is cut in parts."""

    share: float = Field(0.1, gt=0, lt=1, description="Share of the validation part")
    test: float = Field(0.0, ge=0, lt=1, description="Share of a test part")
    seed: int = Field(0, ge=0, le=_SEEDS, description="Another seed cuts elsewhere")
    group: str | None = Field(None, description="Field whose equal values stay together")
    stratify: str | None = Field(None, description="Field of whose every value each part gets its share")


class RunOptions(DataOptions, LoraOptions):
    """What decides how long a run is, and how much is computed at once: for those who train and those who plan."""

    base: str | None = Field(None, description="Alias, folder, hub name or GGUF file")
    epochs: float = Field(
        3.0, gt=0, le=_MANY, allow_inf_nan=False, description="Passes over the training data"
    )
    max_steps: int | None = Field(None, ge=1, description="Stop after so many optimizer steps")
    batch: int | None = Field(None, ge=1, description="Examples in a micro-step")
    accumulate: int | None = Field(None, ge=1, description="Micro-steps in an optimizer step")
    # beyond this AdamW's own arithmetic overflows; whatever is below ends in a loss that is not finite, and is said
    learning_rate: float | None = Field(
        None, gt=0, le=1e37, allow_inf_nan=False, description="Highest learning rate"
    )
    warmup: int | None = Field(None, ge=0, description="Steps of warm-up, at most a tenth of the run")
    optimizer: Literal["adamw", "adamw8bit", "paged_adamw", "paged_adamw8bit"] = Field(
        "adamw", description="AdamW of torch, or one of bitsandbytes"
    )
    eval: str | float | None = Field(None, description="A file, a share such as 0.1, or 0 for none")
    seed: int = Field(0, ge=0, le=_SEEDS, description="Decides A, the order of the data, and dropout")

    @field_validator("method", mode="before", check_fields=False)
    @classmethod
    def _known_method(cls, value: Any) -> Any:
        known = get_args(cls.model_fields["method"].annotation)
        if isinstance(value, str) and value not in known and value.lower() in ELSEWHERE:
            what, instead = ELSEWHERE[value.lower()]
            raise NotSupportedError(f"--method {value}: {what}", instead)
        return value

    @field_validator("eval", mode="before")
    @classmethod
    def _share_or_file(cls, value: Any) -> Any:
        if isinstance(value, str) and not value.strip():
            raise ValueError("must not be empty")
        try:
            share = float(value)
        except (TypeError, ValueError):
            return value
        if not 0 <= share < 1:
            raise ValueError("must, as a share, be 0 or more and below 1")
        return share


class TrainOptions(RunOptions):
    """One run of training."""

    method: Literal["lora", "full"] = Field("lora", description="What is trained: an adapter, or all weights")
    from_: str | None = Field(None, description="Adapter to go on from, whose shape is taken")
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora", "eva", "loftq"] = Field(
        "default", description="How A and B begin"
    )
    init_compress: bool = Field(
        False, description="Save pissa and olora in the rank trained, not in twice it"
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the rate falls after the warm-up"
    )
    weight_decay: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Decay of A, or of whole matrices, as in AdamW"
    )
    lora_plus: float | None = Field(None, gt=0, allow_inf_nan=False, description="Rate of B over that of A")
    rates: dict[str, float] = Field(
        {}, description="Highest rates of single modules, by parts of their names"
    )
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient; inf for none")
    max_length: int = Field(2048, ge=2, description="Tokens of the longest example")
    eval_every: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Steps from one evaluation to the next, or a share of an epoch",
    )
    eval_limit: int = Field(200, ge=1, description="Examples that are answered for a metric, at most")
    patience: int | None = Field(
        None, ge=1, description="End after so many evaluations in a row without a better one"
    )
    keep_best: str = Field("loss", description="What the best checkpoint is chosen by: loss, or a metric")
    save_every: int | None = Field(
        None, ge=1, description="Steps from one checkpoint to the next, besides those at evaluations"
    )
    track: Literal["tensorboard", "wandb", "mlflow", "trackio"] | None = Field(
        None, description="Who else gets the figures of metrics.jsonl"
    )
    gradient_checkpointing: Literal["auto", "none", "all"] = Field(
        "auto", description="Layers computed twice to save memory: as many as it takes, none or all"
    )
    dtype: Literal["fp32", "bf16", "fp16", "auto"] | None = Field(
        None, description="Type of the base's weights"
    )
    device: str | None = Field(None, description="cpu, cuda or mps")

    @field_validator("rates", mode="before")
    @classmethod
    def _rates_by_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            pairs = [each.rpartition("=") for each in value.split(",")]
            value = {name.strip(): rate for name, _, rate in pairs}
        if not isinstance(value, Mapping):
            raise ValueError("must be rates by name, such as q_proj=1e-4,mlp=5e-5")
        try:
            read = {name: float(rate) for name, rate in value.items()}
        except (TypeError, ValueError):
            raise ValueError("must be rates by name, such as q_proj=1e-4,mlp=5e-5") from None
        if not all(name and isinstance(name, str) and 0 < rate <= 1e37 for name, rate in read.items()):
            raise ValueError("must be names, each with a rate above 0")
        return read

    @field_validator("eval_every")
    @classmethod
    def _steps_or_share(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and not value.is_integer():
            raise ValueError("must be a whole number of steps, or a share of an epoch below 1")
        return value


class PlanOptions(RunOptions):
    """A way to train, of which memory and parameters are planned."""

    method: Literal["lora", "qlora", "full"] = Field(
        "lora", description="What is trained: an adapter, one on a base in 4 bits, or all weights"
    )
    batch: int | None = Field(None, ge=1, le=_MANY, description="Examples in a micro-step")
    accumulate: int | None = Field(None, ge=1, le=_MANY, description="Micro-steps in an optimizer step")
    max_length: int | None = Field(
        None, ge=2, description="Tokens of the longest example, at most the base's positions"
    )
    supervised: float | None = Field(
        None, gt=0, le=1, description="Share of the tokens that have a loss, without data"
    )
    gradient_checkpointing: str | int = Field(
        "auto", description="Layers computed twice: auto, none, all or how many"
    )
    dtype: Literal["fp32", "bf16", "fp16", "int8", "nf4"] | None = Field(
        None, description="Type of the base's weights"
    )
    gpu: str | None = Field(None, description="Memory that there is, such as 24GB, or the name of a card")
    device: Literal["cpu", "cuda"] = Field("cuda", description="Where the base is: cpu or cuda")
    adapters: int = Field(1, ge=1, le=4096, description="Adapters like this one in training at once")
    processes: int = Field(1, ge=1, le=4096, description="Devices that train on different examples")
    sharding: Literal["none", "ddp", "fsdp2"] | None = Field(
        None, description="What several devices divide among them: none, ddp or fsdp2"
    )

    @field_validator("gpu", mode="before")
    @classmethod
    def _a_size_or_name(cls, value: Any) -> Any:
        # a number of YAML or Python: what it lacks is said where sizes are read
        return str(value) if isinstance(value, int | float) else value

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _word_or_layers(cls, value: Any) -> Any:
        if value in ("auto", "none", "all"):
            return value
        try:
            layers = int(str(value))
        except ValueError:
            layers = -1
        if layers < 0:
            raise ValueError("must be auto, none, all, or a number of layers")
        return layers


class CompareOptions(Options):
    """One comparison of before and after."""

    n: int = Field(5, ge=0, description="Examples shown side by side")
    limit: int | None = Field(None, ge=1, description="Score the first so many examples")
    max_new_tokens: int = Field(256, ge=1, description="Tokens generated at most")
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False, description="0 is greedy")
    seed: int = Field(0, ge=0, le=_SEEDS, description="Of sampling, where the temperature is above 0")
    batch: int = Field(16, ge=1, description="Examples generated for at once")


class LabOptions(Options):
    """How much is done to test the lesson, where not as planned."""

    steps: int | None = Field(None, ge=2, le=10_000, description="Optimizer steps of every run")
    score: int | None = Field(None, ge=2, le=1000, description="Unseen examples that are scored")


class ChatOptions(Options):
    """How a conversation is answered."""

    max_new_tokens: int = Field(256, ge=1, description="Tokens of an answer at most")
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False, description="0 is greedy")


class BlendOptions(Options):
    """How adapters become one."""

    method: Literal["exact", "svd", "magnitude", "ties", "dare", "dare_ties"] = Field(
        "exact", description="exact, svd, magnitude, ties, dare or dare_ties"
    )
    rank: int | None = Field(None, ge=1, description="Largest rank of the result")
    density: float = Field(
        0.2, ge=1e-4, le=1, description="Share of single weights kept by magnitude, ties and dare"
    )
    seed: int = Field(0, ge=0, le=_SEEDS, description="Of DARE's masks, and of learning")
    normalize: bool = Field(False, description="Take the weighted mean of what agrees, not the sum")
    interpolate: bool = Field(False, description="Blend also modules_to_save and trained token rows")
    learn_per: Literal["layer", "adapter"] = Field(
        "layer", description="Learn a weight for each adapter and layer, or one for each adapter"
    )
    learn_steps: int = Field(40, ge=1, description="Steps of learning the weights")
    learn_limit: int = Field(64, ge=2, description="Examples of each set to learn from, the first so many")


class ResizeOptions(Options):
    """How small an adapter should become."""

    rank: int | None = Field(None, ge=1, description="Of every module, or with shared on average")
    energy: float | None = Field(None, gt=0, le=1, description="Share of each update's squared norm to keep")
    shared: bool = Field(False, description="Modules share the budget of numbers, or the energy")


class SweepOptions(Options):
    """How the settings of a sweep are chosen, and what they are judged by."""

    search: Literal["grid", "random", "tpe"] = Field(
        "grid", description="grid takes all combinations, random and tpe draw some"
    )
    trials: int | None = Field(
        None, ge=1, le=10_000, description="Settings drawn; of a grid, so many at most"
    )
    halving: bool = Field(False, description="End the worst early, rung by rung")
    eta: int = Field(2, ge=2, le=64, description="With halving one setting in so many goes on")
    budget: float | None = Field(
        None, gt=0, description="Time after which all are paused, such as 90s, 30m or 2h"
    )
    metric: str | None = Field(None, description="Metric that decides instead of the loss")
    score: int = Field(200, ge=0, description="Examples that the metric is taken over, at most; 0 for none")

    @field_validator("budget", mode="before")
    @classmethod
    def _time(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        found = re.fullmatch(r"(?:(\d+\.?\d*)h)?(?:(\d+\.?\d*)m)?(?:(\d+\.?\d*)s)?", value.strip())
        if found is None or not any(found.groups()):
            raise ValueError("must be a time such as 90s, 30m or 1h30m")
        return sum(float(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True))


Group = TypeVar("Group", bound=Options)


def make(group: type[Group], /, **values: Any) -> Group:
    """Build an option group from values, leaving out those that are None.

    Raises:
        ConfigError: an option is not known (the nearest is named) or has a value that it cannot have.
        NotSupportedError: it asks for what Scumble does not do.
    """
    try:
        return group(**{name: value for name, value in values.items() if value is not None})
    except pydantic.ValidationError as error:
        raise config_error(group, error, flag) from error
