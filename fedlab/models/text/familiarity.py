"""How familiar a language model is with a text: how likely it is to be written, word for word.

    log p(x | before) = sum_t log p(x_t | before, x_1 ... x_(t-1))

Titles that much is written about are likely, so this tells something of how well known an item is,
before anybody has rated it. It is what was known when the model was trained, which for an old film
includes its later fame; of a title that is younger than the model it tells only how usual its words
are.

Letters: n texts, b of a batch, T tokens, D dimensions of a hidden state, V words.

Source: Radford et al. 2019, "Language models are unsupervised multitask learners", eq. 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedlab.core import require
from fedlab.models.text.backbone import is_causal
from fedlab.models.text.encoder import SMOLLM2, Encoder, cached, encoder, fingerprint

TITLE = 'The movie "'
TEXTS = 16  # of a batch, as each token has a probability for each of V words


def familiarity(texts: Sequence[str], model: str = SMOLLM2, before: str = TITLE) -> Tensor:
    """The mean and the sum (n, 2) of the log probabilities of each text's tokens, kept on disk.

    model: a GPT-type one, as `encoder` takes it, whose first and last layer are one table. before:
    what stands in front of each text, one token or more. Raises `ParameterError` for other models.
    """
    key = fingerprint([before, *texts], model, "familiarity")
    return cached(key, lambda: log_probabilities(encoder(model), texts, before))


def log_probabilities(reader: Encoder, texts: Sequence[str], before: str = TITLE) -> Tensor:
    """What `familiarity` looks up: (n, 2), by a model that is loaded; 0 for an empty text."""
    tied = reader.model.config.tie_word_embeddings and is_causal(reader)
    fix = "it does not predict the next word by its own table of words; take a GPT-type model"
    require(tied, "model", reader.name, fix)

    def ids(text: str) -> list[int]:
        found: list[int] = reader.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    start, rows = ids(before), [ids(text) for text in texts]
    require(len(start) > 0, "before", before, "the first word needs one in front; give some text")
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # like lengths: little padding
    sums = torch.zeros(len(rows))
    for first in range(0, len(order), TEXTS):
        batch = order[first : first + TEXTS]
        sums[batch] = _sums(reader, start, [rows[i] for i in batch])
    lengths = torch.tensor([len(row) for row in rows]).clamp(min=1)
    return torch.stack([sums / lengths, sums], 1)


def _sums(reader: Encoder, start: list[int], rows: list[list[int]]) -> Tensor:
    """The sums (b,) of the log probabilities of some texts' tokens."""
    longest = max(map(len, rows))
    filled = torch.tensor([start + row + [0] * (longest - len(row)) for row in rows])
    there = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]  # (b, T)
    words = reader.model.get_input_embeddings().weight  # (V, D)
    with torch.inference_mode():  # right padding is seen by no token in front of it
        states = reader.model(input_ids=filled.to(words.device)).last_hidden_state
        logits = states[:, len(start) - 1 : -1] @ words.T  # (b, T, V)
        found = logits.log_softmax(-1).cpu().gather(2, filled[:, len(start) :, None])[..., 0]
    return found.where(there, 0.0).sum(1)
