"""Bundles on a server: its configuration, and the two ways of asking it.

`address` says where a model is, `grpc_wire` and `rest_wire` speak TensorFlow Serving's two protocols, `patience`
decides what is tried again, `client` cuts batches into requests; `config` writes what the server itself reads.
"""

from tfmuscle.serving.address import Address
from tfmuscle.serving.client import Server, windows_per_request
from tfmuscle.serving.patience import Patience

__all__ = ["Address", "Patience", "Server", "windows_per_request"]
