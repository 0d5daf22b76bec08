"""A process that answers as TensorFlow Serving does over HTTP, to be killed: standard library and NumPy alone.

    python served_function.py PORT SECONDS

Each prediction takes SECONDS at least; the model is `probabilities`, whatever the name asked for, version 1.
"""

import http.server
import json
import sys
import time

import numpy as np

CLASSES = 3


def probabilities(images):
    """A network of one channel and three classes without TensorFlow: it looks at each voxel, its row and its column."""
    images = np.asarray(images, np.float32)[..., 0]
    rows, columns = np.cumsum(images, axis=1) / 9, np.cumsum(images, axis=2) / 7
    logits = np.stack([np.full_like(images, 2.0), images + np.sin(rows), 2 * images - np.cos(columns)], axis=-1)
    said = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (said / said.sum(axis=-1, keepdims=True)).astype(np.float32)


class Handler(http.server.BaseHTTPRequestHandler):
    seconds = 0.0

    def do_GET(self):
        if not self.path.endswith("/metadata"):
            return self.answer({"model_version_status": [{"version": "1", "state": "AVAILABLE"}]})
        sizes = [{"size": str(size)} for size in (-1, 8, 8)]
        sides = {"inputs": ("image", 1), "outputs": ("probabilities", CLASSES)}
        definition = {
            side: {name: {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [*sizes, {"size": str(last)}]}}}
            for side, (name, last) in sides.items()
        }
        self.answer({"metadata": {"signature_def": {"signature_def": {"serving_default": definition}}}})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        print("asked", flush=True)
        time.sleep(self.seconds)
        self.answer({"outputs": probabilities(request["inputs"]["image"]).tolist()})

    def answer(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    Handler.seconds = float(sys.argv[2])
    with http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
