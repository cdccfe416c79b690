"""The self-decompression task: data drawn out of a frozen model where there is none.

A frozen model grows a tree of its own texts (TG, `Model-Agnostic Self-Decompression
<https://arxiv.org/abs/2406.11354>`_), which then serve as replay data against forgetting, or as
composition data D_C. README.md beside this file has the protocol, and where it differs from the
paper's.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_info
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from typing_extensions import override

from calm_lightning.backbone import Backbone, BackboneSource
from calm_lightning.contracts import CalmError, EvaluationSet, Example, Task
from calm_plugins.tasks.reading import expand
from calm_plugins.tasks.self_decompression.deduplication import Deduplication
from calm_plugins.tasks.self_decompression.growing import Grower
from calm_plugins.tasks.self_decompression.picture import picture
from calm_plugins.tasks.self_decompression.roles import Roles, roles_of
from calm_plugins.tasks.self_decompression.store import Store, read
from calm_plugins.tasks.self_decompression.tree import Corpus, Tree, branch_of

_PICTURE, _LOCK = ".png", ".lock"
"""Endings of what is put beside a cache."""


class SelfDecompression(Task):
    """Texts that a frozen model writes by itself: replay data, or composition data.

    The texts are drawn before training starts, by one process, into a file; what is in the file is
    not drawn again, and a run that was stopped goes on where it was. A part of the tree is kept out
    of training and becomes the set `held_out`, of which the loss is measured.

    Args:
        model: The model that the texts are drawn from.
        cache: File of the texts, JSON lines; a picture of the tree is put beside it, under its
            name and `.png`.
        tree: How many texts are drawn, and how.
        deduplication: Which siblings count as the same; null is that of character trigrams.
        held_out: Share of the branches (texts of level 1 with all that follows them) that is not
            trained on; at least one.
        drawn_at_a_time: Texts that are drawn together; it may change a text by the rounding of
            the model's logits, so a file is not continued with another number.
        **task_options: `batch_size`, `seed` and the other arguments of `Task`. The texts do not
            depend on this seed, but on `tree.seed`.

    Raises:
        CalmError: If a setting makes no sense; and, when the texts are drawn or read, if the model
            cannot be asked for them, or the file was drawn in another way or is damaged.
    """

    def __init__(
        self,
        model: BackboneSource,
        cache: str | Path,
        tree: Tree,
        deduplication: Deduplication | None = None,
        held_out: float = 0.05,
        drawn_at_a_time: int = 64,
        **task_options: Any,
    ) -> None:
        super().__init__(**task_options)
        if not 0 < held_out < 1:
            raise CalmError(f"held_out is a share between 0 and 1, both left out: got {held_out}.")
        if drawn_at_a_time < 1:
            raise CalmError(f"drawn_at_a_time must be at least 1: got {drawn_at_a_time}.")
        self.model = model
        self.cache = Path(cache)
        if self.cache.suffix in (_PICTURE, _LOCK):
            raise CalmError(
                f"cache={cache} is named like what is put beside another cache: a picture (.png) "
                "or a lock (.lock). Name a file for the texts, such as texts.jsonl."
            )
        self.tree = tree
        self.deduplication = deduplication or Deduplication()
        keep = self.deduplication.keep
        if keep is not None and len(keep) != tree.depth:
            raise CalmError(
                f"keep={list(keep)} must have one number for each of the {tree.depth} levels of "
                f"branching={list(tree.branching)}."
            )
        self.held_out = held_out
        self.drawn_at_a_time = drawn_at_a_time
        self._drawn = False
        self._split_made: tuple[list[Example], list[Example]] | None = None

    @override
    def prepare_data(self) -> None:
        if self._drawn:
            return
        file = expand(self.cache)
        backbone = self.model.load()
        if self.model.device_map is None and torch.accelerator.is_available():
            backbone.model.to(torch.accelerator.current_accelerator())
        roles = roles_of(backbone.require_tokenizer(), backbone.name, self.tree)
        with _alone(file):
            store = Store(file, self._about(backbone))
            grown = len(store.corpus.nodes)
            if store.corpus.statistics is None:
                rank_zero_info(f"Drawing texts from {backbone.name!r} into {file}.")
            settings = self.deduplication
            Grower(backbone, roles, self.tree, settings, store, self.drawn_at_a_time).grow()
            image = _beside(file, _PICTURE)
            if len(store.corpus.nodes) > grown or not image.exists():
                picture(store.corpus, image)
                rank_zero_info(_told(store.corpus, file))
        self._drawn = True

    @override
    def train_examples(self) -> Sequence[Example]:
        return self._split()[0]

    @override
    def evaluation_sets(self) -> Sequence[EvaluationSet]:
        return [EvaluationSet("held_out", self._split()[1], scorer=None)]

    def _split(self) -> tuple[list[Example], list[Example]]:
        if self._split_made is None:
            if not torch.distributed.is_initialized():  # else the first process has done it
                self.prepare_data()
            self._split_made = self._make_split(read(expand(self.cache)))
        return self._split_made

    def _make_split(self, corpus: Corpus) -> tuple[list[Example], list[Example]]:
        kept = corpus.kept()
        inner = {node.parent for node in kept}
        branches = sorted({branch_of(node) for node in kept})
        random.Random(f"{self.tree.seed}/held_out").shuffle(branches)
        out = set(branches[: max(1, round(len(branches) * self.held_out))])
        roles = self._roles()
        train: list[Example] = []
        held_out: list[Example] = []
        for node in kept:
            examples = roles.examples(corpus.path(node), node.id not in inner)
            (held_out if branch_of(node) in out else train).extend(examples)
        # Siblings differ, but texts of two branches may not.
        learnt = {(example.prompt, example.target) for example in train}
        held_out = [each for each in held_out if (each.prompt, each.target) not in learnt]
        if not (train and held_out):
            raise CalmError(
                f"{self.cache} holds {len(branches)} branches that count, too few to train on some "
                "and hold out others. Draw more: raise the first number of tree.branching."
            )
        return train, held_out

    def _roles(self) -> Roles:
        options = {} if self.model.revision is None else {"revision": self.model.revision}
        tokenizer = AutoTokenizer.from_pretrained(self.model.path, **options)
        return roles_of(tokenizer, self.model.path, self.tree)

    def _about(self, backbone: Backbone) -> dict[str, Any]:
        """All settings that decide what is drawn.

        Attention and the texts that share a batch do so by the rounding of logits. The kind of
        device does too, but a run may go on on another one.
        """
        return {
            "model": {
                "path": backbone.name,
                "fingerprint": backbone.fingerprint(),
                "tokenizer": _hash_of(backbone.require_tokenizer()),
                "dtype": str(backbone.model.dtype).removeprefix("torch."),
                "attention": backbone.model.config._attn_implementation,
            },
            "drawn_at_a_time": self.drawn_at_a_time,
            "tree": asdict(self.tree),
            "deduplication": asdict(self.deduplication),
        }


def _hash_of(tokenizer: PreTrainedTokenizerBase) -> str:
    said = [sorted(tokenizer.get_vocab().items()), getattr(tokenizer, "chat_template", None)]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _alone(file: Path) -> FileLock:
    """Keeps other processes waiting that would draw into the same file."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CalmError(f"cache={file}: its folder cannot be made: {error}.") from error
    return FileLock(_beside(file, _LOCK))


def _beside(file: Path, ending: str) -> Path:
    """The whole name and an ending: `t_0.3` and `t_0.7` are two files, and so are theirs."""
    return file.with_name(file.name + ending)


def _told(corpus: Corpus, file: Path) -> str:
    assert corpus.statistics is not None
    said = corpus.statistics
    return (
        f"{file}: {said['drawn']:,} texts drawn ({said['tokens']:,} tokens), {said['kept']:,} "
        f"kept; dropped are {said['duplicate']:,} duplicates, {said['surplus']:,} beyond what is "
        f"kept, {said['empty']:,} empty. Different words {said['distinct_1']:.3f}, pairs of words "
        f"{said['distinct_2']:.3f}; self-similarity {said['self_similarity']:.3f}. A picture is "
        f"in {_beside(file, _PICTURE).name}."
    )
