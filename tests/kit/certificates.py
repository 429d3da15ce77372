"""Certificates for tests: an authority of their own, a server's and a client's, as PEM files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    from pathlib import Path


class Certificates:
    """Files in `folder`: who signs, what a server on the loopback address shows, and what a client shows."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.ca = folder / "ca.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        self.server, self.server_key = self._issue(authority, folder / "server", "127.0.0.1", "localhost")
        self.client, self.client_key = self._issue(authority, folder / "client", "client@example.org")

    def _issue(self, authority: trustme.CA, path: Path, *names: str) -> tuple[Path, Path]:
        issued = authority.issue_cert(*names)
        certificate, key = path.with_suffix(".pem"), path.with_suffix(".key")
        for number, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(str(certificate), append=number > 0)
        issued.private_key_pem.write_to_path(str(key))
        return certificate, key
