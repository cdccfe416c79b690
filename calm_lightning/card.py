"""The model card of a saved composition: its README.md, with the front matter that the hub reads.

It says what was composed, what came out, on which data, and how to load it. What the folder alone
does not know (data, scores) is kept beside it in `run.json` by whoever knows it: `calm fit`,
`calm test`, `calm card`. Text and front matter that the user adds are kept when it is written anew.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from calm_lightning.contracts import CalmError
from calm_lightning.plain_data import parse_json, parse_yaml

CARD = "README.md"
FACTS = "run.json"

_BEGIN = (
    "<!-- calm: written by the program as far as its next mark; what you write outside stays -->"
)
_END = "<!-- calm: end -->"
_STAGES = ("test", "validation", "before")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w\-.]*/[\w\-.]+")

_TEMPLATE = """\
---
{{ card_data }}
---

{{ begin }}

# {{ title }}

One language model out of {{ backbones | length }}, joined by `{{ composition }}` of
calm-lightning, which follows [CALM](https://arxiv.org/abs/2401.02412). The models are frozen: their
weights were not changed. {{ "{:,}".format(trained) }} weights were trained beside them.

## What was composed

| role | model | revision | architecture | sha256 of the weights |
|---|---|---|---|---|
{% for each in backbones -%}
| {{ each.role }} | {{ each.name }} | {{ each.revision }} | {{ each.architecture }} \
| `{{ each.hash }}` |
{% endfor %}
`{{ settings }}`

{% if full -%}
This folder holds the weights of all of these models.
{%- else -%}
This folder holds the trained weights alone. The models are looked for under the names above;
`calm.load(FOLDER, anchor=..., augmenting=[...])` names other places. Other models are refused by
their hash.
{%- endif %}
{% if local %}
Before this folder is published: name those of the models that are on the hub under `base_model` in
the front matter, by the names that they have there.
{% endif %}
## Results
{% if scores %}
| set | score | {{ columns | join(" | ") }} |
|---|---|{{ "---:|" * (columns | length) }}
{% for row in scores -%}
| {{ row | join(" | ") }} |
{% endfor %}
{{ legend }}
{% endif %}
{%- if comparison %}
Compared under one budget:

{{ comparison }}
{% endif %}
{%- if not scores and not comparison %}
None are recorded here. `calm test --run RUN` records those of a run.
{% endif %}
## Data
{% if data %}
```yaml
{{ data }}
```
{% else %}
Not recorded here.
{% endif %}
## How to use it

```python
import calm_lightning as calm

model = calm.load("FOLDER")
print(model.generate_text(["Once upon a time"], max_new_tokens=20))
```

or by transformers, which knows this kind of model after `import calm_lightning`:

```python
import calm_lightning
from transformers import pipeline

print(pipeline("text-generation", model="FOLDER")("Once upon a time"))
```

The licence of this model is for its owner to state; those of the models above hold too.

Made with {{ versions }}.

{{ end }}
"""


def write_card(folder: Path) -> bool:
    """Write the card of a saved composition, or write it anew.

    Args:
        folder: As written by `calm_lightning.checkpoint.save`.

    Returns:
        False if there is a README.md that somebody else wrote, which is left as it is.
    """
    file = folder / CARD
    old = file.read_text(encoding="utf-8") if file.is_file() else None
    if old is not None and _BEGIN not in old:
        return False
    card = _card(folder)
    if old is not None:
        theirs = ModelCard(old, ignore_metadata_errors=True)
        before, _, rest = theirs.text.partition(_BEGIN)
        own = card.text[card.text.index(_BEGIN) :].rstrip()
        fronts = [theirs.data.to_dict(), card.data.to_dict()]
        fronts[0].pop("model-index", None)  # of scores that may not hold any more
        tags = dict.fromkeys(tag for front in fronts[::-1] for tag in front.get("tags") or ())
        card.data = ModelCardData(**fronts[0] | fronts[1] | {"tags": list(tags)})
        card.text = f"{before}{own}{rest.partition(_END)[2]}"
    card.text = card.text.rstrip() + "\n"
    card.save(file)
    return True


def add_facts(folder: Path, **facts: Any) -> bool:
    """Keep what a run knows of a saved composition, and write its card anew.

    Args:
        folder: As written by `calm_lightning.checkpoint.save`.
        facts: `data`: the task as its config says it. `test`, `validation`, `before` (validation
            before training): scores by `<set>/<score>`. `command`: what printed the test scores.
            `comparison`: a table.

    Returns:
        As `write_card`.
    """
    facts = read_facts(folder) | facts
    (folder / FACTS).write_text(json.dumps(facts, indent=2, default=str) + "\n", encoding="utf-8")
    return write_card(folder)


def read_facts(folder: Path) -> dict[str, Any]:
    """What runs have said of a saved composition; empty if nothing.

    Raises:
        CalmError: If the file is damaged.
    """
    file = folder / FACTS
    try:
        facts: dict[str, Any] = _checked(parse_json(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (TypeError, ValueError) as error:
        raise CalmError(f"{file} is damaged ({error}). Remove it; the card goes without.") from None
    return facts


def _checked(facts: Any) -> Any:
    """What a run says, if all of it is of the right kind."""
    if not isinstance(facts, dict):
        raise TypeError("it is no object")
    for stage in _STAGES:
        scores = facts.get(stage) or {}
        numbers = scores.values() if isinstance(scores, dict) else [None]
        if not all(isinstance(number, int | float) for number in numbers):
            raise TypeError(f"{stage} are no scores by their names")
    if not isinstance(facts.get("data"), dict | None):
        raise TypeError("data is no mapping")
    return facts


def facts_of_comparison(folder: Path) -> dict[str, Any]:
    """What a comparison knows of the model that one of its runs left; empty if it is from none.

    Args:
        folder: `<comparison>/rows/<row>/seed_<n>/model`.

    Raises:
        CalmError: If the run's result is damaged.
    """
    run = folder.resolve().parent
    if not (run / "result.json").is_file():
        return {}
    try:
        result = parse_json((run / "result.json").read_text(encoding="utf-8"))
        config = parse_yaml((run / "config.yaml").read_text(encoding="utf-8"))
        metrics, losses = result["metrics"], result["losses"]
        test = {f"{n}/{'loss_nats' if n in losses else 'score'}": v for n, v in metrics.items()}
        command = f"calm compare, row {result['name']}, seed {result['seed']}"
        data = config.get("data")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise CalmError(
            f"{run} is not the folder of a finished run of `calm compare`: {error!r}"
        ) from None
    table = run.parents[2] / "table.md"
    return {
        "data": data,
        "test": {name: value for name, value in test.items() if value is not None},
        "command": command,
    } | ({"comparison": _only_table(table.read_text("utf-8"))} if table.is_file() else {})


def _card(folder: Path) -> ModelCard:
    description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    facts = read_facts(folder)
    references = description["backbones"]
    composition = description["composition"]
    kind = composition["class_path"].rpartition(".")[2]
    configs = [description["anchor"], *description["augmenting"]]
    title = " + ".join(Path(r["name"]).name for r in references)
    names = list(dict.fromkeys(r["name"] for r in references if _is_hub_name(r["name"])))
    rows, columns = _scores(facts)
    results = _eval_results(facts.get("test") or {}, facts.get("data"))
    data = ModelCardData(
        base_model=names or None,
        base_model_relation=("merge" if len(references) > 1 else "adapter") if names else None,
        library_name="calm-lightning",
        pipeline_tag="text-generation",
        tags=["calm", "model-composition"],
        model_name=title if results else None,
        eval_results=results or None,
    )
    return ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        begin=_BEGIN,
        end=_END,
        title=title,
        composition=kind,
        settings=f"{kind}({', '.join(f'{k}={v!r}' for k, v in composition['init_args'].items())})",
        trained=_count(folder / "composition.safetensors"),
        backbones=[
            {
                "role": reference["role"],
                "name": f"`{reference['name']}`"
                + (", random weights" if reference.get("weights") == "random" else ""),
                "revision": reference["revision"] or "",
                "architecture": (config.get("architectures") or [config.get("model_type")])[0],
                "hash": reference["fingerprint"][:16],
            }
            for reference, config in zip(references, configs, strict=True)
        ],
        local=len(names) < len({reference["name"] for reference in references}),
        full=all("folder" in reference for reference in references),
        scores=rows,
        columns=columns,
        legend=_legend(facts),
        comparison=facts.get("comparison"),
        data=yaml.safe_dump(facts["data"], sort_keys=False).rstrip() if facts.get("data") else "",
        versions=_versions(composition["class_path"]),
    )


def _is_hub_name(name: str) -> bool:
    return bool(_HUB_NAME.fullmatch(name)) and not Path(name).is_dir()


def _count(weights: Path) -> int:
    """How many numbers a safetensors file holds; the numbers are not read."""
    count = 0
    with safe_open(weights, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (no mapping)
            size = 1
            for length in file.get_slice(name).get_shape():
                size *= length
            count += size
    return count


def _scores(facts: Mapping[str, Any]) -> tuple[list[list[str]], list[str]]:
    """One row for each score, and what the columns are."""
    stages = [stage for stage in _STAGES if facts.get(stage)]
    names = dict.fromkeys(n for stage in stages for n in facts[stage] if "=" not in n)
    rows = []
    for name in names:
        group, _, score = name.partition("/")
        values = (facts[stage].get(name) for stage in stages)
        rows.append([group, score, *("" if v is None else f"{v:.4f}" for v in values)])
    return rows, stages


def _legend(facts: Mapping[str, Any]) -> str:
    parts = ["Shares are fractions, losses nats per target token or character."]
    if facts.get("test"):
        parts.append(f"Test: `{facts.get('command', 'calm test')}`.")
    if facts.get("validation"):
        parts.append("Validation: a part of each set, at the end of training.")
    if facts.get("before"):
        parts.append("Before: that part before training, where the anchor answers alone.")
    return " ".join(parts)


def _eval_results(test: Mapping[str, float], data: Any) -> list[EvalResult]:
    """The test scores as the hub takes them; validation guided the run, so it is no result."""
    task = str((data or {}).get("class_path", "unknown")).rpartition(".")[2]
    results = []
    for name, value in test.items():
        group, _, score = name.partition("/")
        if "=" not in score:
            results.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type=task,
                    dataset_name=group,
                    dataset_config=group,  # without it all sets are taken for one
                    metric_type=score,
                    metric_value=round(value, 6),
                )
            )
    return results


def _only_table(text: str) -> str:
    """The table of a comparison and its legend, without title and examples."""
    parts = text.split("\n\n")
    first = next(i for i, part in enumerate(parts) if part.startswith("|"))
    return "\n\n".join(parts[first : first + 2]).strip()


@cache  # it reads what every installed distribution says of itself
def _versions(class_path: str) -> str:
    """The packages that made the model, that of the composition's plug-in among them."""
    plugin = packages_distributions().get(class_path.partition(".")[0], [])
    packages = dict.fromkeys(["calm-lightning", *plugin, "torch", "transformers"])
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:  # run from a checkout that is not installed
            continue
    return ", ".join(found)
