"""What clients of a secure sum do with keys: agree in pairs, expand what they agreed on.

Sources: Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine
learning", section 3 (key agreement, pseudorandom generator); RFC 7748, sections 5 and 6.1 (X25519,
keys of low order); RFC 5869 (HKDF).
"""

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fedlab.privacy.secure.shamir import SecureSumError

Words = NDArray[np.uint32]
FIELD = 2**255 - 19  # of the curve


def expand_seed(seed: bytes, length: int) -> Words:
    """G: expand a seed of 32 bytes into `length` pseudorandom words, as a ChaCha20 key stream.

    >>> words = expand_seed(bytes(32), 5)
    >>> words.dtype, bool((words == expand_seed(bytes(32), 5)).all())
    (dtype('uint32'), True)
    """
    cipher = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None)
    return np.frombuffer(cipher.encryptor().update(bytes(4 * length)), dtype="<u4")


def agreed_key(mine: X25519PrivateKey, other: bytes, purpose: bytes) -> bytes:
    """The key of 32 bytes that a pair of clients shares for a purpose: Diffie-Hellman, HKDF.

    other: the public key of the other client. Raises `SecureSumError` for one that is not of 32
    bytes, and for one of low order, with which everybody agrees on the same key.
    """
    try:
        shared = mine.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:
        raise SecureSumError(
            "a public key is of low order, or not of 32 bytes: whoever agrees on a key with it "
            "has no secret"
        ) from None
    return HKDF(hashes.SHA256(), 32, salt=None, info=purpose).derive(shared)


def point(key: bytes) -> int:
    """The point that a public key stands for: X25519 ignores the last bit, and reduces the rest.

    Two keys that differ as bytes may be one point.

    >>> point(bytes([9] + 31 * [0])) == point(bytes([9] + 30 * [0] + [128])) == 9
    True
    """
    return int.from_bytes(key, "little") % 2**255 % FIELD
