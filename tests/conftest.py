"""Every test starts alike: one thread, one seed, no network, no command line of pytest's."""

import logging
import os
import random
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Whatever our modules are the first to import would be compiled anew, by jaxtyping's import hook.
import lightning.pytorch.cli  # noqa: F401
import pytest
import torch
import torch.distributed.fsdp
from transformers import AutoTokenizer, GenerationMixin, LlamaForCausalLM  # noqa: F401

torch.set_num_threads(1)

collect_ignore = ["example_plugin"]  # another distribution: test_outside_plugin.py installs it


@pytest.fixture(autouse=True)
def _same_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["calm"])
    random.seed(0)
    torch.manual_seed(0)
    for name in ("lightning", "lightning.fabric", "lightning.pytorch"):
        # Commands that run in this process silence them, and what others check is said by them.
        logging.getLogger(name).setLevel(logging.INFO)
