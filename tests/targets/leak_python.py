"""A Python program whose extension leaks: 200 calls, two sites, 3 blocks of 50 bytes each time."""

import json
import os

import leak_native


def wait_for_line():
    while (byte := os.read(0, 1)) not in (b"\n", b""):
        pass
    return byte


def handle(depth):
    if depth:
        return handle(depth - 1)
    leak_native.leak(3, 50)
    return [str(number) * 40 for number in range(20)]


os.write(1, b"ready\n")
wait_for_line()
for request in range(200):
    handle(request % 7)
site = {"outstanding_bytes": 30000, "outstanding_count": 600, "allocated_bytes": 30000, "allocated_count": 600}
truth = {"is_strict": False, "sites": [dict(site, function=name) for name in ("site_python_malloc", "site_python_raw")]}
os.write(1, b"truth " + json.dumps(truth).encode() + b"\n")
while wait_for_line():
    pass
