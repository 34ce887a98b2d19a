"""Settings by the tree-structured Parzen estimator of Optuna (Bergstra et al. 2011): drawn where good ones were found.

A round of settings is asked for at once, as many as are trained beside one another, and told of together. The sampler is
seeded, so that the same results, told again, lead to the same settings: that is how a sweep is resumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scumble.errors import MissingExtraError
from scumble.train.sweep.space import Combination, Range, Space

ROUND = 4  # settings of a round
_AGAIN = 50  # proposals in a row that are known already, after which a round is closed


class Tpe:
    """The search.

    Args:
        space: what is searched.
        count: settings in all.

    Raises:
        MissingExtraError: Optuna is not installed.
    """

    def __init__(self, space: Space, count: int) -> None:
        try:
            import optuna
        except ImportError as error:
            raise MissingExtraError(
                "--search tpe needs optuna, which is not installed", 'pip install "scumble[sweep]"'
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.space, self.left = space, int(min(count, space.size))
        # drawn at random before anything can be learned from them
        first = min(10, max(ROUND, count // 3))
        sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=first)
        self._optuna: Any = optuna
        self._study = optuna.create_study(sampler=sampler, direction="minimize")
        self._asked: dict[str, Any] = {}  # by setting: the study's trial
        self._known: dict[str, float | None] = {}

    def ask(self) -> list[Combination]:
        """The settings of the next round; empty where there are no more."""
        found: dict[str, Combination] = {}
        missed = 0
        while len(found) < min(ROUND, self.left) and missed < _AGAIN:
            trial = self._study.ask()
            drawn = {name: self._suggested(trial, name) for name in self.space.axes}
            key = self.space.key(drawn)
            if key in self._known:
                self._tell(trial, self._known[key])  # what is tried already is not trained again
                missed += 1
            elif key in found:
                self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
                missed += 1
            else:
                found[key], self._asked[key], missed = drawn, trial, 0
        self.left = self.left - len(found) if found else 0
        return list(found.values())

    def tell(self, results: Mapping[int, float | None], combinations: list[Combination]) -> None:
        """What came of a round: of each of its settings what should be low; None where it failed."""
        for place, combination in enumerate(combinations):
            key, value = self.space.key(combination), results[place]
            self._known[key] = value
            self._tell(self._asked.pop(key), value)

    def _tell(self, trial: Any, value: float | None) -> None:
        if value is None:
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(trial, value)

    def _suggested(self, trial: Any, name: str) -> Any:
        axis = self.space.axes[name]
        if not isinstance(axis, Range):
            # by number: what Optuna may be handed as a category is less than what an option may be
            return axis[trial.suggest_categorical(name, list(range(len(axis))))]
        how = {"log": axis.logarithmic}
        if axis.whole:
            return trial.suggest_int(name, int(axis.low), int(axis.high), **how)
        return float(f"{trial.suggest_float(name, axis.low, axis.high, **how):.4g}")
