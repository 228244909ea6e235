"""Seconds of a round through an engine, beside what nodes do: `python -m deploy.measure SOCKET`.

Asks every site of a running engine, whose nodes are the stand-ins; for a quiet machine.
"""

import statistics
import sys
import time

from fedlab.nodes.lines.relay import Relay

relay = Relay(sys.argv[1])
for size in (10, 1_250_000):  # bytes for each site, and as many back
    took = []
    for _ in range(15):
        began = time.perf_counter()
        answers = dict(relay.ask(dict.fromkeys(relay.nodes(), b"x" * size), 120))
        took.append(time.perf_counter() - began)
        assert all(isinstance(answer, bytes) for answer in answers.values()), answers
    low, middle, high = min(took), statistics.median(took), max(took)
    print(f"{size} bytes each way: median {middle:.3f} s, {low:.3f} to {high:.3f}")
