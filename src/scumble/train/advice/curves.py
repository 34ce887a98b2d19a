"""`Curve`: the losses of a run over its own clock, and robust statistics of them.

The clock of a run is the sum of its learning rates, tau_t = sum of eta_i for i <= t, not its steps: a schedule that
falls to zero makes every curve flat at its end, and a curve that is flat there says nothing. With AdamW no number moves
by much more than eta_t in a step (Kingma and Ba 2015, arXiv:1412.6980, section 2.1), so that tau bounds the way made.

    noise     s = 1.4826 MAD(y_t+1 - y_t) / sqrt(2): what a loss moves by from step to step, whatever its trend. Of
              successive differences: von Neumann 1941; the MAD as a scale: Rousseeuw and Croux 1993
    level     the median of a stretch of steps: half of them may be spikes
    trend     Mann-Kendall: S = sum over i < j of sign(y_j - y_i), with variance n (n - 1) (2 n + 5) / 18 where nothing
              changes; p = 1 - Phi((|S| - 1) / sd S), one-sided;
              counted over all orders up to 10 points. Mann 1945; Kendall 1975. From 4 points on
    gain      (L(tau / 2) - L(tau)) / (L(0) - L(tau)): what the second half of the clock won, of all that was won
    rise      (last level - lowest) / lowest of the evaluations, and the trend after the lowest,
              which is not of them: a stretch that began at its own minimum would seem to rise
    setback   the highest rise of the running median of 5 training losses above its lowest value before, as a share of
              what had been won until then

Knows numbers, and nothing of runs' files or of what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
_EXACT = 10  # points, up to which the chance of a trend is counted: five that fall one after another have p = 1/120
_WINDOW = 5  # training losses under one running median: two spikes in five change nothing
_MEDIAN = 1.25  # the standard error of a median of n is 1.25 s / sqrt(n) (Kenney and Keeping)
_BEYOND = 4  # standard errors, within which a rise counts as noise


@dataclass(frozen=True)
class Rise:
    """How the loss on validation data stood at the end, against its lowest value.

    Attributes:
        best: step of the lowest.
        lowest, last: losses; the last is the median of the last three evaluations since the lowest.
        after: evaluations after the lowest.
        chance: p of the trend upwards after the lowest, one-sided; 1 for fewer than 4 points.
        trained: training loss at the end over that around the lowest.
    """

    best: int
    lowest: float
    last: float
    after: int
    chance: float
    trained: float

    @property
    def share(self) -> float:
        """By how much of itself the lowest loss was exceeded."""
        return (self.last - self.lowest) / self.lowest if self.lowest > 0 else 0.0


@dataclass(frozen=True)
class Curve:
    """The losses of a run.

    Attributes:
        steps, losses, rates, norms: of the optimizer steps, (steps,) each.
        eval_steps, evals: of the evaluations, (evaluations,) each, the start included.
    """

    steps: Numbers
    losses: Numbers
    rates: Numbers
    norms: Numbers
    eval_steps: Numbers
    evals: Numbers

    @classmethod
    def of(
        cls, steps: Sequence[tuple[int, float, float, float]], evals: Sequence[tuple[int, float]]
    ) -> Curve:
        """From rows of (step, loss, rate, norm of the gradient) and of (step, loss)."""
        a = np.array(steps, dtype=float).reshape(len(steps), 4)
        b = np.array(evals, dtype=float).reshape(len(evals), 2)
        return cls(a[:, 0], a[:, 1], a[:, 2], a[:, 3], b[:, 0], b[:, 1])

    @property
    def clock(self) -> Numbers:
        """tau after each step."""
        return np.cumsum(self.rates)

    def clock_at(self, step: float) -> float:
        """tau after a step; 0 at the start."""
        return float(np.interp(step, np.r_[0.0, self.steps], np.r_[0.0, self.clock]))

    @property
    def start(self) -> float:
        """The loss before training: the first evaluation where that was at the start, else the first three steps'."""
        if len(self.evals) and self.eval_steps[0] == 0:
            return float(self.evals[0])
        return float(np.median(self.losses[:3]))

    @property
    def trained_evals(self) -> Numbers:
        """Losses of the evaluations after the start."""
        return self.evals[self.eval_steps > 0]

    @property
    def end(self) -> float:
        """The level at the end: of the evaluations the last, else of the last tenth of the steps."""
        trained = self.trained_evals
        return float(trained[-1]) if len(trained) else self.level(0.9, 1.0)

    @property
    def left(self) -> float:
        """The share of the loss at the start that is left at the end."""
        return self.end / self.start if self.start > 0 else 1.0

    def level(self, start: float, stop: float) -> float:
        """The median training loss between two shares of the steps."""
        count = len(self.losses)
        first = min(int(start * count), count - 1)
        return float(np.median(self.losses[first : max(first + 1, math.ceil(stop * count))]))

    def around(self, step: float, share: float = 0.05) -> float:
        """The median training loss in a stretch around a step, of five steps at least."""
        reach = max(2.0, share * len(self.losses))
        near = self.losses[np.abs(self.steps - step) <= reach]
        return float(np.median(near)) if len(near) else float("nan")

    def gain(self) -> float:
        """What the second half of the clock won, as a share of all that was won; 0 where nothing was."""
        clocks, values = self._judged()
        end, start = float(values[-1]), float(values[0])
        half = float(np.interp(clocks[-1] / 2, clocks, values))
        return (half - end) / (start - end) if start > end else 0.0

    def falling(self) -> float:
        """p of a downward trend of the evaluations in the second half of the clock, one-sided; 1 below 4 of them."""
        clocks = np.array([self.clock_at(step) for step in self.eval_steps])
        return falling_chance(self.evals[clocks >= self.clock[-1] / 2])

    def training_falls(self) -> float:
        """p of a downward trend of the training losses in the second half of the clock, one-sided."""
        return falling_chance(self.losses[self.clock >= self.clock[-1] / 2])

    def rise(self) -> Rise | None:
        """How the validation loss stood at the end; None without evaluations after the start."""
        trained, at = self.trained_evals, self.eval_steps[self.eval_steps > 0]
        if not len(trained):
            return None
        lowest = int(np.argmin(trained))
        since = trained[lowest:]
        before = self.around(at[lowest])
        return Rise(
            best=int(at[lowest]),
            lowest=float(trained[lowest]),
            last=float(np.median(since[-3:])) if len(since) > 3 else float(since[-1]),
            after=len(since) - 1,
            chance=falling_chance(-since[1:]),
            trained=self.level(0.9, 1.0) / before if before > 0 else 1.0,
        )

    def climbed(self) -> bool:
        """Whether the training losses end above their start by more than noise explains, or rise all the way."""
        last = len(self.losses) - int(0.9 * len(self.losses))
        error = (
            _MEDIAN * noise(self.losses) * math.sqrt(1 / 3 + 1 / last)
        )  # of the difference of both medians
        rose = self.level(0.9, 1.0) - float(np.median(self.losses[:3]))
        # three losses at the start show little where noise is large, and a trend is as rare by chance as four errors
        return rose > _BEYOND * error or falling_chance(-self.losses) < 0.5 * math.erfc(
            _BEYOND / math.sqrt(2)
        )

    def setback(self) -> float:
        """The highest rise above the lowest loss before, as a share of what had been won; 0 for few steps."""
        smooth = running_median(self.losses)
        if len(smooth) < 2:
            return 0.0
        lowest = np.minimum.accumulate(smooth)
        start = max(self.start, float(smooth[0]))
        won = np.maximum(start - lowest, 1e-9)
        rose = smooth - lowest
        # a wobble of noise is no setback
        beyond = rose > _BEYOND * _MEDIAN * noise(self.losses) / math.sqrt(_WINDOW)
        # of a tenth of the start at least: what was hardly won cannot be lost
        counted = beyond & (won > 0.1 * start)
        return float(np.max(np.where(counted, rose / won, 0.0)))

    def _judged(self) -> tuple[Numbers, Numbers]:
        """(clock, loss) of the evaluations where there are three after the start, else of levels of training."""
        if len(self.trained_evals) >= 3:
            clocks = np.array([self.clock_at(step) for step in self.eval_steps])
            return clocks, self.evals
        pieces = np.array_split(np.arange(len(self.losses)), min(20, len(self.losses)))
        clocks = np.array([self.clock[piece[len(piece) // 2]] for piece in pieces])
        levels = np.array([np.median(self.losses[piece]) for piece in pieces])
        return np.r_[0.0, clocks], np.r_[self.start, levels]


def noise(values: Numbers) -> float:
    """The robust standard deviation of what is not trend; 0 for fewer than 3 values."""
    if len(values) < 3:
        return 0.0
    steps = np.diff(values)
    return float(1.4826 * np.median(np.abs(steps - np.median(steps))) / math.sqrt(2))


def running_median(values: Numbers, window: int = _WINDOW) -> Numbers:
    """The median of each `window` values in a row, (n - window + 1,); empty for fewer values than that."""
    if len(values) < window:
        return values[:0]
    return np.median(np.lib.stride_tricks.sliding_window_view(values, window), axis=1)


def falling_chance(values: Numbers) -> float:
    """One-sided p of the Mann-Kendall test: how likely so many falls are where there is no trend; 1 below 4 values."""
    count = len(values)
    if count < 4:
        return 1.0
    if count > 400:  # the median of stretches: the sum has count^2 / 2 terms
        values = np.array([np.median(piece) for piece in np.array_split(values, 400)])
        count = 400
    upper = np.sign(values[None, :] - values[:, None])[np.triu_indices(count, 1)]
    score = -float(upper.sum())  # falls minus rises
    spread = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    if count <= _EXACT:
        return _exact_chance(score, count)
    corrected = score - math.copysign(1.0, score) if score else 0.0  # continuity: S moves in twos
    return 0.5 * math.erfc(corrected / spread / math.sqrt(2))


def _exact_chance(score: float, count: int) -> float:
    """The chance that an order drawn at random has falls minus rises of `score` or more.

    Of the n! orders so many have k falls as the product of (1 + q + ... + q^(m-1)) for m up to n has at q^k (Kendall 1938).
    """
    orders = np.ones(1)
    for length in range(2, count + 1):
        orders = np.convolve(orders, np.ones(length))
    falls = math.ceil((score + count * (count - 1) / 2) / 2)
    return float(orders[falls:].sum() / orders.sum())
