"""What each command measures."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.measuring import Stamps, Work, in_turn, peak_bytes
from benchmarks.pairs import Pair
from benchmarks.sides import Composed, Side, build
from calm_lightning.state_cache import StateCache
from calm_plugins.tasks.code.sandbox import Job, Sandbox, SandboxSettings

PROMPT, NEW_TOKENS = 32, 64
LENGTHS = (128, 256, 512, 1024)
AXES: dict[str, Sequence[int]] = {
    "length": (32, 64, 128, 256, 512),
    "batch": (1, 2, 4, 8, 16),
    "size": (128, 256, 384, 512),  # of the anchor's width; the augmenting model's is half of it
    "connections": (1, 2, 4),
    "models": (1, 2, 3),
}


@dataclass
class Row:
    """What was measured of one side.

    Attributes:
        side: Its name.
        quantity: What was measured.
        unit: Of the values.
        values: One for every round.
        reference: Name of the side that others are compared with.
        at: Where on an axis, for plots.
        rate: How much work a value stands for, where people count it by the second.
    """

    side: str
    quantity: str
    unit: Literal["s", "bytes"]
    values: list[float]
    reference: str
    at: int | None = None
    rate: tuple[float, str] | None = None


@dataclass(frozen=True)
class Setting:
    """How to measure.

    Attributes:
        pair: The models.
        sides: Keys of `benchmarks.sides.SIDES`.
        rounds: That count.
        warm_up: Rounds that do not.
        clock: In seconds.
        axes: Of `scaling`.
        lengths: At which `generation` looks at the time per token.
    """

    pair: Pair
    sides: list[str]
    rounds: int
    warm_up: int
    clock: Callable[[], float]
    axes: Sequence[str] = tuple(AXES)
    lengths: Sequence[int] = LENGTHS

    def rows(self, quantity: str, work: dict[str, Work], reference: str, **more: Any) -> list[Row]:
        """Every side's seconds."""
        seconds = in_turn(work, self.rounds, self.warm_up, self.clock)
        return [Row(side, quantity, "s", each, reference, **more) for side, each in seconds.items()]


Measured = tuple[list[Row], list[str]]
"""Rows, and what a reader must know about them."""


def pieces(job: str, setting: Setting) -> Iterator[tuple[Side, Work]]:
    """What a profile looks at: each side, and a piece of its work."""
    sides, _ = _sides(setting)
    for side in sides:
        if job == "generation" and side.generates:
            ids = setting.pair.tokens(setting.pair.batch // 2, PROMPT)
            yield side, writer(side, ids, NEW_TOKENS // 8)
        elif job == "evaluation" and side.generates and side.pads:
            yield side, examiner(side, setting.pair, 4 * setting.pair.batch)
        elif job not in ("generation", "evaluation"):
            yield side, trainer(side, full_batch(setting.pair))


def training(setting: Setting) -> Measured:
    """A training step: forward, backward, AdamW."""
    sides, notes = _sides(setting)
    batch = full_batch(setting.pair)
    work = {side.name: trainer(side, batch) for side in sides}
    return setting.rows("training step", work, "floor"), notes


def generation(setting: Setting) -> Measured:
    """Tokens a second at 64 new tokens, and time per token while a text grows."""
    sides, notes = _sides(setting)
    sides = [side for side in sides if side.generates]
    rows = setting.pair.batch // 2
    ids = setting.pair.tokens(rows, PROMPT)
    work = {side.name: writer(side, ids, NEW_TOKENS) for side in sides}
    found = setting.rows(
        f"{NEW_TOKENS} new tokens", work, "anchor alone", rate=(rows * NEW_TOKENS, "tokens/s")
    )
    cached = [side for side in sides if side.pads and side.grows]
    notes += [f"{side.name} has no cache: no time per token." for side in sides if not side.pads]
    notes += [
        f"{s.name}: a cache of a fixed size, no time per token." for s in sides if not s.grows
    ]
    return found + _growing(setting, cached), notes


def memory(setting: Setting) -> Measured:
    """The most that two steps of training allocate, with gradients and the optimizer's state."""
    sides, notes = _sides(setting)
    batch = full_batch(setting.pair)
    rows = []
    for side in sides:
        step = trainer(side, batch)
        peak = peak_bytes(lambda step=step: (step(), step()))  # type: ignore[misc]
        rows.append(Row(side.name, "memory of training", "bytes", [peak], "LoRA"))
    return rows, notes


def evaluation(setting: Setting) -> Measured:
    """Questions of different lengths: a short answer and the loss of the true one, as `calm test`.

    The batch is four times that of training.
    """
    sides, notes = _sides(setting)
    notes += [f"{side.name} takes no padding: no evaluation." for side in sides if not side.pads]
    rows = 4 * setting.pair.batch
    work = {s.name: examiner(s, setting.pair, rows) for s in sides if s.pads and s.generates}
    return setting.rows("evaluation", work, "anchor alone", rate=(rows, "questions/s")), notes


def scaling(setting: Setting) -> Measured:
    """A training step and generation over length, batch, size, connections and models."""
    rows: list[Row] = []
    notes: list[str] = []
    for axis in setting.axes:
        for value in AXES[axis]:
            here = replace(setting, pair=changed(setting.pair, axis, value))
            sides, said = _sides(here)
            notes += [note for note in said if note not in notes]
            batch = full_batch(here.pair)
            work = {side.name: trainer(side, batch) for side in sides}
            rows += here.rows(f"training step over {axis}", work, "floor", at=value)
            ids = batch[0][: max(1, here.pair.batch // 2)]
            work = {side.name: writer(side, ids, 8) for side in sides if side.generates}
            rows += here.rows(f"8 new tokens over {axis}", work, "floor", at=value)
    return rows, notes


def cached_states(setting: Setting) -> Measured:
    """A training step where the frozen models' states are kept on disk: unknown, and known.

    Over the number of connections, for above the first one the anchor has to run anyway.
    """
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        for connections in AXES["connections"]:
            pair = replace(setting.pair, connections=connections)
            work = {
                "without a cache": trainer(Composed(pair), full_batch(pair)),
                "first epoch": trainer_with_cache(pair, Path(folder, "first"), known=False),
                "later epochs": trainer_with_cache(pair, Path(folder, "later"), known=True),
            }
            quantity = "cached states over connections"
            rows += setting.rows(quantity, work, "first epoch", at=connections)
    notes = [
        f"first anchor layer connected, of {setting.pair.anchor[1]}, counted from 1: "
        + ", ".join(
            f"{replace(setting.pair, connections=n).wiring[0][1] + 1} with {n}"
            for n in AXES["connections"]
        ),
        "first epoch: texts that were never met; what is computed is written before the step ends.",
        "later epochs: known texts, each time with others in the batch; float32, read from files.",
    ]
    return rows, notes


def trainer_with_cache(pair: Pair, folder: Path, known: bool) -> Work:
    """One step of training, of texts that are known or of fresh ones."""
    side = Composed(pair)
    kept = side.composed.keep_states(StateCache(str(folder), max_gigabytes=64.0))
    optimizer = torch.optim.AdamW(side.trained(), lr=1e-4)
    generator = torch.Generator().manual_seed(1)
    texts = pair.tokens(4 * pair.batch, pair.length)
    mask = torch.ones_like(texts[: pair.batch])

    def step(ids: Tensor) -> None:
        side.loss(ids, mask, ids).backward()
        optimizer.step()
        optimizer.zero_grad()

    def known_step() -> None:
        step(texts[torch.randperm(len(texts), generator=generator)[: pair.batch]])

    def fresh_step() -> None:
        shape = pair.batch, pair.length
        step(torch.randint(2, pair.vocabulary, shape, generator=generator))
        kept.flush()  # or somebody else would pay for it

    if known:
        for part in texts.split(pair.batch):
            step(part)
        kept.flush()
    return known_step if known else fresh_step


def sandbox(setting: Setting) -> Measured:
    """An empty program in the sandbox of the code task, beside one in a plain process."""
    empty, box = Job("", "", []), Sandbox(SandboxSettings(workers=1))
    box.check()  # and so finds out beforehand which layers there are
    plain = [sys.executable, "-c", "pass"]
    work: dict[str, Work] = {
        "python -c pass": lambda: subprocess.run(plain, check=True),
        "sandbox": lambda: box.judge([empty]),
    }
    rows = setting.rows("an empty program", work, "python -c pass")
    beyond = [inside - outside for outside, inside in zip(*(r.values for r in rows), strict=True)]
    return rows, [f"The sandbox takes {median(beyond) * 1e3:.1f} ms more, in the median round."]


def changed(pair: Pair, axis: str, value: int) -> Pair:
    """The pair at another place of an axis."""
    if axis == "size":
        return replace(pair, anchor=(value, pair.anchor[1]), augmenting=(value // 2, 4))
    return replace(pair, **{axis: value})  # type: ignore[arg-type]


# ---------------------------------------------------------------------- work of one side

Batch = tuple[Tensor, Tensor, Tensor]
"""Ids, mask and labels."""


def full_batch(pair: Pair) -> Batch:
    """No padding, and every token is a target."""
    ids = pair.tokens(pair.batch, pair.length)
    return ids, torch.ones_like(ids), ids


def trainer(side: Side, batch: Batch) -> Work:
    """One step of training; a forward pass of a side that trains nothing."""
    weights = side.trained()
    if not weights:
        return torch.no_grad()(lambda: side.loss(*batch))
    optimizer = torch.optim.AdamW(weights, lr=1e-4)

    def step() -> None:
        side.loss(*batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def writer(side: Side, ids: Tensor, new_tokens: int) -> Work:
    """Continuations of prompts of one length."""
    return lambda: side.generate(ids, torch.ones_like(ids), new_tokens)


def examiner(side: Side, pair: Pair, rows: int) -> Work:
    """Short answers to padded questions, and the loss of true answers of as many tokens."""
    answer = min(16, pair.length // 4)
    ids = pair.tokens(rows, pair.length)
    places = torch.arange(pair.length)[None]
    starts = torch.linspace(0, pair.length // 2, rows).long()[:, None]
    mask = (places >= starts).long()
    ids = ids * mask
    labels = ids.masked_fill(places < pair.length - answer, -100)
    asked = pair.length - answer

    @torch.no_grad()
    def examine() -> None:
        side.generate(ids[:, :asked], mask[:, :asked], answer)
        side.loss(ids, mask, labels)

    return examine


def _growing(setting: Setting, sides: list[Side]) -> list[Row]:
    """Time per token at several lengths of one text: the median of the tokens just before them."""
    tokens = 12
    rows = []
    for length in setting.lengths:
        ids = setting.pair.tokens(1, length - tokens)
        found: dict[str, list[float]] = {side.name: [] for side in sides}
        for number in range(-1, setting.rounds):  # the first one warms up
            for side in sides:
                stamps = Stamps(side.anchor.decoder, setting.clock)
                side.generate(ids, torch.ones_like(ids), tokens)
                times = stamps.between()[1:]  # the first pass reads the prompt
                if number >= 0:
                    found[side.name].append(median(times))
        rows += [
            Row(name, "time per token over length", "s", values, "anchor alone", at=length)
            for name, values in found.items()
        ]
    return rows


def _sides(setting: Setting) -> tuple[list[Side], list[str]]:
    sides, missing = build(setting.sides, setting.pair)
    return list(sides.values()), missing + [s.note for s in sides.values() if s.note]


JOBS: dict[str, Callable[[Setting], Measured]] = {
    "training": training,
    "generation": generation,
    "memory": memory,
    "evaluation": evaluation,
    "scaling": scaling,
    "cached_states": cached_states,
    "sandbox": sandbox,
}
