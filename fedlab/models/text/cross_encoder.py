"""A language model as a recommender: it reads what a user liked together with a candidate.

    [CLS] liked: film; film; film [SEP] candidate [SEP] -> mean of the last states -> head -> logit

The marks are those of a BERT-type model; a GPT-type model gets the two parts as its own tokenizer
joins them. `CrossEncoder` is an `nn.Module` over token ids, so `fedlab.models.from_module` trains
it in full, only at the head, or through low-rank adapters (`fedlab.models.adapted`).

Letters: B examples, T tokens, I items, n pairs.

Source: Devlin et al. 2019, "BERT: pre-training of deep bidirectional transformers for language
understanding", section 3.2 (sentence pairs).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedlab.core import Tree, require, stream
from fedlab.data import Interactions
from fedlab.models.text.backbone import PAD, Backbone, mean_state, tokens
from fedlab.models.text.encoder import Encoder


class CrossEncoder(nn.Module):
    """Token ids (B, T) of history and candidate, padded with `PAD` -> logits (B,)."""

    def __init__(self, encoder: Encoder, layers: int = 0, *, checkpoint: bool = False) -> None:
        """Put a linear head, which starts at zero, on a `Backbone`.

        layers, checkpoint: as in `Backbone`.
        """
        super().__init__()
        self.body = Backbone(encoder, layers, checkpoint=checkpoint)
        self.head = nn.Linear(self.body.width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (B,) of token ids (B, T)."""
        return self.head(mean_state(self.body(ids), ids != PAD))[:, 0]


def make_pairs(
    train: Interactions,
    texts: Sequence[str],
    encoder: Encoder,
    count: int,
    *,
    asked: Interactions | None = None,
    liked: float = 4.0,
    history: int = 4,
    length: int = 48,
    seed: int = 0,
) -> Tree:
    """Training examples of a cross-encoder: columns user (n,), ids (n, T) and target (n,).

    For each user, up to `count` ratings are drawn as candidates; the target is 1 where the
    candidate has at least `liked` stars. The history is drawn from the items that the user liked in
    train, never including the candidate. Users who liked fewer than two items are left out.

    train: the ratings that histories come from. texts (I,): a short text for each item, such as its
    title. asked: the ratings that candidates come from, such as held-out ones; train by default.
    history: items in a history, at most. length: tokens of an example, 8 to 512. Raises
    `ParameterError` for numbers out of range, and when no user is left.
    """
    require(history >= 1, "history", history, "choose 1 or more films")
    require(8 <= length <= 512, "length", length, "choose from 8 to 512 tokens")
    draw, rows = stream(seed, "pairs"), []
    asked = train if asked is None else asked
    for user in asked.users.unique().tolist():
        good = train.items[(train.users == user) & (train.values >= liked)]
        if len(good) < 2:
            continue
        mine = (asked.users == user).nonzero()[:, 0]
        for row in mine[torch.randperm(len(mine), generator=draw)[:count]].tolist():
            others = good[good != asked.items[row]]
            shown = others[torch.randperm(len(others), generator=draw)[:history]].tolist()
            rows.append(
                (
                    user,
                    "liked: " + "; ".join(texts[i] for i in shown),
                    texts[int(asked.items[row])],
                    float(asked.values[row] >= liked),
                )
            )
    require(len(rows) > 0, "liked", liked, "nobody liked two films; choose fewer stars")
    users, before, after, targets = (list(column) for column in zip(*rows, strict=True))
    return {
        "user": torch.tensor(users),
        "ids": tokens(encoder, before, length, after),
        "target": torch.tensor(targets),
    }
