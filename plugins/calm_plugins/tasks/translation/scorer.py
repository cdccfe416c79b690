"""sacrebleu's scores of a whole corpus, from batches on any number of processes.

The metric's state is the sum of sacrebleu's own statistics of each sentence, and the score is
computed from that sum by sacrebleu itself, as `sacrebleu.corpus_score` does it. So it is the score
of the corpus and no mean over batches or processes, and it has sacrebleu's signature. The chrF,
BLEU and TER of torchmetrics are not used because they differ: "ok" against "ok" has a chrF of 100
by sacrebleu and of 33.3 by torchmetrics 1.9, which smooths otherwise.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from sacrebleu.metrics.base import Metric as SacrebleuMetric
from sacrebleu.metrics.base import Score
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.utils import SACREBLEU_DIR
from torch import Tensor
from typing_extensions import override

from calm_lightning.contracts import CalmError, Example, Scorer

Kind = Literal["chrf", "chrfpp", "bleu", "spbleu", "ter"]

_TOKENIZERS = {"zho": "zh", "cmn": "zh", "zh": "zh", "jpn": "ja-mecab", "ja": "ja-mecab",
               "kor": "ko-mecab", "ko": "ko-mecab"}  # fmt: skip
_SPBLEU = "flores200"
_SPBLEU_MODEL = "flores200sacrebleuspm"  # as sacrebleu calls it on disk


class CorpusScores(Scorer):
    """chrF and the other scores of sacrebleu, for the whole corpus; as fractions.

    100 times a score is what `sacrebleu` prints. With several directions each has its own scores
    (`chrf/direction=lij-eng`), and the score of all is their mean, every direction counting alike.

    Args:
        directions: Target language by direction; each example says its direction in
            `meta["direction"]`. The language's code (`zho_Hans`) decides BLEU's tokenizer.
        scores: What is computed beside chrF (the headline): chrfpp (chrF++), bleu, spbleu, ter.
        bleu_tokenizer: sacrebleu's name of it (13a, zh, char, intl, ...). None: as sacrebleu
            chooses for the target language: zh for Chinese, ja-mecab and ko-mecab for Japanese
            and Korean, 13a for all others.

    Raises:
        CalmError: If there is no such score or tokenizer, or what it needs is not installed.
    """

    headline = "chrf"
    higher_is_better = True
    examples: Tensor

    def __init__(
        self,
        directions: Mapping[str, str],
        scores: Sequence[str] = ("chrfpp", "bleu"),
        bleu_tokenizer: str | None = None,
    ) -> None:
        super().__init__()
        unknown = [name for name in scores if name not in get_args(Kind)]
        if unknown:
            raise CalmError(
                f"There is no score {unknown[0]!r}. scores are any of {', '.join(get_args(Kind))}."
            )
        self.directions = list(directions)
        self.kinds = list(dict.fromkeys(("chrf", *scores)))
        self.metrics = {
            (kind, direction): _metric(kind, code, bleu_tokenizer)
            for kind in self.kinds
            for direction, code in directions.items()
        }
        zeros = torch.zeros(len(directions), dtype=torch.long)
        self.add_state("examples", zeros, dist_reduce_fx="sum")
        for kind in self.kinds:
            width = len(_statistics(self.metrics[kind, self.directions[0]], ["a"], ["a"]))
            # Whole numbers: with one reference a sentence sacrebleu counts and does not divide.
            sums = torch.zeros(len(directions), width, dtype=torch.long)
            self.add_state(f"sums_{kind}", sums, dist_reduce_fx="sum")

    @override
    def update(self, predictions: Sequence[str], examples: Sequence[Example]) -> None:
        rows: dict[str, list[tuple[str, str]]] = {}
        for prediction, example in zip(predictions, examples, strict=True):
            pair = (prediction.strip(), example.target.strip())
            rows.setdefault(example.meta["direction"], []).append(pair)
        for direction, pairs in rows.items():
            place = self.directions.index(direction)
            self.examples[place] += len(pairs)
            said, references = (list(column) for column in zip(*pairs, strict=True))
            for kind in self.kinds:
                sums = _statistics(self.metrics[kind, direction], said, references)
                self._sums(kind)[place] += torch.tensor(sums, device=self.device)

    @override
    def compute(self) -> dict[str, Tensor]:
        scored = [name for name, n in zip(self.directions, self.examples, strict=True) if n]
        results = {}
        for kind in self.kinds:
            each = {name: self.score(kind, name).score / 100 for name in scored}
            results[kind] = sum(each.values()) / len(each) if each else float("nan")
            if len(self.directions) > 1:
                results |= {f"{kind}/direction={name}": score for name, score in each.items()}
        return {
            name: torch.tensor(score, dtype=torch.float64, device=self.device)
            for name, score in results.items()
        }

    def score(self, kind: str, direction: str) -> Score:
        """The score of what was taken in as sacrebleu gives it, on its scale of 0 to 100."""
        sums = self._sums(kind)[self.directions.index(direction)].tolist()
        return self.metrics[kind, direction]._compute_score_from_stats(sums)

    @override
    def signatures(self) -> dict[str, str]:
        """The signature of each score by sacrebleu; several where tokenizers differ."""
        found: dict[str, dict[str, None]] = {}
        for (kind, _), metric in self.metrics.items():
            _statistics(metric, ["a"], ["a"])  # tells it that there is one reference a sentence
            found.setdefault(kind, {})[str(metric.get_signature())] = None
        return {kind: " and ".join(each) for kind, each in found.items()}

    def _sums(self, kind: str) -> Tensor:
        sums: Tensor = getattr(self, f"sums_{kind}")
        return sums


def _statistics(
    metric: SacrebleuMetric, said: Sequence[str], references: Sequence[str]
) -> list[int]:
    """What sacrebleu counts in some sentences, added up."""
    each = metric._extract_corpus_statistics(said, [references])
    return [int(sum(column)) for column in zip(*each, strict=True)]


def _metric(kind: str, code: str, bleu_tokenizer: str | None) -> SacrebleuMetric:
    if kind == "chrf":
        return CHRF()
    if kind == "chrfpp":
        return CHRF(word_order=2)
    if kind == "ter":
        return TER()
    if kind == "spbleu":
        return _spbleu()
    language = code.replace("-", "_").partition("_")[0]
    tokenizer = bleu_tokenizer or _TOKENIZERS.get(language, "13a")
    try:
        return BLEU(tokenize=tokenizer, force=True)
    except KeyError:
        raise CalmError(
            f"sacrebleu has no tokenizer {tokenizer!r} for BLEU. Some that it has: 13a, zh, char, "
            "intl, none, ja-mecab, ko-mecab, flores200."
        ) from None
    except (ImportError, RuntimeError):
        extra = tokenizer.partition("-")[0]
        raise CalmError(
            f"BLEU into {code} is counted with the tokenizer {tokenizer}, which is not installed: "
            f"pip install 'sacrebleu[{extra}]'. Or set bleu_tokenizer: char, or leave bleu out of "
            "scores."
        ) from None


def _spbleu() -> SacrebleuMetric:
    # Looked for first: sacrebleu would download it, and end the program if it cannot.
    model = os.path.join(SACREBLEU_DIR, "models", _SPBLEU_MODEL)
    try:
        import sentencepiece  # noqa: F401
    except ImportError:
        raise CalmError(
            "spBLEU needs the package sentencepiece: pip install sentencepiece. Or leave spbleu "
            "out of scores."
        ) from None
    if not os.path.isfile(model):
        raise CalmError(
            f"spBLEU needs its tokenizer's model {model}, which is not there. With a network, "
            f"`echo x | sacrebleu --tokenize {_SPBLEU} REFERENCE` fetches it once. Or leave spbleu "
            "out of scores."
        )
    return BLEU(tokenize=_SPBLEU, force=True)
