"""Starting weights for a small model that is to learn arithmetic: numbers on circles.

    python -m calm_plugins.tasks.key_value.number_embeddings FROM TO [--seed N]

builds the model of FROM/config.json with random weights, puts the embedding of every number token
where its Fourier features are, and saves it in TO with FROM's tokenizer. Models that learn to add
by gradient descent arrive at such embeddings by themselves
(`Progress measures for grokking <https://arxiv.org/abs/2301.05217>`_); starting there saves a small
model much of its training. Nothing about sums is put in.
"""

import argparse
import math
import sys
from pathlib import Path

import torch
from torch import Tensor

from calm_lightning.backbone import Backbone, BackboneSource
from calm_lightning.contracts import CalmError

PERIODS = (2, 4, 5, 10, 20, 25, 50, 100, 200, 400, 1000)


def circles(numbers: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Cosine and sine of each number at every period, turned by a random rotation.

    Args:
        numbers: [count].
        width: Of the embedding; at least twice the number of periods.
        generator: Of the rotation.

    Returns:
        [count, width], each row of length 1.
    """
    angles = 2 * math.pi * numbers[:, None] / torch.tensor(PERIODS)
    features = torch.cat([angles.cos(), angles.sin()], dim=1) / len(PERIODS) ** 0.5
    rotation, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
    return features @ rotation[: features.shape[1]]


def place_numbers(backbone: Backbone, seed: int, share: float = 0.9, keep: float = 0.3) -> None:
    """Move the embeddings of the number tokens to their circles, at the size they had.

    Args:
        backbone: With a tokenizer; its input embedding is changed in place.
        seed: Of the rotation.
        share: Of the circles in the new embedding.
        keep: Of the random embedding.
    """
    vocabulary = backbone.require_tokenizer().get_vocab()
    tokens = {i: int(token) for token, i in vocabulary.items() if token.isdigit()}
    if backbone.width < 2 * len(PERIODS):
        raise CalmError(f"A width of {backbone.width} is less than {2 * len(PERIODS)} features.")
    places = torch.tensor(list(tokens))
    weight = backbone.model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(seed)
    directions = circles(torch.tensor(list(tokens.values())).float(), backbone.width, generator)
    with torch.no_grad():
        size = weight[places].norm(dim=1).mean()
        weight[places] = share * size * directions + keep * weight[places]


def main(arguments: list[str] | None = None) -> int:
    """Build and save the model; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m calm_plugins.tasks.key_value.number_embeddings",
        description="Random weights, with the number tokens' embeddings on circles.",
    )
    parser.add_argument("source", type=Path, help="folder with config.json and a tokenizer")
    parser.add_argument("target", type=Path, help="where to")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    options = parser.parse_args(arguments)
    try:
        source = BackboneSource(str(options.source), weights="random", seed=options.seed)
        backbone = source.load()
        place_numbers(backbone, options.seed)
    except CalmError as error:
        print(error, file=sys.stderr)
        return 2
    backbone.model.save_pretrained(options.target)
    backbone.require_tokenizer().save_pretrained(options.target)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
