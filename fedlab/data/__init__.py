"""Interactions, how they are read, split and dealt out to clients."""

from fedlab.data.downloads import cache_folder, from_wheel
from fedlab.data.episodes import Curves, Episodes
from fedlab.data.federation import (
    Federation,
    Source,
    clicks,
    federation_of,
    fingerprint,
    own_rows,
    unseen,
)
from fedlab.data.interactions import (
    DATA,
    Catalogue,
    LatestSmall,
    Ratings,
    load,
    of_users,
    rated_often,
    read,
)
from fedlab.data.item_queries import ItemQueries
from fedlab.data.partition import (
    ByActivity,
    ByGenre,
    Equal,
    OnePerUser,
    by_activity,
    by_genre,
    equal,
    favourite_genre,
    one_per_user,
)
from fedlab.data.readers import DataError
from fedlab.data.sources import Columns, Stored, synthesise
from fedlab.data.split import (
    Split,
    from_latest,
    leave_one_out,
    recent,
    split_by_time,
    standardise,
    strictly_later,
)

__all__ = [
    "DATA",
    "ByActivity",
    "ByGenre",
    "Catalogue",
    "Columns",
    "Curves",
    "DataError",
    "Episodes",
    "Equal",
    "Federation",
    "ItemQueries",
    "LatestSmall",
    "OnePerUser",
    "Ratings",
    "Source",
    "Split",
    "Stored",
    "by_activity",
    "by_genre",
    "cache_folder",
    "clicks",
    "equal",
    "favourite_genre",
    "federation_of",
    "fingerprint",
    "from_latest",
    "from_wheel",
    "leave_one_out",
    "load",
    "of_users",
    "one_per_user",
    "own_rows",
    "rated_often",
    "read",
    "recent",
    "split_by_time",
    "standardise",
    "strictly_later",
    "synthesise",
    "unseen",
]
