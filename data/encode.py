"""Encode the texts of the movies with the package's MiniLM.

    python data/encode.py

Writes `ml-latest-small.text.safetensors`: vectors (I, 384) float16, the mean of the last states of
all tokens of "title (year). genres".
"""

from fedlab import load
from fedlab.models.text import MINILM, SHIPPED, encoder, fingerprint, item_texts, store

if __name__ == "__main__":
    texts = item_texts(load().catalogue)
    store(SHIPPED, fingerprint(texts, MINILM, "mean"), encoder()(texts, progress=True).half())
    print(f"{SHIPPED}: {len(texts):,} texts, {SHIPPED.stat().st_size / 1e6:.2f} MB")
