"""The translation task: sentence pairs of any corpora, in any directions, as prompts and targets.

This is section 4.2 of `LLM Augmented LLMs <https://arxiv.org/abs/2401.02412>`_: from low-resource
languages into English, FLORES-200, 5-shot, chrF. README.md beside this file has the protocol, and
where it differs from the paper's.
"""

import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from calm_lightning.contracts import CalmError, EvaluationSet, Example, Task
from calm_plugins.tasks.blending import Blend, shares
from calm_plugins.tasks.by_index import ByIndex
from calm_plugins.tasks.reading import normal_form
from calm_plugins.tasks.translation.corpora import Corpus, Direction, Pair
from calm_plugins.tasks.translation.languages import language_name
from calm_plugins.tasks.translation.parts import EvaluationPart, TrainingPart
from calm_plugins.tasks.translation.scorer import CorpusScores

_FIELDS = ("source", "source_language", "target_language", "source_code", "target_code")


class Translation(Task):
    """Translation between any languages of any corpora.

    No text that an evaluation set holds, on either side, is trained on: such pairs are left out of
    training, whatever corpus and direction they come from, and their number is said. So a corpus
    can serve both: `limit` of an evaluation part draws what is held out.

    Args:
        corpora: Where sentence pairs come from, by name: `Flores`, `Ntrex`, `Tatoeba`,
            `LineFiles`, `PairFiles`, `Hub`, or a class of your own.
        train: What is learnt; may be empty for evaluation alone.
        evaluation: What is asked.
        prompt: How a question is put, up to where the model goes on. Fields: {source},
            {source_language}, {target_language} (names), {source_code}, {target_code}.
        joint: Between prompt and translation. It is given with the prompt, but for spaces at its
            end, which tokenizers write with the word that follows.
        separator: Between exemplars.
        scores: What is reported beside chrF: chrfpp (chrF++), bleu, spbleu, ter.
        bleu_tokenizer: sacrebleu's name of it; None: sacrebleu's choice for the language.
        temperature: A direction of n pairs weighs n^(1/temperature) in training: 1 gives every
            pair the same chance, more evens out large and small languages.
        examples_per_epoch: With weights or a temperature, the same training examples come again
            after so many. Otherwise an epoch is every example once.
        split_seed: Seed of what `limit`, `share` and `shots` draw. It is apart from `seed`, so that
            all seeds of a table hold out and learn the same pairs. A larger share contains a
            smaller one, but for what its own run holds out; so does a larger limit, where the same
            is held out.
        language_names: Names by code, where others than CLDR's are wanted.
        max_new_tokens: How long a translation may become, in tokens of the anchor.
        stop: Texts at which it ends, itself left out.
        **task_options: `batch_size`, `seed` and the other arguments of `Task`.

    Raises:
        CalmError: If a setting makes no sense; and, when the examples are asked for, if a corpus
            cannot be read or lacks a language, or nothing is left to train on or to ask.
    """

    def __init__(
        self,
        corpora: dict[str, Corpus],
        train: tuple[TrainingPart, ...] = (),
        evaluation: tuple[EvaluationPart, ...] = (),
        prompt: str = "{source_language}: {source}\n{target_language}:",
        joint: str = " ",
        separator: str = "\n",
        scores: tuple[str, ...] = ("chrfpp", "bleu"),
        bleu_tokenizer: str | None = None,
        temperature: float = 1.0,
        examples_per_epoch: int = 1_000_000,
        split_seed: int = 1234,
        language_names: dict[str, str] | None = None,
        max_new_tokens: int = 128,
        stop: tuple[str, ...] = ("\n",),
        **task_options: Any,
    ) -> None:
        super().__init__(**task_options)
        self.corpora = dict(corpora)
        self.train = tuple(train)
        self.evaluation = tuple(evaluation)
        _check_prompt(prompt)
        for number, part in enumerate(self.train):
            part.check(f"train[{number}]", self.corpora)
        for number, asked in enumerate(self.evaluation):
            asked.check(f"evaluation[{number}]", self.corpora)
        weighted = [part.weight is not None for part in self.train]
        if any(weighted) and not all(weighted):
            raise CalmError("Some parts of train have a weight and some have none: give all one.")
        if examples_per_epoch < 1 or max_new_tokens < 1:
            raise CalmError(
                f"examples_per_epoch={examples_per_epoch} and max_new_tokens={max_new_tokens} must "
                "be at least 1."
            )
        shares([1], None, temperature)
        self.prompt, self.joint, self.separator = prompt, joint, separator
        self.scores, self.bleu_tokenizer = tuple(scores), bleu_tokenizer
        self.temperature = temperature
        self.examples_per_epoch = examples_per_epoch
        self.split_seed = split_seed
        self.language_names = language_names
        self.max_new_tokens, self.stop = max_new_tokens, tuple(stop)
        self.generated = any(weighted) or temperature > 1  # the blend has an order of its own
        self._train_made: Sequence[Example] | None = None
        self._sets_made: list[EvaluationSet] | None = None

    @override
    def train_examples(self) -> Sequence[Example]:
        if self._train_made is None:
            self._train_made = self._make_train()
        return self._train_made

    @override
    def evaluation_sets(self) -> Sequence[EvaluationSet]:
        if self._sets_made is None:
            self._sets_made = [each for part in self.evaluation for each in self._make_sets(part)]
        return self._sets_made

    # ------------------------------------------------------------------ training

    def _make_train(self) -> Sequence[Example]:
        if not self.train:
            raise CalmError(
                "There is nothing to train on: train is empty. Name a part of a corpus."
            )
        asked = {
            normal_form(text)
            for each in self.evaluation_sets()
            for example in each.examples
            for text in (example.meta["source"], example.target)
        }
        streams: list[_Stream] = []
        weights: list[float] = []
        for part in self.train:
            made = self._streams(part, asked)
            streams += made
            inside = shares([len(stream) for stream in made], None, self.temperature)
            weights += [(part.weight or 0.0) * share for share in inside]
        sizes = [len(stream) for stream in streams]
        proportions = shares(sizes, weights if any(weights) else None, self.temperature)
        length = self.examples_per_epoch if self.generated else sum(sizes)
        return Blend(streams, proportions, length, self.seed)

    def _streams(self, part: TrainingPart, asked: set[str]) -> list["_Stream"]:
        whole = overlapping = 0
        streams: list[_Stream] = []
        shown: set[str] = set()
        plain = part.kind != "translation"
        directions = self._directions(part)
        for direction in directions:
            pairs = self._pairs(part.corpus, direction)
            whole += len(pairs)
            short = {i for i, pair in enumerate(pairs) if _is_short(pair, part.max_characters)}
            held_out = {i for i in short if asked and asked & set(map(normal_form, pairs[i]))}
            overlapping += len(held_out)
            chosen = self._drawn(part, pairs, short - held_out)
            if plain:  # a text is learnt once, wherever it comes from
                side = 0 if part.kind == "source_text" else 1
                texts = dict.fromkeys(pair[side] for pair in chosen)
                chosen = [("", text) for text in texts if text not in shown]
            chosen = chosen[: part.limit]
            shown.update(text for _, text in chosen)
            if chosen:
                streams.append(_Stream(chosen, _plain_text if plain else self._writer(direction)))
        learnt = sum(len(stream) for stream in streams)
        about = (
            f"{learnt:,} of {whole:,} pairs in {len(directions)} directions of {part.corpus} are "
            f"learnt ({part.kind}); {overlapping:,} are not because an evaluation set holds one of "
            "their texts."
        )
        if not streams:
            raise CalmError(
                f"Nothing is left to train on: {about} Ask less by a limit in evaluation, or train "
                "on another corpus."
            )
        rank_zero_info(about)
        return streams

    def _drawn(self, part: TrainingPart, pairs: Sequence[Pair], free: set[int]) -> list[Pair]:
        """The share of the pairs, of which `free` may be learnt; in an order by `split_seed`."""
        order = list(range(len(pairs)))
        if part.share < 1 or part.limit is not None:
            # All pairs, and not the free ones: else what is held out would decide what is drawn.
            random.Random(self.split_seed).shuffle(order)
        share = order[: max(1, round(part.share * len(pairs)))]
        places = [i for i in share if i in free] or [i for i in order if i in free][:1]
        return [pairs[i] for i in places]

    # ------------------------------------------------------------------ evaluation

    def _make_sets(self, part: EvaluationPart) -> list[EvaluationSet]:
        name = part.name or part.corpus
        directions = self._directions(part)
        asked = {each: self._questions(part, each) for each in directions}
        if not part.together:
            return [self._set(f"{name}.{each.label}", [each], asked[each]) for each in directions]
        # In turns, so that the first few hold all languages: validation asks no more.
        longest = max(map(len, asked.values()))
        turns = [each[i] for i in range(longest) for each in asked.values() if i < len(each)]
        return [self._set(name, directions, turns)]

    def _set(
        self, name: str, directions: Sequence[Direction], examples: Sequence[Example]
    ) -> EvaluationSet:
        targets = {direction.label: direction.target for direction in directions}
        scorer = partial(CorpusScores, targets, self.scores, self.bleu_tokenizer)
        return EvaluationSet(name, examples, scorer, self.max_new_tokens, self.stop)

    def _questions(self, part: EvaluationPart, direction: Direction) -> list[Example]:
        pairs = self._pairs(part.corpus, direction)
        short = [pair for pair in pairs if _is_short(pair, part.max_characters)]
        if not short:
            raise CalmError(
                f"{part.corpus}, {direction.label}: there is nothing to ask. It has {len(pairs):,} "
                f"pairs, and none with at most {part.max_characters} characters a side."
            )
        chosen = self._draw(short, min(len(short), part.limit or len(short)))
        write = self._writer(direction)
        before = "".join(
            example.prompt + example.target + self.separator
            for example in map(write, self._exemplars(part, direction, chosen))
        )
        if len(short) < len(pairs):
            rank_zero_info(
                f"{part.corpus}, {direction.label}: {len(pairs) - len(short):,} of {len(pairs):,} "
                f"pairs are not asked because a side is longer than {part.max_characters} "
                "characters."
            )
        examples = map(write, chosen)
        return [Example(before + each.prompt, each.target, each.meta) for each in examples]

    def _exemplars(
        self, part: EvaluationPart, direction: Direction, asked: Sequence[Pair]
    ) -> list[Pair]:
        if not part.shots:
            return []
        name = part.exemplars or part.corpus
        (there,) = self.corpora[name].find(f"{direction.source}-{direction.target}")
        taken = {normal_form(text) for pair in asked for text in pair}
        free = [
            pair
            for pair in self._pairs(name, there)
            if _is_short(pair, part.max_characters) and not taken & set(map(normal_form, pair))
        ]
        if len(free) < part.shots:
            raise CalmError(
                f"{part.corpus}, {direction.label}: {part.shots} exemplars are wanted, but {name} "
                f"has {len(free)} pairs that are not asked. Name another corpus or split as "
                "exemplars, or ask less by a limit."
            )
        return self._draw(free, part.shots)

    # ------------------------------------------------------------------ both

    def _directions(self, part: TrainingPart | EvaluationPart) -> list[Direction]:
        found = [
            each for asked in part.directions for each in self.corpora[part.corpus].find(asked)
        ]
        return list({(each.source, each.target): each for each in found}.values())

    def _pairs(self, name: str, direction: Direction) -> Sequence[Pair]:
        pairs = self.corpora[name].pairs(direction.source, direction.target)
        if not pairs:
            raise CalmError(
                f"{name}, {direction.label}: the corpus is empty, there is not one pair in it. "
                "Check the file or the split, or leave this direction out."
            )
        return pairs

    def _draw(self, pairs: Sequence[Pair], count: int) -> list[Pair]:
        """Some of the pairs, in their order; of corpora that are parallel the same lines."""
        order = list(range(len(pairs)))
        if count < len(pairs):
            random.Random(self.split_seed).shuffle(order)
        return [pairs[i] for i in sorted(order[:count])]

    def _writer(self, direction: Direction) -> "_Writer":
        values = {"source_code": direction.source, "target_code": direction.target}
        for side in ("source", "target"):
            if f"{side}_language" in _fields_of(self.prompt):
                code = getattr(direction, side)
                values[f"{side}_language"] = language_name(code, self.language_names)
        return _Writer(self.prompt, values, self.joint, direction.label)


@dataclass(frozen=True)
class _Writer:
    """Writes pairs of one direction as prompts and targets."""

    prompt: str
    values: Mapping[str, str]
    joint: str
    label: str

    def __call__(self, pair: Pair) -> Example:
        source, target = pair
        given = self.joint.rstrip(" ")
        prompt = self.prompt.format(source=source, **self.values) + given
        space = self.joint[len(given) :]
        return Example(prompt, space + target, {"direction": self.label, "source": source})


class _Stream(ByIndex):
    """Pairs as examples, each written when it is asked for."""

    def __init__(self, pairs: Sequence[Pair], write: Callable[[Pair], Example]) -> None:
        self.pairs, self.write = pairs, write

    @override
    def __len__(self) -> int:
        return len(self.pairs)

    @override
    def at(self, index: int) -> Example:
        return self.write(self.pairs[index])


def _plain_text(pair: Pair) -> Example:
    return Example("", pair[1])


def _is_short(pair: Pair, max_characters: int | None) -> bool:
    return max_characters is None or max(map(len, pair)) <= max_characters


def _fields_of(prompt: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None]


def _check_prompt(prompt: str) -> None:
    try:
        found = _fields_of(prompt)
    except ValueError as error:
        raise CalmError(f"prompt: {error}. A brace that is meant as such is doubled.") from None
    unknown = sorted(set(found) - set(_FIELDS))
    if unknown or "source" not in found:
        fault = f"has no field {{{unknown[0]}}}" if unknown else "must hold {source}"
        fields = ", ".join(f"{{{name}}}" for name in _FIELDS)
        raise CalmError(f"prompt {fault}: got {prompt!r}. Its fields are {fields}.")
