"""Runs in NVFLARE's environment: a site takes a question once, and refuses it the second time."""

import sys

from cryptography.hazmat.primitives.asymmetric import rsa
from fedlab_relay import SiteRelay, signed
from nvflare.fuel.f3.cellnet.core_cell import Message
from nvflare.lighter.utils import sign_content

key = rsa.generate_private_key(65537, 2048)
site = SiteRelay("nowhere")
site.site, site.server_key = "site-1", key.public_key()


def refused(number, question=b"train", sender="site-1", signature=None):
    signature = signature or sign_content(signed(sender, number, question), key)
    return site._refused(Message({"number": number, "signature": signature}, b""), b"train")


said = [
    refused(5),
    refused(5),
    refused(4),
    refused(6, question=b"other"),
    refused(6, sender="site-2"),
    refused(6, signature="none"),
    refused(6),
]
sys.stdout.write("\n".join(said))
