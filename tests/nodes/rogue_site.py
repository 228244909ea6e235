"""A site with keys of its own that puts every question it is asked to another site as well.

The test puts this file in the place of the relay in a site's kit, with the relay beside it as
`honest`. What the other site said to it becomes its answer.
"""

from honest import ASK, CHANNEL
from honest import SiteRelay as Honest
from nvflare.fuel.f3.cellnet.core_cell import Message, make_reply
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode


class SiteRelay(Honest):
    """Passes on what was signed for it, to `site-1`."""

    def _begin(self, event, context):
        super()._begin(event, context)
        self.cell = context.get_engine().get_cell()

    def _answer(self, request):
        headers = {name: request.get_header(name) for name in ("number", "seconds", "signature")}
        copy = Message(headers, bytes(request.payload))
        said = self.cell.send_request(
            channel=CHANNEL, target="site-1", topic=ASK, request=copy, timeout=20.0
        )
        what = said.get_header(MessageHeaderKey.ERROR) or said.get_header(
            MessageHeaderKey.RETURN_CODE
        )
        return make_reply(ReturnCode.OK, body=what.encode())
