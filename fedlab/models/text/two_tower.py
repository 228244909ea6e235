"""Two towers over texts: one makes a vector of an item's text, the other of a user's items.

    z_i, b_i = head(states of the text of i)
    u = A (mean of the frozen text vectors of the user's items, without i)
    logit = GAIN z_i . u + b_i + prior of the user

No parameter belongs to an item or a user, so shops with different item numbers can train the model
together. Layers that are not trained run once, and their states are kept. A step reads each text
once, for K users at a time.

Letters: I items, U users, B examples, K users asked about an item, T tokens, E dimensions of a
hidden state, D dimensions of z and u.

Sources: Huang et al. 2013, "Learning deep structured semantic models for web search" (two towers);
Kim 2014, "Convolutional neural networks for sentence classification", section 2; Yang et al. 2016,
"Hierarchical attention networks", section 2.2 (attention over tokens).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedlab.core import require
from fedlab.data import Interactions
from fedlab.models.factored import Factored, factored
from fedlab.models.text.backbone import PAD, Backbone, depth, mean_state, tokens
from fedlab.models.text.encoder import Encoder

GAIN = 12.0  # scale of the product of two vectors whose lengths are about 1 or less


class TextEncoder(nn.Module):
    """Items (B,) -> hidden states (B, T, E) of their texts, and where there are tokens (B, T).

    The layers below those that are trained run once, when the encoder is built.
    """

    kept: Tensor
    there: Tensor

    def __init__(
        self,
        encoder: Encoder,
        texts: Sequence[str],
        *,
        top: int | None = None,
        length: int = 24,
        checkpoint: bool = False,
    ) -> None:
        """Tokenise the texts and run the layers that are not trained.

        texts (I,): the text of each item. top: how many of the last layers to train; with 0 nothing
        here is trained, with None everything is, embeddings included. length: tokens that are read
        of a text, at most. checkpoint: as in `Backbone`. Raises `ParameterError` for a `top` that
        the model does not have, or when the model cannot be cut there.
        """
        super().__init__()
        ids, count = tokens(encoder, texts, length), depth(encoder)
        require(
            top is None or 0 <= top < count,
            "top",
            top,
            f"choose from 0 to {count - 1} layers, or None for all",
        )
        self.width = int(encoder.model.config.hidden_size)
        below = 0 if top is None else count - top
        self.body = (
            None if top == 0 else Backbone(encoder, below=below, checkpoint=checkpoint).cpu()
        )
        self.register_buffer(
            "kept", ids if top is None else _frozen_states(Backbone(encoder, below), ids)
        )
        self.register_buffer("there", ids != PAD)
        if self.body is not None and top is not None:
            _check_cut(self, encoder, ids, top)

    def forward(self, item: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, T, E) and token mask (B, T) of item (B,)."""
        given, there = self.kept[item], self.there[item]
        return (given if self.body is None else self.body(given, there)), there


def _frozen_states(body: Backbone, ids: Tensor) -> Tensor:
    """States (I, T, E) of all texts, on the CPU, computed on the device of the body."""
    device = next(body.parameters()).device
    with torch.no_grad():
        return torch.cat([body(here.to(device)).cpu() for here in ids.split(64)])


def _check_cut(texts: TextEncoder, encoder: Encoder, ids: Tensor, top: int) -> None:
    """Raise `ParameterError` when a model cut between two layers differs from the whole model."""
    with torch.no_grad():
        cut, there = texts(torch.arange(min(3, len(ids))))
        whole = Backbone(encoder).cpu()(ids[:3])
    require(
        torch.allclose(cut[there], whole[there], atol=1e-3, rtol=1e-3),
        "top",
        top,
        f"{encoder.name} cannot be cut between layers; choose 0 or None",
    )


class Dense(nn.Module):
    """The mean over tokens and a linear layer: states (B, T, E), token mask (B, T) -> (B, out)."""

    def __init__(self, width: int, out: int) -> None:
        """width: E."""
        super().__init__()
        self.out = nn.Linear(width, out)

    def forward(self, states: Tensor, there: Tensor) -> Tensor:
        """(B, out) of states (B, T, E) and token mask (B, T)."""
        return self.out(mean_state(states, there))


class Convolution(nn.Module):
    """A convolution over three neighbouring tokens, the maximum over positions, a linear layer."""

    def __init__(self, width: int, out: int) -> None:
        """width: E."""
        super().__init__()
        self.three, self.out = nn.Conv1d(width, width, 3, padding=1), nn.Linear(width, out)

    def forward(self, states: Tensor, there: Tensor) -> Tensor:
        """(B, out) of states (B, T, E) and token mask (B, T)."""
        masked = states * there[..., None]
        found = self.three(masked.transpose(1, 2)).relu()  # (B, E, T)
        return self.out(found.masked_fill(~there[:, None], 0.0).amax(2))


class Attention(nn.Module):
    """A weighted mean over tokens, with learned weights, and a linear layer."""

    def __init__(self, width: int, out: int) -> None:
        """width: E."""
        super().__init__()
        self.ask, self.out = nn.Linear(width, 1), nn.Linear(width, out)
        nn.init.zeros_(self.ask.weight)  # training starts from the plain mean

    def forward(self, states: Tensor, there: Tensor) -> Tensor:
        """(B, out) of states (B, T, E) and token mask (B, T)."""
        weight = self.ask(states)[..., 0].masked_fill(~there, -1e9).softmax(1)
        return self.out(torch.einsum("bte,bt->be", states, weight))


HEADS: dict[str, type[Dense | Convolution | Attention]] = {
    "dense": Dense,
    "convolution": Convolution,
    "attention": Attention,
}


class TwoTower(nn.Module):
    """item (B,), who (B, K), own (B, K) -> logits (B, K), as described at the top of this file."""

    known: Tensor
    total: Tensor
    count: Tensor
    prior: Tensor

    def __init__(
        self,
        text: TextEncoder,
        train: Interactions,
        vectors: Tensor,
        *,
        head: str = "dense",
        dim: int = 64,
        seed: int = 0,
    ) -> None:
        """Build the item tower on `text` and the user tower on the train clicks.

        train: who watched what. vectors (I, E): frozen text vectors, whose means describe users.
        head: a name in `HEADS`. dim: D. seed: of the first weights. A dense head starts with the
        same directions as the user's tower, so that at first the product measures how similar an
        item is to the user's items. Raises `ParameterError` for an unknown head and for vectors of
        other items.
        """
        super().__init__()
        require(head in HEADS, "head", head, f"choose one of {', '.join(HEADS)}")
        require(
            len(vectors) == train.item_count,
            "vectors",
            tuple(vectors.shape),
            f"give {train.item_count} rows",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.text, self.head = text, HEADS[head](text.width, dim + 1)
            self.user = nn.Linear(vectors.shape[1], dim, bias=False)
            nn.init.normal_(self.user.weight, std=dim**-0.5)
        if head == "dense" and text.width == vectors.shape[1]:
            with torch.no_grad():
                self.head.out.bias.zero_()
                self.head.out.weight.zero_()[:dim] = self.user.weight
        unit = nn.functional.normalize(vectors)
        unit = unit - unit.mean(0)
        count = torch.bincount(train.users, minlength=train.user_count).float()
        total = torch.zeros(len(count), unit.shape[1]).index_add_(0, train.users, unit[train.items])
        activity = (count + 1) / (train.item_count + 2)
        self.register_buffer("known", unit)
        self.register_buffer("total", total)
        self.register_buffer("count", count)
        # log odds: whoever watches many films is likelier to watch this one
        self.register_buffer("prior", activity.log() - (1 - activity).log())

    def films(self, item: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors z (B, D) and offsets b (B,) of item (B,)."""
        both = self.head(*self.text(item))
        return both[:, :-1], both[:, -1]

    def forward(self, item: Tensor, who: Tensor, own: Tensor) -> Tensor:
        """Logits (B, K) of item (B,) for the users who (B, K).

        own (B, K): 1 where the item is one of the user's, whose vector then leaves it out, else 0.
        """
        z, b = self.films(item)
        left_out = own[..., None] * self.user(self.known[item])[:, None]
        total = self.user(self.total)[who] - left_out  # (B, K, D)
        product = torch.einsum("bd,bkd->bk", z, total) / (self.count[who] - own).clamp(min=1)
        return product * GAIN + b[:, None] + self.prior[who]

    def scores(self, chunk: int = 64) -> Factored:
        """A function (users, items of the same shape) -> logits on the CPU.

        They leave out the prior, which is the same for all items of a user. chunk: items read at a
        time.
        """
        with torch.inference_mode():
            everything = torch.arange(len(self.known), device=self.known.device)
            parts = [self.films(items) for items in everything.split(chunk)]
            z, b = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
            u = (self.user(self.total) * (GAIN / self.count.clamp(min=1)[:, None])).cpu()
        return factored(u, z, b)
