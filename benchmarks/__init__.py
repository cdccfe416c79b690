"""What is timed or weighed, as ratios within one run.

    python -m benchmarks training|generation|memory|evaluation|scaling|cached_states|sandbox
                         [--pair small] [--profile]
    python benchmarks/estimate.py

Every command builds its sides from the same random models, lets them do the same work in turn
(A A B B C C, C C B B A A, ..., where the second of two counts), and prints medians, quartiles and
ratios. A ratio is always the median over rounds of the ratio within one round, because what slows a
whole round down does not count in it. All is also written to runs/benchmarks/, as JSON with the
commit and as a plot.
"""

import os

os.environ.setdefault("TQDM_DISABLE", "1")  # CALM-pytorch draws a bar; tqdm asks when imported
