"""Models that read: text vectors, backbones, cross-encoders, two towers, next-item prediction."""

from fedlab.models.text.backbone import NONE, Backbone, mean_state, tokens
from fedlab.models.text.cross_encoder import CrossEncoder, make_pairs
from fedlab.models.text.encoder import (
    MINILM,
    SHIPPED,
    SMOLLM2,
    Encoder,
    encoder,
    fingerprint,
    item_texts,
    store,
    stored,
    tfidf,
    vectors,
)
from fedlab.models.text.item_prior import (
    close_years,
    item_kernel,
    kernel_ridge,
    like_genres,
    likeness,
)
from fedlab.models.text.next_item import (
    SASRec,
    Sequences,
    histories,
    last_films,
    narrowed,
    sequence_scorer,
)
from fedlab.models.text.recipes import Hybrid, Lora, NextItem, TextContent
from fedlab.models.text.two_tower import GAIN, HEADS, TextEncoder, TwoTower

__all__ = ["GAIN", "HEADS", "MINILM", "NONE", "SHIPPED", "SMOLLM2", "Backbone", "CrossEncoder",
           "Encoder", "Hybrid", "Lora", "NextItem", "SASRec", "Sequences", "TextContent",
           "TextEncoder", "TwoTower", "close_years", "encoder", "fingerprint", "histories",
           "item_kernel", "item_texts", "kernel_ridge", "last_films", "like_genres", "likeness",
           "make_pairs", "mean_state", "narrowed", "sequence_scorer", "store", "stored", "tfidf",
           "tokens", "vectors"]
