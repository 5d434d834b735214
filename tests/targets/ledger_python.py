"""Memory of one kind for each order: `objects N`, `extension N`, in MiB."""

import gc
import os
import sys

import leak_native

kept = []
MIB = 1 << 20


def obey(order, size):
    if order == "objects":
        # 48 bytes of a tuple with what the collector keeps before it, and 32 of its number, rounded up.
        kept.append([(number,) for number in range(1000, 1000 + size // 80)])
    elif order == "extension":
        # Two sites: malloc, and PyMem_RawMalloc, which is malloc too.
        leak_native.leak(size // 2000, 1000)
    else:
        sys.exit(order)


gc.disable()
os.write(1, b"ready\n")
for line in sys.stdin:
    order, number = line.split()
    obey(order, int(number) * MIB)
    os.write(1, b"done\n")
