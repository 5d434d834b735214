// A Node program whose addon leaks: 500 calls, 2 blocks of 80 bytes each time.
"use strict";
const fs = require("node:fs");
const path = require("node:path");
const { leak } = require(path.join(process.argv[2], "leak_node.node"));

function waitForLine() {
  const byte = Buffer.alloc(1);
  for (;;) {
    if (fs.readSync(0, byte, 0, 1, null) === 0) return false;
    if (byte[0] === 10) return true;
  }
}

function handle(depth) {
  if (depth > 0) return handle(depth - 1);
  leak(2, 80);
  return Buffer.alloc(2000, depth);
}

fs.writeSync(1, "ready\n");
waitForLine();
for (let request = 0; request < 500; request++) handle(request % 7);
const bytes = 500 * 2 * 80;
const site = {
  function: "site_node_malloc",
  outstanding_bytes: bytes,
  outstanding_count: 1000,
  allocated_bytes: bytes,
  allocated_count: 1000,
};
fs.writeSync(1, "truth " + JSON.stringify({ is_strict: false, sites: [site] }) + "\n");
while (waitForLine());
