"""A process of its own for one system of `scumble bench train`, and the pipe that it is told through what to do.

    python -m scumble.lab.train_worker NAME JOB

It reads one JSON document a line and answers with one. What libraries print goes to stderr, which is a file. The roof
and the judge, who measures the loss of every adapter in the same way, are workers too. `Worker` is the other end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from scumble.errors import TrainingError

if TYPE_CHECKING:
    from scumble.lab.train_job import TrainJob
    from scumble.lab.train_systems import System

SAME = 1e-4  # two layouts give losses that differ by rounding alone, which is 1e-6; examples that see each other by more


class Worker:
    """A process, and a file with all that it said.

    Args:
        name: of the system, or `roof`, or `judge`.
        job: file of the job.
        log: file for what it prints.
    """

    def __init__(self, name: str, job: Path, log: Path) -> None:
        self.name, self.log = name, log
        quiet = {
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONWARNINGS": "ignore",
        }
        with log.open("a") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scumble.lab.train_worker", name, str(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env={**os.environ, **quiet},
            )

    def ask(self, what: str, **given: Any) -> Any:
        """Have something done, and wait for the answer.

        Raises:
            TrainingError: it could not; with the last line that the process printed.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": what, **given}) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            lines = self.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise TrainingError(
                f"the process of {self.name} ended: {lines[-1][:300]}", "is there enough memory for all?"
            )
        found = json.loads(answer)
        if "failed" in found:
            raise TrainingError(f"{self.name}: {found['failed']}", "leave it out with --systems")
        return found["answer"]

    def close(self) -> None:
        """End the process."""
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):  # it is gone already
                self.process.stdin.close()  # where nothing more can come, it ends by itself
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def main() -> None:
    """Serve one system until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print too, and the pipe is for answers
    _serve(sys.argv[1], Path(sys.argv[2]), answers)


def _serve(name: str, file: Path, answers: TextIO) -> None:
    from scumble.lab.train_job import TrainJob

    commands: dict[str, Callable[..., Any]] | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        what = asked.pop("do")
        try:
            if commands is None:
                commands = _commands(name, TrainJob.read(file))
            told = {"answer": commands[what](**asked)}
        except Exception as error:  # whatever a library says no with
            import traceback

            traceback.print_exc()
            told = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        answers.write(json.dumps(told) + "\n")
        answers.flush()


def _commands(name: str, job: TrainJob) -> dict[str, Callable[..., Any]]:
    if name == "roof":
        return {"roof": _roof}
    if name == "judge":
        return {"losses": lambda adapters: _judge(job, adapters)}
    served = Served(name, job)
    return {
        each: getattr(served, each) for each in ("load", "choose_threads", "choose_layout", "warm", "round")
    }


class Served:
    """One system in this process, and what can be asked of it."""

    def __init__(self, name: str, job: TrainJob) -> None:
        from scumble.lab.train_systems import load_system

        self.job = job
        self.system: System = load_system(name, job)

    def load(self) -> dict[str, int]:
        """Load all of it; the resident size afterwards, in bytes."""
        self.system.ready()
        base = self.system.base
        for parameter in base.model.parameters():
            parameter.sum()  # weights that are mapped from a file become resident when they are first read
        return {"resident": resident_bytes()}

    def choose_threads(self, candidates: list[int]) -> dict[str, Any]:
        """The seconds of a step of four examples with each number of threads, the fastest number first found."""
        import torch

        part = self.job.part(self.job.order(0, by_length=True)[1::4])
        layout = self._small(len(part.ids))
        seconds: dict[int, float] = {}
        for number in [candidates[0], *candidates]:  # the first one is warmed up by a run that does not count
            torch.set_num_threads(number)
            seconds[number] = self._train(part, layout).seconds
        return {"threads": min(seconds, key=lambda each: seconds[each]), "seconds": seconds}

    def choose_layout(self, threads: int) -> dict[str, Any]:
        """The fastest layout of half the examples, of those that give the loss that examples have alone."""
        import torch

        torch.set_num_threads(threads)
        if len(self.system.layouts) == 1:
            return {"layout": asdict(self.system.layouts[0]), "tried": []}
        half, tried = self.job.halved(), []
        with _no_dropout(self.system.base.model):
            alone = self._train(half, self.system.layouts[0]).losses[0]  # also warms up
            for layout in self.system.layouts:
                found = self._train(half, layout)
                same = abs(found.losses[0] - alone) <= SAME * abs(alone)
                tried.append({"layout": asdict(layout), "seconds": found.seconds, "same_loss": same})
        best = min((each for each in tried if each["same_loss"]), key=lambda each: each["seconds"])
        return {"layout": best["layout"], "tried": tried}

    def warm(self, threads: int, layout: dict[str, Any]) -> None:
        """One whole optimizer step, which nobody times: the first touch of the memory that a step needs is no step's."""
        import torch

        torch.set_num_threads(threads)
        from scumble.lab.train_systems import Layout

        chosen = Layout(**layout)
        self._train(self.job.one_step(), chosen)

    def round(self, layout: dict[str, Any], out: str) -> dict[str, Any]:
        """Train from the first adapter; the seconds, the losses and the peak of memory."""
        import gc

        import torch

        from scumble.lab.train_systems import Layout
        from scumble.train.memory import peak_bytes, start_peak

        gc.collect()
        device = torch.device("cpu")
        start_peak(device)
        found = self.system.train(self.job, Layout(**layout), Path(out))
        peak = peak_bytes(device)
        return {
            "seconds": found.seconds,
            "losses": found.losses,
            "adapter": str(found.adapter),
            "peak": peak,
        }

    def _train(self, job: TrainJob, layout: Any) -> Any:
        with tempfile.TemporaryDirectory() as place:
            return self.system.train(job, layout, Path(place))

    def _small(self, examples: int) -> Any:
        """The system's first layout, with no more examples in a micro-batch than there are."""
        from dataclasses import replace

        first = self.system.layouts[0]
        return replace(first, batch=min(first.batch, examples))


def resident_bytes() -> int:
    """The resident size of this process now; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGESIZE")


@contextmanager
def _no_dropout(model: Any) -> Any:
    """For the body of a `with`, nothing is dropped, so that two layouts can be held against each other."""
    from torch import nn

    found = [(module, module.p) for module in model.modules() if isinstance(module, nn.Dropout)]
    for module, _ in found:
        module.p = 0.0
    try:
        yield
    finally:
        for module, share in found:
            module.p = share


def _roof(shapes: list[list[int]], threads: list[int]) -> dict[str, Any]:
    from scumble.lab.train_roof import roof

    return asdict(roof([(out, inner) for out, inner in shapes], threads))


def _judge(job: TrainJob, adapters: list[str]) -> list[float]:
    """The mean loss of each adapter over the supervised tokens, by PEFT and torch, one example at a time."""
    import torch
    from peft import PeftModel
    from torch.nn import functional

    from scumble.models.base import load_base

    model = load_base(job.base, dtype="fp32", device="cpu", tokenizer=False).model
    losses = []
    for folder in adapters:
        adapted = PeftModel.from_pretrained(model, folder).eval()
        total = 0.0
        with torch.inference_mode():
            for ids, labels in zip(job.ids, job.labels, strict=True):
                logits = adapted(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
                total += float(functional.cross_entropy(logits, torch.tensor(labels[1:]), reduction="sum"))
        model = adapted.unload()
        losses.append(total / job.targets)
    return losses


if __name__ == "__main__":
    main()
