import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GenerationConfig

import calm_lightning as calm
from calm_lightning.backbone import BackboneSource
from calm_lightning.checkpoint import load_trained, start_from
from calm_lightning.composed import ComposedModel
from calm_lightning.contracts import CalmError
from calm_lightning.language_model import PlainModel
from calm_lightning.testing import tiny_backbone, tiny_tokenizer
from calm_lightning.testing.case import disturb, read, tokens
from calm_plugins.compositions.cross_attention import CrossAttention

IDS = tokens(2, 6)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two backbones and, in `saved`, a composition of them."""
    home = tmp_path_factory.mktemp("home")
    for seed, name in enumerate(("anchor", "augmenting")):
        tiny_backbone(width=16, layers=2, vocab=37, seed=seed).model.save_pretrained(home / name)
        tiny_tokenizer(37).save_pretrained(home / name)
    model = calm.compose(
        home / "anchor", [home / "augmenting"], CrossAttention(connections=[(1, 0), (0, 1)])
    )
    disturb(model, 0.2)
    model.save_pretrained(home / "saved")
    torch.save(read(model.eval(), IDS), home / "expected.pt")
    return home


@pytest.fixture
def saved(home: Path, tmp_path: Path) -> Path:
    """The saved composition, to be spoilt."""
    return Path(shutil.copytree(home / "saved", tmp_path / "saved"))


def rewrite(saved: Path, **changes: object) -> None:
    file = saved / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# ---------------------------------------------------------------- what is in the folder


def test_a_folder_holds_weights_settings_hashes_and_the_tokenizer(home: Path) -> None:
    weights = load_file(home / "saved" / "composition.safetensors")
    assert {name.split(".")[0] for name in weights} == {"bridges"}
    description = json.loads((home / "saved" / "config.json").read_text())
    assert description["composition"]["class_path"].endswith(".CrossAttention")
    assert description["composition"]["init_args"]["connections"] == [[1, 0], [0, 1]]
    anchor, augmenting = description["backbones"]
    assert (anchor["role"], augmenting["role"]) == ("anchor", "augmenting")
    assert anchor["name"] == str(home / "anchor")
    assert anchor["fingerprint"] == BackboneSource(str(home / "anchor")).load().fingerprint()
    assert (home / "saved" / "tokenizer.json").is_file()
    assert (home / "saved" / "generation_config.json").is_file()


def test_loaded_it_is_frozen_as_before_and_gives_the_same_logits(home: Path) -> None:
    for model in (calm.load(home / "saved"), ComposedModel.from_pretrained(home / "saved")):
        assert torch.equal(read(model, IDS), torch.load(home / "expected.pt"))
        assert not model.training
        assert {n.split(".")[0] for n, _ in model.trainable_parameters()} == {"bridges"}
        model.train()
        assert not any(b.model.training for b in model.frozen_backbones)
        assert model.composition.connections == [(1, 0), (0, 1)]


def test_backbones_are_looked_for_beside_the_composition(home: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(home, tmp_path / "moved"))
    file = moved / "saved" / "config.json"
    file.write_text(file.read_text().replace(str(home), ".."))
    assert torch.equal(read(calm.load(moved / "saved"), IDS), torch.load(home / "expected.pt"))


def test_backbones_may_be_given_in_another_dtype(home: Path) -> None:
    model = calm.load(home / "saved", dtype="bfloat16")
    assert next(model.anchor.parameters()).dtype == torch.bfloat16


def test_a_random_augmenting_model_is_made_again_from_its_seed(home: Path, tmp_path: Path) -> None:
    source = BackboneSource(str(home / "augmenting"), weights="random", seed=7)
    model = calm.compose(home / "anchor", [source], CrossAttention())
    disturb(model, 0.2)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(read(calm.load(tmp_path / "saved"), IDS), read(model.eval(), IDS))


def test_the_dtype_is_that_of_the_saved_model_unless_another_is_wanted(
    home: Path, tmp_path: Path
) -> None:
    model = calm.compose(home / "anchor", [home / "augmenting"], CrossAttention(), dtype="bfloat16")
    model.save_pretrained(tmp_path)
    assert calm.load(tmp_path).anchor.dtype == torch.bfloat16
    assert calm.load(tmp_path, dtype="float32").anchor.dtype == torch.float32


def test_generation_settings_are_the_anchors_after_loading_too(home: Path, tmp_path: Path) -> None:
    anchor, augmenting = (BackboneSource(str(home / n)).load() for n in ("anchor", "augmenting"))
    shutil.copytree(home / "anchor", tmp_path / "anchor")
    anchor.model.generation_config.update(max_new_tokens=9, eos_token_id=[1, 5])
    anchor.model.save_pretrained(tmp_path / "anchor")
    calm.compose(tmp_path / "anchor", [augmenting], CrossAttention()).save_pretrained(
        tmp_path / "saved"
    )
    settings = calm.load(tmp_path / "saved", augmenting=[augmenting]).generation_config
    assert (settings.max_new_tokens, settings.eos_token_id) == (9, [1, 5])
    assert GenerationConfig.from_pretrained(tmp_path / "saved").eos_token_id == [1, 5]


# ---------------------------------------------------------------- with its backbones


@pytest.fixture(scope="module")
def full(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved composition with its backbones, far from where they came from."""
    place = tmp_path_factory.mktemp("elsewhere")
    copy = Path(shutil.copytree(home, place / "home"))
    file = copy / "saved" / "config.json"
    file.write_text(file.read_text().replace(str(home), str(copy)))
    calm.load(copy / "saved").save_pretrained(place / "first", full=True)
    shutil.rmtree(copy)
    return (place / "first").rename(place / "moved")


def test_a_full_folder_needs_no_other_file(home: Path, full: Path) -> None:
    assert torch.equal(read(calm.load(full), IDS), torch.load(home / "expected.pt"))
    assert {p.parent.name for p in full.rglob("model.safetensors")} == {"anchor", "augmenting_0"}
    (answer,) = calm.load(full).generate_text(["ab"], max_new_tokens=3)  # tokenizers too
    assert answer


def test_what_is_in_the_folder_goes_before_what_has_its_name_outside(
    home: Path, full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home / "augmenting", "anchor")  # in the current folder, and another model
    assert torch.equal(read(calm.load(full), IDS), torch.load(home / "expected.pt"))


def test_a_full_folder_can_be_saved_over_itself(home: Path, full: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(full, tmp_path / "again"))
    calm.load(folder).save_pretrained(folder, full=True)
    assert torch.equal(read(calm.load(folder), IDS), torch.load(home / "expected.pt"))


def test_a_random_backbone_is_written_as_it_was_drawn(home: Path, tmp_path: Path) -> None:
    source = BackboneSource(str(home / "augmenting"), weights="random", seed=7)
    model = calm.compose(home / "anchor", [source], CrossAttention())
    model.save_pretrained(tmp_path, full=True)
    again = calm.load(tmp_path)
    assert again.backbones[1].fingerprint() == model.backbones[1].fingerprint()


def test_an_adapted_anchor_is_written_without_its_adapters(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="LoRA needs peft, an extra")
    model = calm.compose(home / "anchor", [], calm.LoRA(rank=2))
    disturb(model, 0.2)
    model.save_pretrained(tmp_path, full=True)
    inside = BackboneSource(str(tmp_path / "anchor")).load()
    assert inside.fingerprint() == BackboneSource(str(home / "anchor")).load().fingerprint()
    assert torch.equal(read(calm.load(tmp_path), IDS), read(model, IDS))


@pytest.mark.parametrize("way", ["../anchor", "anchor/../../anchor", "ABSOLUTE", "LINK"])
def test_a_reference_into_the_folder_cannot_lead_out_of_it(
    home: Path, full: Path, tmp_path: Path, way: str
) -> None:
    folder = Path(shutil.copytree(full, tmp_path / "full"))
    shutil.copytree(home / "anchor", tmp_path / "anchor")
    (folder / "LINK").symlink_to(tmp_path / "anchor")
    file = folder / "config.json"
    description = json.loads(file.read_text())
    description["backbones"][0]["folder"] = way.replace("ABSOLUTE", str(tmp_path / "anchor"))
    file.write_text(json.dumps(description))
    with pytest.raises(CalmError, match=r"should be inside this folder.* leads out of it"):
        calm.load(folder)


def test_a_backbone_in_the_folder_that_was_changed_is_refused(full: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(full, tmp_path / "full"))
    file = folder / "anchor" / "model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1}, file, metadata={"format": "pt"})
    with pytest.raises(CalmError, match="the anchor model"):
        calm.load(folder)


# ---------------------------------------------------------------- what is refused


def test_unknown_options_are_refused_and_nothing_is_written(home: Path, tmp_path: Path) -> None:
    model = calm.load(home / "saved")
    for saved in (model, PlainModel(model.backbones[0], lambda _: None)):
        with pytest.raises(CalmError, match=r"no options \['safe_serialization'\].*full=True"):
            saved.save_pretrained(tmp_path / "new", safe_serialization=True)
    assert not (tmp_path / "new").exists()
    with pytest.raises(CalmError, match=r"load has no options \['revison'\]"):
        calm.load(home / "saved", revison="main")


def test_other_backbones_are_refused_with_names_and_hashes(home: Path) -> None:
    anchor, augmenting = str(home / "anchor"), str(home / "augmenting")
    hashes = [BackboneSource(path).load().fingerprint()[:16] for path in (anchor, augmenting)]
    with pytest.raises(CalmError) as refusal:
        calm.load(home / "saved", augmenting=[anchor])
    for part in (anchor, augmenting, *hashes, "the augmenting model"):
        assert part in str(refusal.value)
    with pytest.raises(CalmError, match="the anchor model"):
        calm.load(home / "saved", anchor=augmenting)


def test_another_number_of_augmenting_models_is_refused(home: Path) -> None:
    with pytest.raises(CalmError, match="trained with 1 augmenting models; 2 are given"):
        calm.load(home / "saved", augmenting=[home / "augmenting"] * 2)


def test_a_lost_backbone_is_named(home: Path, saved: Path) -> None:
    file = saved / "config.json"
    file.write_text(file.read_text().replace(str(home / "augmenting"), "/gone/away"))
    with pytest.raises(CalmError, match="'/gone/away' does not exist"):
        calm.load(saved)


def test_folders_that_hold_no_composition_are_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(CalmError, match=r"no folder .*nowhere"):
        calm.load(tmp_path / "nowhere")
    with pytest.raises(CalmError, match=r"has no config.json"):
        calm.load(tmp_path)
    with pytest.raises(CalmError, match="the folder of a plain model"):
        calm.load(home / "anchor")


def test_an_unknown_composition_gets_a_suggestion(saved: Path) -> None:
    rewrite(saved, composition={"class_path": "calm_plugins.CrossAtention", "init_args": {}})
    with pytest.raises(CalmError, match=r"CrossAtention'. Did you mean CrossAttention"):
        calm.load(saved)


def test_settings_of_another_version_are_refused(saved: Path) -> None:
    settings = {"class_path": "CrossAttention", "init_args": {"a_setting_of_tomorrow": 1}}
    rewrite(saved, composition=settings)
    with pytest.raises(CalmError, match=r"config.json: .*another version.*a_setting_of_tomorrow"):
        calm.load(saved)


def test_damaged_and_missing_weights_are_refused(saved: Path) -> None:
    file = saved / "composition.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CalmError, match=r"composition.safetensors is damaged"):
        calm.load(saved)
    file.unlink()
    with pytest.raises(CalmError, match=r"holds no composition.safetensors"):
        calm.load(saved)


def test_a_pickle_in_place_of_weights_is_never_run(saved: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (open, (str(saved / "it_ran"), "w"))

    (saved / "composition.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CalmError, match="not in safetensors format"):
        calm.load(saved)
    assert not (saved / "it_ran").exists()


def test_weights_that_do_not_fit_are_refused(saved: Path) -> None:
    file = saved / "composition.safetensors"
    weights = load_file(file)
    del weights["bridges.0.out.weight"]
    save_file(weights | {"bridges.9.out.weight": torch.zeros(2)}, file)
    with pytest.raises(CalmError, match=r"1 trained weights are missing.*1 are unknown"):
        calm.load(saved)


def test_a_weight_of_another_shape_is_refused() -> None:
    with pytest.raises(CalmError, match=r"weight has shape \(2, 3\), the model expects \(3, 2\)"):
        load_trained(nn.Linear(2, 3, bias=False), {"weight": torch.zeros(2, 3)}, "a file")


# ---------------------------------------------------------------- weights that mean something else


def another(home: Path, **settings: object) -> ComposedModel:
    settings = {"connections": [(1, 0), (0, 1)], **settings}
    composition = CrossAttention(**settings)  # type: ignore[arg-type]
    model = calm.compose(home / "anchor", [home / "augmenting"], composition)
    assert isinstance(model, ComposedModel)
    return model


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"connections": [(0, 1), (1, 0)]}, "other connections"),
        ({"positions": "none"}, "positions: 'rotary' there, 'none' here"),
        ({"relative": True}, "relative: False there, True here"),
        ({"num_heads": 1}, "num_heads: None there, 1 here"),
    ],
)
def test_weights_of_the_same_shape_that_mean_something_else_are_refused(
    home: Path, settings: dict[str, object], wanted: str
) -> None:
    with pytest.raises(CalmError, match=wanted):
        start_from(another(home, **settings), home / "saved")


def test_what_is_of_training_alone_may_change(home: Path) -> None:
    model = another(home, state_noise=0.7)
    start_from(model, home / "saved")
    assert torch.equal(read(model.eval(), IDS), torch.load(home / "expected.pt"))


# ---------------------------------------------------------------- what must not be lost


def test_a_composition_is_not_written_over_a_plain_model(home: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(home / "anchor", tmp_path / "anchor"))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(CalmError, match="holds another model"):
        another(home).save_pretrained(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_backbone_is_not_written_over_a_strangers_folder(home: Path, tmp_path: Path) -> None:
    stranger = Path(shutil.copytree(home / "augmenting", tmp_path / "mine" / "anchor"))
    before = {file.name: file.read_bytes() for file in stranger.iterdir()}
    with pytest.raises(CalmError, match="would write a backbone over"):
        another(home).save_pretrained(tmp_path / "mine", full=True)
    assert {file.name: file.read_bytes() for file in stranger.iterdir()} == before
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["anchor"]


def test_a_model_in_memory_can_be_saved_whole_twice(tmp_path: Path) -> None:
    backbones = [tiny_backbone(layers=2, seed=seed, tokenizer=tiny_tokenizer()) for seed in (0, 1)]
    model = calm.compose(backbones[0], backbones[1:], CrossAttention())
    for _ in range(2):
        model.save_pretrained(tmp_path / "whole", full=True)
    again = calm.load(tmp_path / "whole")
    assert torch.equal(read(again, IDS), read(model, IDS))


@pytest.mark.parametrize("lost", ["role", "name", "revision", "fingerprint"])
def test_a_description_that_lacks_something_is_refused(saved: Path, lost: str) -> None:
    description = json.loads((saved / "config.json").read_text())
    del description["backbones"][1][lost]
    rewrite(saved, backbones=description["backbones"])
    with pytest.raises(CalmError, match="does not describe a saved composition"):
        calm.load(saved)


def test_the_folder_of_a_run_names_its_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(CalmError, match=f"is a run; its model is {tmp_path / 'model'}"):
        calm.load(tmp_path)
