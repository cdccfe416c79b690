"""What is asked of an estimate, and what it answers."""

from dataclasses import dataclass

from calm_lightning.contracts import CalmError
from calm_lightning.estimate.units import Units

MOST = 1_000_000
"""Rows, and tokens of one, that are asked about; a larger number is a slip."""


@dataclass(frozen=True)
class Work:
    """How much is done at a time.

    Args:
        rows: Texts in a training step.
        length: Tokens of the longest text.
        targets: Tokens of a text that are learnt.
        answered: Texts that are continued at a time.
        new_tokens: Tokens of `length` that are generated; the others are the prompt.

    Raises:
        CalmError: If a number is out of range.
    """

    rows: int
    length: int
    targets: int
    answered: int
    new_tokens: int

    def __post_init__(self) -> None:
        for option, value, least, most in (
            ("batch-size", self.rows, 1, MOST),
            ("batch-size", self.answered, 1, MOST),
            ("length", self.length, 2, MOST),
            ("target-length", self.targets, 1, self.length - 1),
            ("new-tokens", self.new_tokens, 1, self.length - 1),
        ):
            if not least <= value <= most:
                limit = f" and at most {most}" if value > most or most < MOST else ""
                limit += ", one less than --length" if most < MOST else ""
                raise CalmError(f"--{option} must be at least {least}{limit}: got {value}.")


@dataclass(frozen=True)
class Part:
    """A part of the model: how many weights, how many of them are trained, and their bytes."""

    name: str
    weights: int
    trained: int
    size: int


@dataclass(frozen=True)
class Training:
    """A training step; all but `flops` in bytes.

    Attributes:
        weights: Trained and frozen, and buffers.
        gradients: Of trained weights.
        optimizer: Its state.
        activations: Kept for the backward pass, without logits.
        logits: With what the loss keeps of their size.
        temporary: What exists beside all these at the moment of forward and backward pass that
            needs most.
        step: What the optimizer's step needs for itself, when there are no activations any more.
        kept_free: What a processor's allocator holds beyond all this; 0 on a GPU.
        flops: Forward and backward.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    temporary: int
    step: int
    kept_free: int
    flops: int

    @property
    def fixed(self) -> int:
        """What does not depend on the batch."""
        return self.weights + self.gradients + self.optimizer

    @property
    def varying(self) -> int:
        """What grows with the batch."""
        return self.activations + self.logits + self.temporary

    @property
    def total(self) -> int:
        """The most that is needed at a time."""
        return self.fixed + max(self.varying, self.step) + self.kept_free


@dataclass(frozen=True)
class Generation:
    """Greedy decoding, in bytes and operations.

    Attributes:
        weights: And buffers.
        caches: Of anchor, augmenting models and bridges, when the last token is made.
        temporary: What more there is at the moment that needs most, logits among it.
        kept_free: What a processor's allocator holds beyond all this; 0 on a GPU.
        prompt_flops: Of reading all prompts.
        flops: Of making the last token of every row.
    """

    weights: int
    caches: int
    temporary: int
    kept_free: int
    prompt_flops: int
    flops: int

    @property
    def total(self) -> int:
        """The most that is needed at a time."""
        return self.weights + self.caches + self.temporary + self.kept_free


@dataclass(frozen=True)
class Estimate:
    """All that is told about one run.

    Attributes:
        work: What was asked.
        parts: Of the model.
        training: None if nothing is trained.
        generation: Of answers.
        program: Bytes of Python and its libraries on a processor; 0 on a GPU.
        largest_layer: Bytes of the weights of the largest decoder layer.
        outside_layers: Bytes of the weights that are in no decoder layer.
        units: What FSDP2 shares out and puts together; None if it does not share out such a model.
        notes: What could not be estimated, and what was taken instead.
    """

    work: Work
    parts: tuple[Part, ...]
    training: Training | None
    generation: Generation
    program: int
    largest_layer: int
    outside_layers: int
    units: Units | None = None
    notes: tuple[str, ...] = ()
