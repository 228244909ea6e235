"""Stands in for a node, to try an engine without one: an answer is the question reversed.

`python answer.py SOCKET` connects to a site's socket, as `fedlab node` does. A question that begins
with `wait S ` is answered after S seconds.
"""

import socket
import sys
import time

from wire import receive, send

while True:
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(sys.argv[1])
            send(line, 0, b'{"name": "stand-in", "token": "%d"}' % time.time_ns())
            receive(line)
            while True:
                number, question = receive(line)
                if question.startswith(b"wait "):
                    time.sleep(float(question.split(b" ", 2)[1]))
                send(line, number, question[::-1])
        except OSError:
            time.sleep(0.2)
