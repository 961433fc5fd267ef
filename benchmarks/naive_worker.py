"""The worker of the naive pipeline: one array in over TCP, the method with nothing tuned, all results back over TCP."""

import json
import sys

import numpy as np
import torch
import zmq

from inscan.models import n2n, subspace

case = sys.argv[1]
torch.set_float32_matmul_precision("highest")
context = zmq.Context()
socket = context.socket(zmq.REP)
port = socket.bind_to_random_port("tcp://127.0.0.1")
if case == "map":
    n2n.denoise(np.ones((1, 1, 32, 32), dtype=np.float32))  # warm, as a running worker is
else:
    subspace.denoise(np.ones((8, 32, 32), dtype=np.float32) + np.eye(32, dtype=np.float32))
print(port, flush=True)
shape, buffer = socket.recv_multipart()
stack = np.frombuffer(buffer, dtype=np.float32).reshape(json.loads(shape))
estimate = n2n.denoise(stack) if case == "map" else subspace.denoise(stack)
low, high = estimate.interval(0.9)
arrays = [np.ascontiguousarray(a) for a in (estimate.values, estimate.sigma, low, high)]
socket.send_multipart(
    [json.dumps([a.shape for a in arrays]).encode(), *(a.tobytes() for a in arrays)]
)
socket.close(linger=2000)
context.term()
