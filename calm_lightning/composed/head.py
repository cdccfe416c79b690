"""The loss over a frozen vocabulary head, without ever holding all of its logits."""

from typing import Any, TypeGuard, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear
from typing_extensions import override

from calm_lightning.quantization import is_quantised

_LOGITS_AT_A_TIME = {"cpu": 2**20}  # small enough to stay in the processor's cache
_LOGITS_AT_A_TIME_ELSEWHERE = 2**27


def can_be_chunked(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether `mean_loss` takes this head: a plain linear layer, frozen and not quantised."""
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        return False  # `fully_shard` makes a subclass that computes alike
    return not (head.weight.requires_grad or is_quantised(head.weight))


def mean_loss(
    hidden: Float[Tensor, "targets width"], head: nn.Linear, targets: Int[Tensor, " targets"]
) -> Float[Tensor, ""]:
    """Cross-entropy in nats, the mean over targets.

    The weights of the head want no gradient, so that of the hidden states is made on the way
    forward, from a few rows of logits at a time, and is all that is kept. (torch's own
    `linear_cross_entropy` works alike too; measured for a frozen head on a processor, this
    took four fifths of its time.)

    Args:
        hidden: What the head is given.
        head: See `can_be_chunked`.
        targets: A token for each.
    """
    weights = head.weight, head.bias
    return cast(Tensor, _MeanLoss.apply(hidden, *weights, targets, torch.is_grad_enabled()))


class _MeanLoss(torch.autograd.Function):
    @staticmethod
    @override
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        wants_gradient: bool,
    ) -> Tensor:
        wants_gradient &= ctx.needs_input_grad[0]
        limit = _LOGITS_AT_A_TIME.get(hidden.device.type, _LOGITS_AT_A_TIME_ELSEWHERE)
        rows = max(1, limit // len(weight))
        precise = torch.promote_types(weight.dtype, torch.float32)
        nats = torch.zeros((), dtype=precise, device=hidden.device)
        gradient = torch.empty_like(hidden) if wants_gradient else None
        for start in range(0, len(hidden), rows):
            here = slice(start, start + rows)
            wanted = targets[here, None]
            logits = linear(hidden[here], weight, bias).to(precise)
            total = logits.logsumexp(-1, keepdim=True)
            nats += (total - logits.gather(-1, wanted)).sum()
            if gradient is not None:
                share = logits.sub_(total).exp_()
                share.scatter_add_(-1, wanted, share.new_full(wanted.shape, -1.0))
                gradient[here] = share.to(weight.dtype) @ weight
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.count = len(hidden)
        return nats / ctx.count

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Any) -> Any:
        # Divided here and not before: in half precision the loss may have been scaled up first.
        (gradient,) = ctx.saved_tensors
        return gradient * (gradients[0] / ctx.count).to(gradient.dtype), None, None, None, None
