"""What a model is given so that it writes the next text of a tree.

A base model is given the start text and what followed it. A chat model is given the conversation as
its template writes it; behind the marker of the user's turn it goes on to write a question.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from calm_lightning.collate import tokenize
from calm_lightning.contracts import CalmError, Example
from calm_plugins.tasks.self_decompression.tree import Node, Tree

_HERE = "@@here@@"
"""Stands for a text, so that what the template writes before and after it can be told apart."""


class Roles(ABC):
    """How the texts of a path follow one another.

    Args:
        tokenizer: Of the model that writes.
        name: Of that model, for messages.
        tree: How it is asked.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, tree: Tree) -> None:
        self.tokenizer, self.name, self.tree = tokenizer, name, tree

    @abstractmethod
    def prompt(self, path: Sequence[Node], start: str = "") -> str:
        """What is given to the model after the texts of a path; `start` if there are none yet."""

    @abstractmethod
    def goes_on(self, node: Node) -> bool:
        """Whether further texts may follow this one."""

    @abstractmethod
    def examples(self, path: Sequence[Node], leaf: bool) -> list[Example]:
        """What is learnt from the last text of a path.

        Args:
            path: From level 1 down.
            leaf: Whether nothing follows it.
        """

    def stop(self) -> tuple[str, ...]:
        """Texts at which a text ends."""
        return ()

    def ends(self) -> set[int]:
        """Tokens at which a text ends, beside those of the model."""
        return set()


class Text(Roles):
    """A text that is continued, for base models (TG-PT).

    Raises:
        CalmError: If there is no start, and no token that texts start with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, tree: Tree) -> None:
        super().__init__(tokenizer, name, tree)
        if not (tree.start or tree.start_pattern or tokenize(tokenizer, [""])[0].ids):
            raise CalmError(
                f"The tokenizer of {name!r} has no token that texts start with, so nothing can be "
                "drawn without a start. Give it one: tree.start or tree.start_pattern."
            )

    @override
    def prompt(self, path: Sequence[Node], start: str = "") -> str:
        return (path[0].start + "".join(node.text for node in path)) if path else start

    @override
    def goes_on(self, node: Node) -> bool:
        return not node.ended

    @override
    def examples(self, path: Sequence[Node], leaf: bool) -> list[Example]:
        if not leaf:
            return []  # part of the texts of its children
        text = "".join(node.text for node in path)
        return [Example(path[0].start, text, {"node": path[-1].id}, ends=path[-1].ended)]


class Chat(Roles):
    """Conversations by the model's chat template (Wide-Tree and Balance-Tree).

    A turn ends where the template ends it. Many templates end one in plain text, or not at all
    (Vicuna's and Alpaca's questions); then it ends where the next one's marker begins.

    Raises:
        CalmError: If there is no chat template, or it cannot write such conversations, or nothing
            in it tells where a turn ends.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, tree: Tree) -> None:
        super().__init__(tokenizer, name, tree)
        if getattr(tokenizer, "chat_template", None) is None:
            raise CalmError(
                f"The tokenizer of {name!r} has no chat template, so it is not known how it is "
                "asked for a question. Continue a text instead (style: text), or give the "
                "tokenizer a `chat_template`."
            )
        bos = tokenizer.bos_token_id
        added = bos is not None and tokenizer("")["input_ids"][:1] == [bos]
        self._added = str(tokenizer.bos_token) if added else ""
        self._after = {self._after_question(), self._after_answer()} - {""}

    @override
    def prompt(self, path: Sequence[Node], start: str = "") -> str:
        texts = [node.text for node in path]
        if len(texts) % 2:
            return self._write(self._messages(texts), asks=True)
        before, here, _ = self._write(self._messages([*texts, _HERE])).rpartition(_HERE)
        if not here:
            raise CalmError(
                f"The chat template of {self.name!r} does not write the user's words, so there is "
                "no place where the model could go on with them."
            )
        return before

    @override
    def goes_on(self, node: Node) -> bool:
        return True

    @override
    def examples(self, path: Sequence[Node], leaf: bool) -> list[Example]:
        if len(path) % 2:
            return []  # a question
        meta = {"node": path[-1].id}
        return [Example(self.prompt(path[:-1]), path[-1].text, meta, ends=path[-1].ended)]

    @override
    def stop(self) -> tuple[str, ...]:
        plain = {self._plain(each) for each in self._after if self._first_token(each) is None}
        return tuple(sorted(plain - {""}))

    @override
    def ends(self) -> set[int]:
        found = {self._first_token(after) for after in self._after}
        return {token for token in found if token is not None}

    def _after_question(self) -> str:
        """The end of a question's turn or, where the template writes none, the answer's marker."""
        asked = self._messages([_HERE])
        after = _behind(self._write(asked)) or _behind(self._write(asked, asks=True))
        if not after:
            raise CalmError(self._endless("a question", "an answer (add_generation_prompt)"))
        return after

    def _after_answer(self) -> str:
        """The same of an answer and the next question; empty if only the end of text can end it."""
        after = _behind(self._write(self._messages([_HERE] * 2)))
        if not after:
            parts = self._write(self._messages([_HERE] * 3)).split(_HERE)
            after = parts[2].strip() if len(parts) == 4 else ""
        if not after and self.tokenizer.eos_token_id is None:
            raise CalmError(self._endless("an answer", "the next question"))
        return after

    def _endless(self, text: str, following: str) -> str:
        return (
            f"The chat template of {self.name!r} writes nothing behind {text}, neither an end of "
            f"the turn nor a marker of {following}, so it is not known where a drawn one ends. "
            "Give the tokenizer a `chat_template` that writes one, or continue a text instead "
            "(style: text)."
        )

    def _plain(self, after: str) -> str:
        """What a template writes before a special token, which no drawn text holds."""
        for token in self.tokenizer.all_special_tokens:
            after = after.partition(token)[0]
        return after.rstrip()

    def _first_token(self, after: str) -> int | None:
        """The special token that a template's end of turn begins with; None if it is plain text."""
        first: list[int] = self.tokenizer(after, add_special_tokens=False)["input_ids"][:1]
        return first[0] if first and first[0] in self.tokenizer.all_special_ids else None

    def _messages(self, texts: Sequence[str]) -> list[Mapping[str, str]]:
        system = [{"role": "system", "content": self.tree.system}] if self.tree.system else []
        return [*system, *(_message(number, text) for number, text in enumerate(texts))]

    def _write(self, messages: Sequence[Mapping[str, str]], asks: bool = False) -> str:
        """The conversation as text, without a first token that the tokenizer puts there itself."""
        try:
            written: str = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=asks
            )
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise CalmError(
                f"The chat template of {self.name!r} refuses these messages: {error}"
            ) from error
        return written.removeprefix(self._added)


def _behind(written: str) -> str:
    """What stands behind the last text of a conversation, without white space around it."""
    return written.rpartition(_HERE)[2].strip()


def roles_of(tokenizer: PreTrainedTokenizerBase, name: str, tree: Tree) -> Roles:
    """The roles of a tree's style.

    Raises:
        CalmError: If the model cannot be asked in this style.
    """
    return (Chat if tree.style == "chat" else Text)(tokenizer, name, tree)


def _message(number: int, text: str) -> Mapping[str, str]:
    return {"role": "assistant" if number % 2 else "user", "content": text}
