"""The command: `python -m benchmarks training`, or any other of `jobs.JOBS`."""

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.jobs import AXES, JOBS, LENGTHS, Setting, pieces, sandbox
from benchmarks.measuring import clock_of
from benchmarks.pairs import PAIRS
from benchmarks.profiling import print_profile
from benchmarks.report import METHOD, conditions, print_table, summary, write
from benchmarks.sides import PLAIN
from calm_lightning.compare import commit


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--pair", choices=PAIRS, default="small")
    parser.add_argument("--sides", nargs="+", choices=PLAIN, default=list(PLAIN))
    parser.add_argument(
        "--compiled",
        action="store_true",
        help="beside each side the same with what torch compiles",
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=3, help="rounds that do not count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), help="of scaling")
    parser.add_argument(
        "--lengths", nargs="*", type=int, default=list(LENGTHS), help="of generation"
    )
    parser.add_argument("--profile", action="store_true", help="show where the time goes instead")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    said = parser.parse_args()
    if said.rounds < 1 or said.warm_up < 0 or said.threads < 1:
        parser.error("--rounds and --threads are at least 1, --warm-up at least 0")
    elsewhere = JOBS[said.job] is sandbox
    if elsewhere and said.profile:
        parser.error("--profile looks at work of models, and the sandbox has none")
    torch.set_num_threads(said.threads)
    name, clock = clock_of(said.threads, elsewhere)
    pair = PAIRS[said.pair]
    sides = said.sides + [f"{side}_compiled" for side in said.sides if said.compiled]
    setting = Setting(pair, sides, said.rounds, said.warm_up, clock, said.axes, said.lengths)
    if said.profile:
        for side, work in pieces(said.job, setting):
            print_profile(side.name, side.everything(), work)
        return
    measured = commit()  # now: somebody may go on working on the tree
    rows, notes = JOBS[said.job](setting)
    told = [summary(row, rows) for row in rows]
    about = {"commit": measured, **conditions(said.threads, name)}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print_table(told)
    print("\n" + "\n".join(notes))
    about |= {"pair": {"name": said.pair, **asdict(pair)}, "rounds": said.rounds}
    about |= {"ratios": METHOD, "notes": notes}
    write(said.out, f"{said.job}_{said.pair}", told, about)


if __name__ == "__main__":
    main()
