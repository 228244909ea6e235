"""Models that read: text vectors, backbones, cross-encoders, two towers, next-item prediction."""

from fedlab.models.text.backbone import PAD, Backbone, lowest, mean_state, tokens
from fedlab.models.text.cross_encoder import CrossEncoder, make_pairs
from fedlab.models.text.encoder import (
    MINILM,
    SHIPPED,
    SMOLLM2,
    Encoder,
    encoder,
    fingerprint,
    item_texts,
    read_vectors,
    tfidf,
    vectors,
    write_vectors,
)
from fedlab.models.text.familiarity import familiarity, log_probabilities
from fedlab.models.text.item_prior import (
    familiarity_kernel,
    genre_kernel,
    item_kernel,
    kernel_ridge,
    text_kernel,
    year_kernel,
)
from fedlab.models.text.next_item import (
    SASRec,
    Sequences,
    histories,
    last_films,
    principal_components,
    sequence_scorer,
    with_lists,
)
from fedlab.models.text.recipes import Hybrid, Lora, NextItem, TextContent
from fedlab.models.text.two_tower import GAIN, HEADS, TextEncoder, TwoTower

__all__ = [
    "GAIN",
    "HEADS",
    "MINILM",
    "PAD",
    "SHIPPED",
    "SMOLLM2",
    "Backbone",
    "CrossEncoder",
    "Encoder",
    "Hybrid",
    "Lora",
    "NextItem",
    "SASRec",
    "Sequences",
    "TextContent",
    "TextEncoder",
    "TwoTower",
    "encoder",
    "familiarity",
    "familiarity_kernel",
    "fingerprint",
    "genre_kernel",
    "histories",
    "item_kernel",
    "item_texts",
    "kernel_ridge",
    "last_films",
    "log_probabilities",
    "lowest",
    "make_pairs",
    "mean_state",
    "principal_components",
    "read_vectors",
    "sequence_scorer",
    "text_kernel",
    "tfidf",
    "tokens",
    "vectors",
    "with_lists",
    "write_vectors",
    "year_kernel",
]
