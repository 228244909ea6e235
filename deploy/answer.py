"""Stands in for a node, to try an engine without one: answers each question with its bytes reversed.

`python answer.py SOCKET` listens at a Unix socket. A question that begins with `wait S ` is answered
after S seconds.
"""

import sys
import time
from multiprocessing.connection import Listener
from pathlib import Path

Path(sys.argv[1]).unlink(missing_ok=True)
with Listener(sys.argv[1], "AF_UNIX", backlog=8) as door:
    while True:
        with door.accept() as caller:
            try:
                question = caller.recv_bytes()
                if question.startswith(b"wait "):
                    time.sleep(float(question.split(b" ", 2)[1]))
                caller.send_bytes(question[::-1])
            except (EOFError, OSError) as problem:
                print(f"nobody waits for the answer any more: {problem!r}", flush=True)
