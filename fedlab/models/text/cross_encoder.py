"""A language model as a recommender.

It reads what a user liked and a candidate, and says whether that is liked too.

    [CLS] liked: film; film; film [SEP] candidate [SEP]  ->  mean of the last states -> head -> logit

as a BERT-type model marks the parts; a GPT-type one gets them in its own way

As an `nn.Module` over token ids it trains through `fedlab.modules`: in full, the head alone, or by
adapters (`fedlab.lora`).

Letters: B examples, T tokens, D dimensions of the encoder, n pairs. Source: Devlin et al. 2019,
"BERT: pre-training of deep bidirectional transformers for language understanding", section 3.2
(sentence pairs).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedlab.core import Tree, require, stream
from fedlab.data import Ratings
from fedlab.models.text.backbone import PAD, Backbone, mean_state, tokens
from fedlab.models.text.encoder import Encoder


class CrossEncoder(nn.Module):
    """Token ids (B, T), `PAD` where there is none -> logits (B,)."""

    def __init__(self, encoder: Encoder, layers: int = 0, *, checkpoint: bool = False) -> None:
        """layers, checkpoint: as `Backbone` has them."""
        super().__init__()
        self.body = Backbone(encoder, layers, checkpoint=checkpoint)
        self.head = nn.Linear(self.body.width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B,)."""
        return self.head(mean_state(self.body(ids), ids != PAD))[:, 0]


def make_pairs(train: Ratings, texts: Sequence[str], encoder: Encoder, count: int, *,
               asked: Ratings | None = None, liked: float = 4.0, history: int = 4, length: int = 48,
               seed: int = 0) -> Tree:
    """Columns user (n,), ids (n, T) and target (n,).

    `count` ratings a user, 1 where a film has `liked` stars.

    A user's history is films drawn from those it liked in train, the candidate never among them;
    users who liked fewer than two are left out. texts (I,): short ones, say titles. asked: the
    ratings that candidates come from, say held-out ones; train itself without.
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
            rows.append((user, "liked: " + "; ".join(texts[i] for i in shown),
                         texts[int(asked.items[row])], float(asked.values[row] >= liked)))
    require(len(rows) > 0, "liked", liked, "nobody liked two films; choose fewer stars")
    users, before, after, targets = (list(column) for column in zip(*rows, strict=True))
    return {"user": torch.tensor(users), "ids": tokens(encoder, before, length, after),
            "target": torch.tensor(targets)}
