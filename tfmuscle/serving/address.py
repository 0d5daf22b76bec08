"""Where a served model is: `grpc://HOST[:PORT]/NAME[/VERSION]`, or `http://` with the same parts.

Names are those a path and a configuration file can hold without quoting; the rest is refused rather than escaped,
because TensorFlow Serving compares the path as it is written. `https://` and `grpcs://` are refused by name: the client
holds no certificates, a proxy on the same machine may.
"""

import re
from dataclasses import dataclass, replace
from typing import Self
from urllib.parse import urlsplit

from tfmuscle.errors import DataError

PORTS = {"grpc": 8500, "http": 8501}
"""Protocol -> the port at which TensorFlow Serving listens unless told otherwise."""
LONGEST_NAME = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_FORM = "grpc://HOST:8500/NAME or http://HOST:8501/NAME, with /VERSION after it if wanted"


@dataclass(frozen=True)
class Address:
    """A model on a server.

    Attributes:
        scheme: "grpc" or "http".
        host: name or number of the machine; IPv6 without brackets.
        port: where it listens.
        model: name of the model there.
        version: of the model; None for the one the server chooses.
    """

    scheme: str
    host: str
    port: int
    model: str
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads an address.

        >>> Address.parse("grpc://127.0.0.1/bones/2")
        Address(scheme='grpc', host='127.0.0.1', port=8500, model='bones', version=2)

        Raises:
            DataError: it has another form.
        """
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise DataError(f"{text!r}: is no address of a server ({error}); write {_FORM}") from None
        if parts.scheme not in PORTS:
            what = f"protocol {parts.scheme!r} is not spoken" if parts.scheme else "names no protocol"
            raise DataError(f"{text!r}: {what}; write {_FORM}")
        name, _, version = parts.path.strip("/").partition("/")
        if not host or parts.query or parts.fragment or parts.username or not _is_version(version):
            raise DataError(f"{text!r}: is no address of a server; write {_FORM}")
        if not is_name(name):
            raise DataError(f"{text!r}: {name!r} is no name of a model; {NAME_RULE}")
        return cls(parts.scheme, host, port or PORTS[parts.scheme], name, int(version) if version else None)

    def at(self, version: int) -> Self:
        """Returns the address of one version."""
        return replace(self, version=version)

    @property
    def server(self) -> str:
        """Host and port, as both protocols take them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        version = "" if self.version is None else f"/{self.version}"
        return f"{self.scheme}://{self.server}/{self.model}{version}"


NAME_RULE = f"at most {LONGEST_NAME} of the letters a-z, digits, dot, dash and underscore, a letter or digit first"
"""What a name of a model may be, for messages."""


def is_name(text: str) -> bool:
    """Whether a text can be the name of a served model.

    >>> is_name("thigh-muscles_2"), is_name("../etc"), is_name("a b"), is_name("")
    (True, False, False, False)
    """
    return len(text) <= LONGEST_NAME and _NAME.fullmatch(text) is not None


def _is_version(text: str) -> bool:
    return not text or (text.isascii() and text.isdecimal() and len(text) <= 18)
