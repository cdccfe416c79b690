"""The anchor without its lower layers: it begins with states that are handed to it."""

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from calm_lightning.backbone import Backbone
from calm_lightning.composed.reading import with_layers
from calm_lightning.contracts import CalmError

_ROUNDING = 1e-3
"""Largest change of an answer, as a share of its largest logit, that is none."""


class UpperPart:
    """A model from the output of one of its layers on; it shares all weights.

    The decoder is run as it is: it embeds the tokens and makes masks and positions for the layers
    above. In the place of the layers below stand modules that compute nothing.

    Args:
        anchor: The whole model.
        layer: Number of the last layer that is not run.

    Attributes:
        handed: What stands in this layer's place: hooks on its output belong there.

    Raises:
        CalmError: If the model needs more from its lower layers than their output. It is tried.
    """

    def __init__(self, anchor: Backbone, layer: int) -> None:
        below, above = anchor.layers[: layer + 1], anchor.layers[layer + 1 :]
        device = anchor.model.get_input_embeddings().weight.device
        trial = torch.arange(3, device=device)[None] % anchor.config.vocab_size
        outputs: dict[nn.Module, Any] = {}
        hooks = [
            each.register_forward_hook(lambda module, _, output: outputs.update({module: output}))
            for each in below
        ]
        try:
            with torch.no_grad():
                whole = anchor.model(input_ids=trial, use_cache=False).logits
                last = outputs[below[-1]]
                states = last if isinstance(last, Tensor) else last[0]
                places = [_Place(each, outputs.pop(each)) for each in below]
                self.handed = places[-1]
                stack = nn.ModuleList([*places, *above])
                self._model = with_layers(anchor.model, anchor.layers, stack)
                change = self(states, input_ids=trial, use_cache=False).logits - whole
                same = bool(change.abs().max() <= _ROUNDING * whole.abs().max())
        except Exception as error:  # whatever a decoder raises that misses its lower layers
            raise CalmError(_cannot(anchor, f"{type(error).__name__}: {error}")) from error
        finally:
            for hook in hooks:
                hook.remove()
        if outputs or not same:
            raise CalmError(_cannot(anchor, "its answer is another one, or they are run anyway"))

    def __call__(self, states: Tensor, **inputs: Any) -> Any:
        """The model's output.

        Args:
            states: [batch, seq, width], output of the layer.
            inputs: As the whole model takes them.
        """
        self.handed.states = states
        try:
            return self._model(**inputs)
        finally:
            self.handed.states = None


class _Place(nn.Module):
    """Stands in a layer's place and answers as it would, with what it is given instead.

    Args:
        layer: It; whatever a decoder asks of a layer before calling it is asked of this one.
        output: What it returned once. Beside the states there may be attention weights, which
            nobody asked for: they are left out.
    """

    def __init__(self, layer: nn.Module, output: Any) -> None:
        super().__init__()
        object.__setattr__(self, "_layer", layer)  # not a part: its weights are not run
        self.beside = 0 if isinstance(output, Tensor) else len(output) - 1
        self.alone = isinstance(output, Tensor)
        self.states: Tensor | None = None

    @override
    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_layer"), name)

    @override
    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        given = hidden_states if self.states is None else self.states.to(hidden_states)
        return given if self.alone else (given, *[None] * self.beside)


def _cannot(anchor: Backbone, why: str) -> str:
    return (
        f"cache_states.anchor: {anchor.name!r} ({type(anchor.model).__name__}) cannot do without "
        f"its lower layers ({why}). Set cache_states.anchor to false; the augmenting models' "
        "states are then kept."
    )
