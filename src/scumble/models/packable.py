"""Which shortcuts a model allows, found by trying them on a few tokens and comparing with its own forward pass.

Examples can be laid end to end where nothing but attention mixes tokens, and attention goes through transformers'
interface: a convolution or a recurrent state would carry one example into the next. Logits can be made in chunks
where they are the output layer's, capped as the configuration says: some models scale them besides. Neither is
believed of a family by its name: both are tried once for each model.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from scumble.models.attention import packed
from scumble.models.lean import only_rows

# Two examples that part after three tokens, then one of their own: laid out as 3 + 4 + 6 + 5 tokens.
_SEGMENTS = ((0, 3, 13, 0, -1), (3, 7, 7, 3, 0), (7, 13, 13, 3, 0), (13, 18, 18, 0, -1))
_POSITIONS = [0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 7, 8, 0, 1, 2, 3, 4]
_ALONE = (
    ([0, 1, 2, 3, 4, 5, 6], [3, 4, 5, 6]),
    ([0, 1, 2, 7, 8, 9, 10, 11, 12], [7, 8, 9, 10, 11, 12]),
    ([13, 14, 15, 16, 17], [13, 14, 15, 16, 17]),
)
# Of the largest logit: a token that sees another example moves logits by much more, rounding by much less.
_NEAR = {torch.float64: 1e-4, torch.float32: 1e-3}
_NEAR_HALF = 5e-2


class Ways(NamedTuple):
    """What a model allows.

    Attributes:
        packed: examples may be laid end to end.
        head: logits are the output layer's, capped as the configuration says.
        reason: why `packed` is not allowed, in a few words; empty where it is.
    """

    packed: bool
    head: bool
    reason: str


_known: WeakKeyDictionary[Any, Ways] = WeakKeyDictionary()


def ways_of(model: Any) -> Ways:
    """What a causal model of transformers allows; tried at the first call."""
    if model not in _known:
        _known[model] = _tried(model)
    return _known[model]


def capped(logits: Tensor, model: Any) -> Tensor:
    """Logits as the configuration's `final_logit_softcapping` has them (Gemma 2)."""
    cap = softcap_of(model)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def softcap_of(model: Any) -> float | None:
    """The configuration's `final_logit_softcapping`."""
    return getattr(model.config.get_text_config(), "final_logit_softcapping", None)


def hidden_of(
    model: Any, ids: Tensor, positions: Tensor, segments: Any, rows: Tensor | None = None
) -> Tensor:
    """The last hidden state of examples laid end to end, (1, T, h); right at `rows` only, where they are given.

    For a backward pass, call it within `packed(model, segments)`, so that what is computed again sees the same.
    """
    with packed(model, segments), only_rows(rows):
        return model.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state


@torch.no_grad()
def _tried(model: Any) -> Ways:
    device = next(model.parameters()).device
    size = model.get_input_embeddings().weight.shape[0]
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, size, (len(_POSITIONS),), generator=draw).to(device)
    try:
        hidden = hidden_of(model, ids[None], torch.tensor([_POSITIONS], device=device), _SEGMENTS)[0]
    except (ValueError, TypeError, RuntimeError, AttributeError, KeyError, AssertionError) as error:
        return Ways(False, False, f"its attention cannot be replaced ({type(error).__name__})")
    head = model.get_output_embeddings()
    alone = [
        (own, model(input_ids=ids[path][None], use_cache=False).logits[0, -len(own) :])
        for path, own in _ALONE
    ]
    if all(_near(capped(head(hidden[own]), model), wanted) for own, wanted in alone):
        return Ways(True, True, "")
    # was it the layout, or what comes after the output layer?
    with packed(model, _SEGMENTS):
        given = {"input_ids": ids[None], "position_ids": torch.tensor([_POSITIONS], device=device)}
        rows = torch.arange(len(_POSITIONS), device=device)
        mine = model(**given, use_cache=False, logits_to_keep=rows).logits[0]
    # of every path: the first example of a row has nobody before it to see
    if len(mine) == len(rows) and all(_near(mine[own], wanted) for own, wanted in alone):
        return Ways(True, False, "")
    return Ways(False, False, "tokens are mixed by more than attention")


def _near(found: Tensor, wanted: Tensor) -> bool:
    limit = _NEAR.get(wanted.dtype, _NEAR_HALF)
    return bool((found - wanted).abs().max() <= limit * wanted.abs().max())
