"""`Trunk`: the layers below the first that anybody adapts, computed once for all who see the same tokens.

    examples --> layers 0 .. depth - 1 --> hidden --+--> layers depth .. with adapter 1 --> loss
                                                    +--> layers depth .. with adapter 2 --> loss

Nothing below is trained, so nothing there is kept for a backward pass. What is computed is what each would compute
alone, from the same tokens in the same layout. Whether a model lets itself be cut so is tried on a few tokens, as
`packable` does it. Knows layers and packed tokens, and nothing of adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from scumble.models.checkpointing import layers_of
from scumble.models.lean import replaced
from scumble.models.packable import hidden_of, ways_of

_TOKENS = 5  # that a cut is tried on

_known: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


class Trunk:
    """The first layers of a model.

    Args:
        model: a causal model of transformers that examples may be laid end to end for.
        depth: how many layers, at least one and not all.
    """

    def __init__(self, model: Any, depth: int) -> None:
        self.model, self.depth = model, depth

    @torch.no_grad()
    def hidden(self, ids: Tensor, positions: Tensor, segments: Any) -> Tensor:
        """What comes out of the first layers, (1, T, h); arguments as `hidden_of` takes them."""
        layers = layers_of(self.model)
        found: list[Tensor] = []

        def seen(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            found.append(hidden)
            return hidden

        with ExitStack() as stack:
            stack.enter_context(replaced(layers[self.depth], seen))
            for layer in layers[self.depth + 1 :]:
                stack.enter_context(replaced(layer, _through))
            hidden_of(self.model, ids, positions, segments)
        return found[0]

    @contextmanager
    def beginning(self, hidden: Tensor) -> Iterator[None]:
        """In the body of a `with`, a forward pass of the same tokens begins with what `hidden` gave."""
        layers = layers_of(self.model)
        with ExitStack() as stack:
            for layer in layers[: self.depth]:
                stack.enter_context(replaced(layer, _through))
            first = layers[self.depth]
            stack.enter_context(replaced(first, partial(_from, first.forward, hidden)))
            yield


def can_be_cut(model: Any) -> bool:
    """Whether a model's layers take one hidden state and give one, and nothing else passes between them."""
    if model not in _known:
        _known[model] = _tried(model)
    return _known[model]


@torch.no_grad()
def _tried(model: Any) -> bool:
    count = len(layers_of(model))
    if count < 2 or not ways_of(model).packed:
        return False
    device = next(model.parameters()).device
    size = model.get_input_embeddings().weight.shape[0]
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, size, (1, _TOKENS), generator=draw).to(device)
    positions = torch.arange(_TOKENS, device=device)[None]
    segments = ((0, _TOKENS, _TOKENS, 0, -1),)
    trunk = Trunk(model, count // 2)
    try:
        wanted = hidden_of(model, ids, positions, segments)
        with trunk.beginning(trunk.hidden(ids, positions, segments)):
            found = hidden_of(model, ids, positions, segments)
    except (ValueError, TypeError, RuntimeError, AttributeError, KeyError, IndexError):
        return False
    # the same operations on the same numbers: nothing may differ
    return bool(torch.equal(found, wanted))


def _through(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden


def _from(forward: Callable[..., Any], begun: Tensor, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    return forward(begun, *args, **kwargs)
