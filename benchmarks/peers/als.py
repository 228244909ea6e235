"""The `implicit` library's alternating least squares; a third argument names its solver.

A step is one sweep: all users' vectors from the items', then all items' from the users'. The matrix
and its transpose are made once, before the first.
"""

import json
import sys
from pathlib import Path

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from protocol import serve
from scipy.sparse import csr_matrix

job = json.loads(Path(sys.argv[1]).read_text())
counts, items = (np.load(Path(job["folder"]) / f"{name}.npy") for name in ("counts", "items"))
shape = len(counts), job["items"]
# what is not clicked weighs 1 in it, so a click weighs 1 / w0 more; one of weight 1 is no work
values = np.full(len(items), 1 + 1 / job["w0"], np.float32)
clicks = csr_matrix((values, items, np.concatenate([[0], counts.cumsum()])), shape)
turned = clicks.T.tocsr()
model = AlternatingLeastSquares(
    factors=job["dim"], regularization=job["reg"], use_cg=sys.argv[3] == "cg", num_threads=1
)
rng = np.random.default_rng(0)
users, films = (rng.normal(0, 0.1, (n, job["dim"])).astype(np.float32) for n in shape)


def step() -> None:
    """Take one sweep of both sides."""
    model.solver(clicks, users, films, model.regularization, num_threads=1)
    model.solver(turned, films, users, model.regularization, num_threads=1)


serve(step, lambda: {"user": users, "item": films})
