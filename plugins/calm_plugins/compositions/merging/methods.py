"""Ways to merge: what becomes of the tensors that several models have under one name.

A method of your own is a subclass of `MergeMethod` (or of `TaskVectorMethod`) with one function. In
a module that an entry point `calm_lightning.plugins` names it is found by its short name, as these
are: `method: {class_path: Ties, init_args: {density: 0.3}}`.

Every source trims or drops over a whole model at once or over each tensor; here it is each tensor,
as mergekit does, so that no more than one tensor of each model is in memory.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from calm_lightning.contracts import CalmError

Weight = Float[Tensor, "*shape"]
Consensus = Literal["sum", "ties"]


class MergeMethod(ABC):
    """One way to make one tensor out of several.

    Attributes:
        needs_base: Whether it works on what was learnt since a common base model.
    """

    needs_base: ClassVar[bool] = False

    def check(self, weights: Sequence[float]) -> None:
        """Refuse weights that this method cannot use, before anything is merged.

        Args:
            weights: One for each model that is merged; called for every layer.

        Raises:
            CalmError: With the rule.
        """
        return

    @abstractmethod
    def merge(
        self,
        tensors: Sequence[Weight],
        weights: Sequence[float],
        base: Weight | None,
        generator: torch.Generator,
    ) -> Weight:
        """The merged tensor; of the same shape.

        Args:
            tensors: What each model has under one name, in float32 at least, not to be changed.
            weights: How much each model counts.
            base: What the base model has; None exactly if the method does not need one.
            generator: For methods that draw; seeded for each name, on the tensors' device.
        """


@dataclass(frozen=True)
class Linear(MergeMethod):
    """The weighted mean: a model soup (https://arxiv.org/abs/2203.05482, section 2).

    The weights are divided by their sum.
    """

    @override
    def check(self, weights: Sequence[float]) -> None:
        if abs(sum(weights)) < 1e-8:
            raise CalmError(
                f"Linear: the weights {list(weights)} add up to zero, so no mean of them exists."
            )

    @override
    def merge(
        self,
        tensors: Sequence[Weight],
        weights: Sequence[float],
        base: Weight | None,
        generator: torch.Generator,
    ) -> Weight:
        return weighted_sum(tensors, [weight / sum(weights) for weight in weights])


@dataclass(frozen=True)
class Slerp(MergeMethod):
    """Spherical interpolation (Shoemake, Animating rotation with quaternion curves, 1985).

    Two tensors, each seen as one vector: the path between them turns at a constant rate, rather
    than cutting through the middle, where a mean of unlike vectors is short. The second weight's
    share of the sum says how far along it is. Vectors that are almost parallel (cosine above
    0.9995, as in mergekit), opposite or zero have no such path; they are interpolated linearly.
    """

    @override
    def check(self, weights: Sequence[float]) -> None:
        if len(weights) != 2 or min(weights) < 0 or sum(weights) <= 0:
            raise CalmError(
                f"Slerp goes from one model to another: it takes exactly two models with weights "
                f"of at least 0, not both 0; here are {len(weights)}, weighted {list(weights)}."
            )

    @override
    def merge(
        self,
        tensors: Sequence[Weight],
        weights: Sequence[float],
        base: Weight | None,
        generator: torch.Generator,
    ) -> Weight:
        first, second = tensors
        share = weights[1] / sum(weights)
        norms = torch.linalg.vector_norm(first) * torch.linalg.vector_norm(second)
        cosine = (first * second).sum() / norms
        if not cosine.abs() <= 0.9995:  # not a number where a vector is zero
            return weighted_sum(tensors, [1 - share, share])
        angle = cosine.acos()
        return (((1 - share) * angle).sin() * first + (share * angle).sin() * second) / angle.sin()


@dataclass(frozen=True, kw_only=True)
class TaskVectorMethod(MergeMethod):
    """Methods that add up what the models learnt since their base, the task vectors.

    A subclass says what it leaves of a task vector (`thin`), or how task vectors are joined
    (`join`). As it stands it is task arithmetic.

    Args:
        scale: Factor on all that is added to the base.
    """

    needs_base: ClassVar[bool] = True
    scale: float = 1.0

    def thin(self, vector: Weight, generator: torch.Generator) -> Weight:
        """What is left of one task vector; by default all of it."""
        return vector

    def join(self, vectors: Sequence[Weight], weights: Sequence[float]) -> Weight:
        """One task vector out of several; by default their weighted sum."""
        return weighted_sum(vectors, weights)

    @override
    def merge(
        self,
        tensors: Sequence[Weight],
        weights: Sequence[float],
        base: Weight | None,
        generator: torch.Generator,
    ) -> Weight:
        assert base is not None, "needs_base is True"
        vectors = [self.thin(tensor - base, generator) for tensor in tensors]
        return base + self.scale * self.join(vectors, weights)


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(TaskVectorMethod):
    """The base plus the weighted sum of the task vectors.

    Editing Models with Task Arithmetic (https://arxiv.org/abs/2212.04089), section 2. A negative
    weight takes a skill away (section 3).

    Args:
        scale: Factor on all that is added to the base (lambda in the paper).
    """


@dataclass(frozen=True, kw_only=True)
class Ties(TaskVectorMethod):
    """Trim, elect a sign, and take the mean of those that agree with it.

    TIES-Merging (https://arxiv.org/abs/2306.01708), section 4. Differences: it is trimmed within
    each tensor, not within the whole model, and entries as large as the smallest that stays all
    stay; models may have weights, which count in the vote and in the mean, as in mergekit.

    Args:
        density: Share of each task vector that is kept, the largest entries (k in the paper).
        scale: Factor on all that is added to the base (lambda in the paper).

    Raises:
        CalmError: If the density is not above 0 and at most 1.
    """

    density: float = 0.2

    def __post_init__(self) -> None:
        check_density(self)

    @override
    def thin(self, vector: Weight, generator: torch.Generator) -> Weight:
        kept = max(1, int(self.density * vector.numel()))
        return vector * between(vector.abs(), vector.numel() - kept, vector.numel())

    @override
    def join(self, vectors: Sequence[Weight], weights: Sequence[float]) -> Weight:
        return mean_of_agreeing(vectors, weights)


@dataclass(frozen=True, kw_only=True)
class Dare(TaskVectorMethod):
    """Drop entries at random, and rescale the others so that the expected sum stays.

    Language Models are Super Mario (https://arxiv.org/abs/2311.03099), section 3.2.

    Args:
        density: Share of each task vector that is kept (1 - p in the paper).
        consensus: How the task vectors are joined: `sum` is task arithmetic (weights count as
            they are), `ties` elects signs and takes the mean of those that agree.
        scale: Factor on all that is added to the base.

    Raises:
        CalmError: If the density is not above 0 and at most 1.
    """

    density: float = 0.5
    consensus: Consensus = "sum"

    def __post_init__(self) -> None:
        check_density(self)

    @override
    def thin(self, vector: Weight, generator: torch.Generator) -> Weight:
        chances = torch.full_like(vector, self.density)
        return vector * torch.bernoulli(chances, generator=generator) / self.density

    @override
    def join(self, vectors: Sequence[Weight], weights: Sequence[float]) -> Weight:
        return JOINS[self.consensus](vectors, weights)


@dataclass(frozen=True, kw_only=True)
class Breadcrumbs(TaskVectorMethod):
    """Leave out the largest entries as well as the small ones.

    Model Breadcrumbs (https://arxiv.org/abs/2312.06795), section 3. The two settings are
    mergekit's: the paper gives the two ends of what is kept (beta and gamma).

    Args:
        density: Share of each task vector that is kept, the largest below the outliers.
        outliers: Share that is left out at the top; as much less as `density` leaves no room.
        consensus: How the task vectors are joined: `sum` or `ties`, as in `Dare`.
        scale: Factor on all that is added to the base (alpha in the paper).

    Raises:
        CalmError: If a share is out of range.
    """

    density: float = 0.9
    outliers: float = 0.01
    consensus: Consensus = "sum"

    def __post_init__(self) -> None:
        check_density(self)
        if not 0 <= self.outliers < 1:
            raise CalmError(f"Breadcrumbs: outliers={self.outliers} must be at least 0, below 1.")

    @override
    def thin(self, vector: Weight, generator: torch.Generator) -> Weight:
        size = vector.numel()
        kept = max(1, int(self.density * size))
        dropped = max(0, size - kept - int(self.outliers * size))
        return vector * between(vector.abs(), dropped, dropped + kept)

    @override
    def join(self, vectors: Sequence[Weight], weights: Sequence[float]) -> Weight:
        return JOINS[self.consensus](vectors, weights)


def weighted_sum(tensors: Sequence[Weight], weights: Sequence[float]) -> Weight:
    """The tensors, each times its weight, added up."""
    total = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor, alpha=weight)
    return total


def mean_of_agreeing(tensors: Sequence[Weight], weights: Sequence[float]) -> Weight:
    """At each place the weighted mean of the entries that have the sign of the weighted sum."""
    sign = torch.where(weighted_sum(tensors, weights) >= 0, 1.0, -1.0)
    total, count = torch.zeros_like(tensors[0]), torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        agrees = ((weight * tensor).sign() == sign).to(tensor.dtype)
        total += weight * tensor * agrees
        count += abs(weight) * agrees
    return total / torch.where(count == 0, 1.0, count)


JOINS = {"sum": weighted_sum, "ties": mean_of_agreeing}


def between(sizes: Weight, lowest: int, end: int) -> Bool[Tensor, "*shape"]:
    """True where the rank of an entry, counted from the smallest, is in [lowest, end).

    Entries as large as the first or the last in it are taken too.
    """
    flat, inside = sizes.flatten(), torch.ones_like(sizes, dtype=torch.bool)
    if lowest > 0:
        inside &= sizes >= flat.kthvalue(lowest + 1).values
    if end < len(flat):
        inside &= sizes <= flat.kthvalue(end).values
    return inside


def check_density(method: Ties | Dare | Breadcrumbs) -> None:
    """Refuse a share that leaves nothing, or more than there is."""
    if not 0 < method.density <= 1:
        raise CalmError(
            f"{type(method).__name__}: density={method.density} is the share of each task vector "
            "that is kept; it must be above 0 and at most 1."
        )
