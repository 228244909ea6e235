"""Where a site's node sits: `python seat.py SOCKET SEAT`.

The node connects to SOCKET. Whoever of Flower's short-lived processes connects to SEAT and orders
as a coordinator does is answered by the node.
"""

import sys
import threading

from wire import Seat, listen, serve

seat = Seat(sys.argv[1])
listen(
    sys.argv[2],
    lambda line: serve(line, dict, lambda _name, question, seconds, _: seat.ask(question, seconds)),
)
threading.Event().wait()
