"""A run that was begun earlier: what it was begun with, and whether what there is now is the same.

Knows `run.json`, and nothing of how to train or of how a checkpoint is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from scumble.config import TrainOptions, make
from scumble.errors import ConfigError, MissingFileError
from scumble.models.threads import ThreadChoice

START_OVER = "give what it was begun with, or start over with --force"


@dataclass(frozen=True)
class Earlier:
    """A run that was begun.

    Attributes:
        folder: of the run.
        facts: the content of its `run.json`.
        options: all of its options.
    """

    folder: Path
    facts: dict[str, Any]
    options: TrainOptions

    @property
    def finished(self) -> bool:
        """Whether it came to its end, report and all."""
        result = self.facts.get("result")
        return result is not None and result["stopped"] is None and (self.folder / "report.html").exists()

    @property
    def threads(self) -> ThreadChoice:
        """The threads it was begun with; sums come out the same to the last digit only with as many."""
        return ThreadChoice(**self.facts["training"]["threads"], reason="as the run was begun")

    def check(self, now: Mapping[str, Any]) -> None:
        """Refuse another base, other data, or other settings than it was begun with.

        Args:
            now: the facts of the run as they would be written down today.

        Raises:
            ConfigError: with what differs, both values.
        """
        for what, key in (
            ("the base", ("base", "hash")),
            ("the type of the base's weights", ("base", "dtype")),
            ("the training data", ("data", "hash")),
            ("the validation data", ("validation", "hash")),
            ("the adapter to go on from", ("from", "hash")),
        ):
            before, found = (str(_at(facts, key)) for facts in (self.facts, now))
            if before != found:
                raise ConfigError(
                    f"{what} is not what the run in {self.folder} was begun with: "
                    f"{' '.join(key)} is {found}, and was {before}",
                    START_OVER,
                )
        for part in ("training", "lora"):
            _refuse(self.folder, self.facts.get(part) or {}, now.get(part) or {}, leave=("threads",))

    def changed_versions(self) -> list[str]:
        """The libraries that have another version now, on which the last digits may depend."""
        before = {name: version for name, version in self.facts["versions"].items() if name != "python"}
        return [
            f"{name} was {version} when the run was begun, and is {metadata.version(name)}"
            for name, version in before.items()
            if metadata.version(name) != version
        ]


def earlier_run(out: str | Path | None, given: TrainOptions) -> Earlier | None:
    """The run in a folder, to be gone on with.

    Args:
        out: the folder.
        given: the options given today; what was not given is not asked about.

    Returns:
        None where there is no such folder yet.

    Raises:
        ConfigError: there is no folder named, or an option says otherwise than the run.
        MissingFileError: the folder holds no run.
    """
    if out is None:
        raise ConfigError("--resume needs --out", "name the folder of the run")
    folder = Path(out).expanduser()
    if not folder.exists():
        return None
    path = folder / "run.json"
    if not path.is_file():
        raise MissingFileError(f"{folder} is no run: it has no run.json", "choose another --out")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        recorded = facts["options"]
        (
            facts["base"]["hash"],
            facts["data"]["hash"],
            facts["training"]["threads"],
            facts["versions"],
            facts["lora"],
        )
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path} is damaged", "start over with --force") from error
    told = given.model_dump(mode="json")
    # the base is known by its hash, whatever it is called
    names = given.model_fields_set - {"base"}
    _refuse(folder, recorded, {name: told[name] for name in names})
    options = make(TrainOptions, **recorded)
    return Earlier(folder, facts, options)


def _refuse(
    folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], leave: Iterable[str] = ()
) -> None:
    for name in sorted(now):
        if name not in leave and name in before and before[name] != now[name]:
            option = name.rstrip("_").replace("_", "-")
            raise ConfigError(
                f"{option} is {now[name]}, and the run in {folder} was begun with {before[name]}", START_OVER
            )


def _at(facts: Mapping[str, Any], key: tuple[str, str]) -> Any:
    return (facts.get(key[0]) or {}).get(key[1])
