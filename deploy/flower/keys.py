"""Makes keys and certificates: `python keys.py FOLDER HOST SITE...`, where none are there yet.

An authority, the SuperLink's certificate for the address HOST, and a key pair for each site, by
which the SuperLink knows it. The authority's own key is not kept. Runs in Flower's environment.
"""

import datetime
import ipaddress
import sys
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAYS = 360  # for which certificates hold
PEM, SSH = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
PKCS8 = serialization.PrivateFormat.PKCS8
Key = ec.EllipticCurvePrivateKey


def write_key(path: Path, key: Key, form: serialization.PrivateFormat) -> None:
    """Write a private key that only its owner can read."""
    path.touch(0o600)
    path.write_bytes(key.private_bytes(PEM, form, serialization.NoEncryption()))


def certificate(key: Key, authority: Key, host: str = "") -> bytes:
    """Return the authority's own certificate, or with `host` the one of the SuperLink there."""
    now = datetime.datetime.now(datetime.UTC)
    name, issuer = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
        for text in (host or "fedlab authority", "fedlab authority")
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.BasicConstraints(not host, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),
            critical=False,
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=not host,
                crl_sign=not host,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if host:
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(authority, hashes.SHA256()).public_bytes(PEM)


def main() -> None:
    """Write what is missing."""
    folder, host, *sites = Path(sys.argv[1]), *sys.argv[2:]
    if not (folder / "authority.crt").exists():
        authority, server = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
        (folder / "authority.crt").write_bytes(certificate(authority, authority))
        (folder / "server.crt").write_bytes(certificate(server, authority, host))
        write_key(folder / "server.key", server, PKCS8)
    for site in sites:
        if not (folder / f"{site}.key").exists():
            key = ec.generate_private_key(ec.SECP384R1())
            write_key(folder / f"{site}.key", key, SSH)
            public = key.public_key()
            (folder / f"{site}.pub").write_bytes(
                public.public_bytes(
                    serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
                )
            )


if __name__ == "__main__":
    main()
