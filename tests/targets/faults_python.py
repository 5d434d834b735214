"""Grows CPython's objects, and says by how much."""
import sys

print("ready", flush=True)
sys.stdin.readline()


def rss():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Rss:"))


def grow_objects():
    return [(number, str(number)) for number in range(300_000)]


before = rss()
kept = grow_objects()
grown = rss() - before
print(
    'truth {"is_strict":false,"sites":[{"lens":"python","function":"rss","outstanding_bytes":%d,'
    '"outstanding_count":1}]}' % grown,
    flush=True,
)
sys.stdin.read()
