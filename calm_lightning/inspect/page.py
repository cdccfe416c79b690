"""Puts what is known of a run together as one HTML page that needs no other file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from calm_lightning.figures import as_svg, attention_map, curves
from calm_lightning.inspect.opened import ANCHOR, SHUFFLED, ZEROED, OpenedRun, Sample, Scores
from calm_lightning.inspect.picture import DrawnConnection, DrawnModel, draw
from calm_lightning.inspect.run_folder import Points, RunFolder
from calm_lightning.parts import COMPOSED
from calm_lightning.probing import Probe, connection_name

MARK = "<!-- made by calm inspect -->"
"""Tells our pages from a file of somebody else's."""

_PERCENT = ("accuracy", "exact_match", "pass")
"""Beginnings of the scores that are shares of one."""


@dataclass(frozen=True)
class Asked:
    """What the model said when it was asked anew."""

    opened: OpenedRun
    scores: Mapping[str, Scores]
    samples: Sequence[Sample]
    probes: Sequence[Probe]


@dataclass(frozen=True)
class Bar:
    """One score of a control, and how long its bar is."""

    label: str
    value: str
    share: float | None


@dataclass
class _Shown:
    """What the template shows; an empty part is left out with a sentence.

    Attributes:
        trained: Number of weights that training changes; None if the model was not opened.
    """

    title: str
    about: list[tuple[str, str]]
    settings: str
    trained: int | None = None
    picture: Markup = field(default_factory=Markup)
    connections: list[list[str]] = field(default_factory=list)
    score_columns: list[str] = field(default_factory=list)
    scores: list[tuple[str, list[list[str]]]] = field(default_factory=list)
    contribution: list[tuple[str, list[Bar]]] = field(default_factory=list)
    curves: list[tuple[str, Markup]] = field(default_factory=list)
    maps: list[tuple[str, list[Markup]]] = field(default_factory=list)
    samples: Sequence[Sample] = ()
    cost: list[tuple[str, str]] = field(default_factory=list)


def render(run: RunFolder, asked: Asked | None, why_not: str, examples: int) -> str:
    """The page.

    Args:
        run: What the run left.
        asked: What its model says now; None if it could not be opened.
        why_not: The reason for that.
        examples: Questions of each set that were asked.
    """
    composition = run.config["model"].get("composition") or {}
    kind = str(composition.get("class_path", "")).rpartition(".")[2]
    shown = _Shown(
        title=_title(run),
        about=_about(run, kind),
        settings=yaml.safe_dump(
            {name: run.config[name] for name in ("model", "data")}, sort_keys=False
        ),
        curves=_curves(run),
        cost=_cost(run, asked),
    )
    shown.score_columns, shown.scores = _scores(run, asked)
    if asked is not None:
        shown.trained = asked.opened.module.num_trainable
        shown.picture, shown.connections = _picture(asked)
        shown.contribution = _contribution(asked)
        shown.maps = _maps(asked.probes)
        shown.samples = asked.samples
    page = files("calm_lightning.inspect").joinpath("page.html").read_text(encoding="utf-8")
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(page)
    return MARK + "\n" + template.render(run=shown, why_not=why_not, examples=examples, kind=kind)


def _title(run: RunFolder) -> str:
    if run.result.get("name"):
        return f"{run.result['name']}, seed {run.result.get('seed')}"
    return run.folder.resolve().name


def _about(run: RunFolder, kind: str) -> list[tuple[str, str]]:
    model, data = run.config["model"], run.config["data"]
    anchor, augmenting = model.get("anchor") or {}, model.get("augmenting") or []
    told = [("composition", kind), ("anchor", _source(anchor))]
    told += [("augmenting model", _source(each)) for each in augmenting]
    told.append(("task", str(data.get("class_path", "")).rpartition(".")[2]))
    told.append(("seed", str(run.config.get("seed_everything", ""))))
    for name in ("commit", "hardware"):
        if run.result.get(name):
            told.append((name, str(run.result[name])))
    return [(name, value) for name, value in told if value]


def _source(source: Any) -> str:
    if not isinstance(source, Mapping):
        return str(source)
    random = ", random weights" if source.get("weights") == "random" else ""
    return f"{source.get('path', '')}{random}"


# ---------------------------------------------------------------------- models and connections


def _picture(asked: Asked) -> tuple[Markup, list[list[str]]]:
    backbones = asked.opened.module.language_model.frozen_backbones
    if not backbones:
        return Markup(""), []
    roles = ["anchor", "augmenting"]
    if len(backbones) > 2:
        roles = ["anchor", *(f"augmenting {number}" for number in range(len(backbones) - 1))]
    anchor, *drawn = [
        DrawnModel(backbone.name, role, backbone.num_layers, backbone.width)
        for backbone, role in zip(backbones, roles, strict=False)
    ]
    lines, rows = [], []
    composed = asked.opened.composed
    for number, connection in enumerate(composed.connections if composed is not None else ()):
        looks = [probe.looks[number] for probe in asked.probes]
        share = _mean([look.share for look in looks])
        lines.append(DrawnConnection(*connection, share))
        name = connection_name(connection, len(drawn))
        entropy = _mean([look.entropy for look in looks])
        distance = _mean([look.distance for look in looks])
        rows.append([name, _number(share), _number(entropy), _number(distance)])
    return Markup(draw(anchor, drawn, lines)), rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


# ---------------------------------------------------------------------- scores


def _scores(
    run: RunFolder, asked: Asked | None
) -> tuple[list[str], list[tuple[str, list[list[str]]]]]:
    """Every score by its set, from wherever it is known: asked anew, logged, tested."""
    columns: dict[str, Scores] = {}
    if asked is not None and asked.scores:
        columns[COMPOSED] = asked.scores[COMPOSED]
        if ANCHOR in asked.scores:
            columns[ANCHOR] = asked.scores[ANCHOR]
    else:
        first, last = _logged(run, "val/", 0), _logged(run, "val/", -1)
        columns |= {"before training": first, "after training": last} if last else {}
    headlines = asked.opened.headlines() if asked is not None else {}
    tested = _logged(run, "test/", -1) or _tested_in_comparison(run, headlines)
    if tested:
        columns["whole test"] = tested
    sets: dict[str, list[list[str]]] = {}
    for name in dict.fromkeys(name for scores in columns.values() for name in scores):
        group, _, score = name.partition("/")
        row = [score, *(_number(scores.get(name)) for scores in columns.values())]
        sets.setdefault(group, []).append(row)
    return list(columns), list(sets.items())


def _logged(run: RunFolder, stage: str, place: int) -> Scores:
    return {
        tag.removeprefix(stage): points[place][1]
        for tag, points in run.scalars.items()
        if tag.startswith(stage) and "=" not in tag
    }


def _tested_in_comparison(run: RunFolder, headlines: Mapping[str, str]) -> Scores:
    """What a comparison kept of its test; the names of its main scores only the model knows."""
    details, metrics = run.result.get("details") or {}, run.result.get("metrics") or {}
    scores = {f"{name}/{headlines.get(name, 'score')}": v for name, v in metrics.items()}
    known = {**scores, **details}
    return {n: float(v) for n, v in known.items() if v is not None and "=" not in n}


def _contribution(asked: Asked) -> list[tuple[str, list[Bar]]]:
    """The score of every set, with and without what the augmenting models tell."""
    order = [COMPOSED, SHUFFLED, ZEROED]
    labels = [*order, *(n for n in asked.scores if n.startswith("without model")), ANCHOR]
    labels = [label for label in labels if label in asked.scores]
    if len(labels) < 3:
        return []
    found = []
    for name, score in asked.opened.headlines().items():
        values = {label: asked.scores[label].get(f"{name}/{score}") for label in labels}
        known = {label: value for label, value in values.items() if value is not None}
        most = max((abs(value) for value in known.values()), default=0.0)
        top = 1.0 if score.startswith(_PERCENT) else most
        bars = [
            Bar(label, _number(value), min(1.0, max(0.0, value / top)) if top else 0.0)
            for label, value in known.items()
        ]
        unit = " (lower is better)" if score.startswith("loss") else ""
        if bars:
            found.append((f"{name}: {score}{unit}", bars))
    return found


# ---------------------------------------------------------------------- pictures


def _curves(run: RunFolder) -> list[tuple[str, Markup]]:
    lines = dict(run.scalars)
    if run.result.get("curve"):
        lines["train/loss_nats"] = [(float(x), float(y)) for x, y in run.result["curve"]]
    held_out, scores = _sets(lines, "/loss_nats"), _headline_curves(lines)
    connections = _ending(lines, "connections/added_share/")
    groups: list[tuple[str, str, dict[str, Points]]] = [
        ("training loss", "nats per token", _ending(lines, "train/loss_nats", "training")),
        ("held-out loss", "nats per token", held_out),
        ("held-out scores", "score", scores),
        ("norm added by each connection", "share of the anchor's", connections),
        ("learning rate", "", _ending(lines, "train/learning_rate", "rate")),
        ("gradient norm", "", _ending(lines, "train/gradient_norm", "norm")),
    ]
    return [
        (title, _svg(curves(found, unit))) for title, unit, group in groups
        if (found := {name: points for name, points in group.items() if len(points) > 1})
    ]  # fmt: skip


def _ending(lines: Mapping[str, Points], begin: str, name: str | None = None) -> dict[str, Points]:
    """The lines whose tags begin so, by what follows, or under one name if nothing may follow."""
    if name is not None:
        return {name: lines[begin]} if begin in lines else {}
    return {tag.removeprefix(begin): v for tag, v in lines.items() if tag.startswith(begin)}


def _sets(lines: Mapping[str, Points], end: str) -> dict[str, Points]:
    found = {t: v for t, v in lines.items() if t.startswith("val/") and t.endswith(end)}
    return {tag.removeprefix("val/").removesuffix(end): v for tag, v in found.items()}


def _headline_curves(lines: Mapping[str, Points]) -> dict[str, Points]:
    """The first score of each set that is no loss."""
    found: dict[str, Points] = {}
    for tag, points in lines.items():
        stage, _, rest = tag.partition("/")
        name, _, score = rest.partition("/")
        is_score = score and "=" not in score and not score.startswith(("loss", "too_long"))
        if stage == "val" and is_score:
            found.setdefault(name, points)
    return found


def _maps(probes: Sequence[Probe]) -> list[tuple[str, list[Markup]]]:
    found = []
    for probe in probes:
        figures = [attention_map(probe, number) for number in range(len(probe.looks))]
        drawn = [_svg(figure) for figure in figures if figure is not None]
        if drawn:
            found.append((probe.text, drawn))
    return found


def _svg(figure: Any) -> Markup:
    return Markup(as_svg(figure))


# ---------------------------------------------------------------------- cost


def _cost(run: RunFolder, asked: Asked | None) -> list[tuple[str, str]]:
    result = run.result
    trained = result.get("trained_parameters") or run.last("cost/trained_parameters")
    told: list[tuple[str, str | None]] = []
    if asked is not None:
        module = asked.opened.module
        backbones = module.language_model.frozen_backbones
        frozen = sum(p.numel() for b in backbones for p in b.model.parameters())
        trained = module.num_trainable
        told.append(("frozen parameters", f"{frozen:,}"))
    told = [
        ("trained parameters", None if trained is None else f"{trained:,.0f}"),
        *told,
        ("steps", _whole(result.get("steps") or _steps(run))),
        ("seconds of training", _whole(result.get("seconds") or run.last("cost/seconds"))),
        ("examples a second", _whole(run.last("speed/examples_per_second"))),
        ("characters answered a second", _whole(result.get("characters_per_second"))),
        ("most memory, MiB", _whole(result.get("memory_mib") or run.last("memory/peak_mib"))),
        ("training, TFLOP", _number((result.get("training_flops") or 0) / 1e12 or None)),
    ]
    return [(name, value) for name, value in told if value]


def _steps(run: RunFolder) -> float | None:
    points = run.scalars.get("train/loss_nats")
    return points[-1][0] + 1 if points else None


def _whole(value: int | float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
