"""Objects of CPython that grow: `run SECONDS` keeps 20,000 every second, and says how many bytes these are."""

import gc
import os
import sys
import time

RATE = 20_000

gc.disable()
os.write(1, b"ready\n")
seconds = int(sys.stdin.readline().split()[1])
# Room for all, so that the list itself does not grow.
kept = [None] * (RATE * seconds)
begin = time.monotonic()
done = 0
while done < len(kept):
    wanted = min(int((time.monotonic() - begin) * RATE), len(kept))
    for number in range(done, wanted):
        kept[number] = (number + 1000,)
    done = wanted
    time.sleep(0.02)
# 48 bytes of a tuple with what the collector keeps before it, and 32 of its number, rounded up.
os.write(1, b"objects.bytes %d\ndone\n" % (80 * len(kept)))
sys.stdin.read()
