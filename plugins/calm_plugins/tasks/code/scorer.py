"""Scores of the code task: pass@k of programs, and chrF and BLEU of descriptions."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from sacrebleu.metrics.base import Metric as SacrebleuMetric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from torch import Tensor
from typing_extensions import override

from calm_lightning.contracts import CalmError, Example, Scorer
from calm_plugins.tasks.code.problems import Problem
from calm_plugins.tasks.code.sandbox import Sandbox, Verdict

_SECONDS_BETWEEN_LINES = 10.0


class PassAtK(Scorer):
    """Share of problems solved by one of k answers, as a fraction.

    With n answers to a problem, c of them right, it is the unbiased estimate of section 2.1 of
    `Evaluating Large Language Models Trained on Code <https://arxiv.org/abs/2107.03374>`_:
    1 - C(n - c, k) / C(n, k), averaged over the problems. Several answers to a problem are several
    predictions with the same example, in one batch or in many, on one process or on many.

    Each example has its problem in `meta["problem"]`.

    Args:
        task_ids: The problems of the set.
        sandbox: Runs the answers.
        ks: Which k. One is left out while a problem has fewer answers.
        name: Of the set, for what is said meanwhile.
        file: Where every answer is written with its outcome, as JSON lines, anew with each
            evaluation; asked for at its start. None writes nothing.
    """

    headline = "pass@1"
    higher_is_better = True
    answered: Tensor
    passed: Tensor

    def __init__(
        self,
        task_ids: Sequence[str],
        sandbox: Sandbox,
        ks: Sequence[int] = (1,),
        name: str = "code",
        file: Callable[[], Path | None] = lambda: None,
    ) -> None:
        super().__init__()
        if not ks or min(ks) < 1:
            raise CalmError(f"pass@k is for k of 1 or more: got {list(ks)}.")
        self.place = {task_id: i for i, task_id in enumerate(task_ids)}
        self.sandbox = sandbox
        self.ks = sorted({1, *ks})
        self.name = name
        self.file = file
        self._judged: dict[tuple[str, str], Verdict] = {}
        for state in ("answered", "passed"):
            zeros = torch.zeros(len(task_ids), dtype=torch.long)
            self.add_state(state, zeros, dist_reduce_fx="sum")

    @override
    def update(self, predictions: Sequence[str], examples: Sequence[Example]) -> None:
        problems = [_problem(example) for example in examples]
        verdicts = self._judge(predictions, problems)
        for problem, verdict in zip(problems, verdicts, strict=True):
            place = self.place[problem.task_id]
            self.answered[place] += 1
            self.passed[place] += verdict.passed
        self._write(predictions, problems, verdicts)

    @override
    def compute(self) -> dict[str, Tensor]:
        asked = self.answered > 0
        n, c = self.answered[asked], self.passed[asked]
        possible = [k for k in self.ks if len(n) and k <= int(n.min())]
        return {f"pass@{k}": pass_at_k(n, c, k).mean() for k in possible}

    @override
    def each(self, predictions: Sequence[str], examples: Sequence[Example]) -> list[float]:
        verdicts = self._judge(predictions, [_problem(example) for example in examples])
        return [float(verdict.passed) for verdict in verdicts]

    def _judge(self, predictions: Sequence[str], problems: Sequence[Problem]) -> list[Verdict]:
        """The verdicts; those of the last call are not made again."""
        keys = [(p.task_id, p.cut(said)) for said, p in zip(predictions, problems, strict=True)]
        new = {
            key: problem.job(key[1])
            for key, problem in zip(keys, problems, strict=True)
            if key not in self._judged
        }
        judged = self.sandbox.judge(list(new.values()), _Progress(self.name))
        known = self._judged | dict(zip(new, judged, strict=True))
        self._judged = {key: known[key] for key in keys}
        return [known[key] for key in keys]

    def _write(
        self, predictions: Sequence[str], problems: Sequence[Problem], verdicts: Sequence[Verdict]
    ) -> None:
        file = self.file()
        if file is None:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w" if self.update_count == 1 else "a", encoding="utf-8") as stream:
            for said, problem, verdict in zip(predictions, problems, verdicts, strict=True):
                entry = {"task_id": problem.task_id, "answer": problem.cut(said), **vars(verdict)}
                stream.write(json.dumps(entry) + "\n")


def pass_at_k(answered: Tensor, passed: Tensor, k: int) -> Tensor:
    """The unbiased estimate of pass@k for each problem.

    Args:
        answered: Number of answers to each problem, at least k.
        passed: How many of them are right.
        k: How many may be tried.
    """
    # 1 - C(n - c, k) / C(n, k) as a product of k factors, which no large number enters.
    tried = torch.arange(k, dtype=torch.float64, device=answered.device)
    n, c = answered.double()[:, None], passed.double()[:, None]
    return 1 - ((n - c - tried).clamp(min=0) / (n - tried)).prod(dim=1)


class Descriptions(Scorer):
    """chrF and BLEU of the whole set by sacrebleu, as fractions.

    Of an answer counts what stands before its first line break, whether the model was stopped there
    or wrote on.

    The state is the sum of sacrebleu's own statistics, so that the score equals `sacrebleu` on all
    of it, however it was shared out. CodeXGLUE's own score is another BLEU (a mean over
    sentences, smoothed); the CALM paper reports chrF.
    """

    headline = "chrf"
    higher_is_better = True
    sums_chrf: Tensor
    sums_bleu: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, SacrebleuMetric] = {"chrf": CHRF(), "bleu": BLEU()}
        for name, metric in self.metrics.items():
            zeros = torch.zeros(len(_statistics(metric, ["a"], ["a"])), dtype=torch.long)
            self.add_state(f"sums_{name}", zeros, dist_reduce_fx="sum")

    @override
    def update(self, predictions: Sequence[str], examples: Sequence[Example]) -> None:
        pairs = zip(predictions, examples, strict=True)
        first_lines = ((p.partition("\n")[0].strip(), e.target.strip()) for p, e in pairs)
        said, wanted = zip(*first_lines, strict=True)
        self.sums_chrf += self._counted("chrf", said, wanted)
        self.sums_bleu += self._counted("bleu", said, wanted)

    @override
    def compute(self) -> dict[str, Tensor]:
        sums = {"chrf": self.sums_chrf, "bleu": self.sums_bleu}
        return {
            name: torch.tensor(metric._compute_score_from_stats(sums[name].tolist()).score / 100)
            for name, metric in self.metrics.items()
        }

    def _counted(self, name: str, said: Sequence[str], wanted: Sequence[str]) -> Tensor:
        return torch.tensor(_statistics(self.metrics[name], said, wanted), device=self.device)


class _Progress:
    """Says how far it is, now and then: a line on standard error, which no bar is disturbed by."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self.said > _SECONDS_BETWEEN_LINES:
            self.said = time.monotonic()
            print(f"{self.name}: {done} of {total} answers run", file=sys.stderr, flush=True)


def _problem(example: Example) -> Problem:
    problem: Problem = example.meta["problem"]
    return problem


def _statistics(metric: SacrebleuMetric, said: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """What sacrebleu counts in some sentences, added up."""
    each = metric._extract_corpus_statistics(list(said), [list(wanted)])
    return [int(sum(column)) for column in zip(*each, strict=True)]
