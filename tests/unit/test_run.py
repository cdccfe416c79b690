"""One run from a config: what the parser says, and which folder a run gets."""

import logging
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from jsonargparse import Namespace

from calm_lightning import run
from calm_lightning.callbacks import NothingFrozenMoved, ProgressBar, SaveModel
from calm_lightning.contracts import CalmError

SMOKE = Path(__file__).parents[2] / "configs" / "smoke" / "key_value.yaml"


def test_a_message_is_told_without_the_names_of_pythons_types() -> None:
    message = (
        "Does not validate against any of the Union subtypes\n"
        "Subtypes: [<class 'calm_lightning.contracts.task.Task'>, <class 'NoneType'>]\n"
        "Errors:\n"
        "  - Expected a <class 'int'>. Got typing.Literal['a']\n"
        "  - Expected a <class 'NoneType'>\n"
        "Given value type: <class 'str'>\n"
        "Given value: x"
    )
    assert run._plain(message) == (
        "Does not validate against any of the Union subtypes\n"
        "Errors:\n"
        "  - Expected a int. Got one of ['a']\n"
        "Given value: x"
    )


def test_a_hint_names_what_was_meant_and_what_there_is() -> None:
    hint = run._hint("Expected a dot import path string: CrossAtention")
    assert "Did you mean CrossAttention?" in hint
    assert "TextFile" in hint
    nothing_near = run._hint("Expected a dot import path string: Qwertyuiop")
    assert "Did you mean" not in nothing_near
    assert "Installed: " in nothing_near
    assert run._hint("Option 'cross_attention' is not accepted") == ""


def test_a_run_is_called_after_its_last_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = Namespace(config=["base.yaml", "configs/mine.yaml"])
    assert run._fresh_folder(config) == Path("runs/mine")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert run._fresh_folder(config) == Path("runs/mine-2")
    (tmp_path / "runs" / "mine-2").mkdir()
    assert run._fresh_folder(config) == Path("runs/mine-3")
    assert run._fresh_folder(Namespace(config=None)) == Path("runs/run")


def test_a_used_folder_is_refused_and_an_empty_one_is_not(tmp_path: Path) -> None:
    run._refuse_used(tmp_path / "none", None)
    run._refuse_used(tmp_path, None)
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.write_text("")
    with pytest.raises(CalmError, match=r"did not finish.*--ckpt_path .*last\.ckpt"):
        run._refuse_used(tmp_path, None)
    run._refuse_used(tmp_path, str(last))
    (tmp_path / "model").mkdir()
    with pytest.raises(CalmError, match="already holds a trained model"):
        run._refuse_used(tmp_path, str(last))


def test_a_checkpoint_that_could_run_code_is_refused(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "harm",))

    file = tmp_path / "bad.ckpt"
    torch.save({"state_dict": {}, "more": Attack()}, file)
    with pytest.raises(CalmError, match="damaged, or is no checkpoint"):
        run._check_checkpoint(str(file))
    assert not (tmp_path / "harm").exists()
    torch.save({"weights": {}}, file)
    with pytest.raises(CalmError, match="state_dict"):
        run._check_checkpoint(str(file))
    with pytest.raises(CalmError, match="There is no checkpoint"):
        run._check_checkpoint(str(tmp_path / "none.ckpt"))
    torch.save({"state_dict": {"w": torch.zeros(1)}}, file)
    run._check_checkpoint(str(file))


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> run.CalmCLI:
    monkeypatch.chdir(SMOKE.parents[2])
    quiet = ["--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    return run.CalmCLI(args=["-c", str(SMOKE), *quiet], run=False)


def test_tasks_share_out_their_examples_themselves(cli: run.CalmCLI) -> None:
    """Lightning would share out each process's share once more."""
    assert cli.config["trainer"]["use_distributed_sampler"] is False


def test_every_run_is_guarded_and_only_a_fit_saves(cli: run.CalmCLI) -> None:
    callbacks = {type(callback) for callback in cli.trainer.callbacks}  # type: ignore[attr-defined]
    assert NothingFrozenMoved in callbacks
    assert SaveModel not in callbacks


def test_a_fault_in_a_class_is_told_as_it_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """jsonargparse wraps what a constructor raises into a page of its own."""
    monkeypatch.chdir(SMOKE.parents[2])
    with pytest.raises(CalmError, match=r"^batch_size must be at least 1: got 0\.$"):
        run.CalmCLI(args=["-c", str(SMOKE), "--data.batch_size=0"], run=False)


def test_other_packages_are_quiet_and_our_warnings_are_not() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.quiet_libraries()
        warnings.warn("The 'x' does not have many workers which may be", UserWarning, stacklevel=1)
        warnings.warn("something to know", UserWarning, stacklevel=1)
    assert [str(w.message) for w in caught] == ["something to know"]
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    tip, message = (
        logger.makeRecord("x", logging.INFO, "f", 1, text, (), None)
        for text in ("Tip: buy this", "GPU is on fire")
    )
    assert not logger.filter(tip)
    assert logger.filter(message)


@pytest.mark.parametrize(("epochs", "said"), [(-1, "Epoch 3"), (7, "Epoch 3/6")])
def test_the_progress_bar_names_no_epochs_that_there_are_not(epochs: int, said: str) -> None:
    bar = ProgressBar()
    bar._trainer = SimpleNamespace(max_epochs=epochs)  # type: ignore[assignment]
    assert bar._get_train_description(3).strip() == said
