// Memory of one kind for each order: `heap N`, `buffers N`, `addon N`, in MiB. The answer is what Node says of itself.
"use strict";
const fs = require("node:fs");
const path = require("node:path");
const { leak } = require(path.join(process.argv[2], "leak_node.node"));

const kept = [];
const MIB = 1 << 20;

function line() {
  const byte = Buffer.alloc(1);
  let text = "";
  for (;;) {
    if (fs.readSync(0, byte, 0, 1, null) === 0) return null;
    if (byte[0] === 10) return text;
    text += String.fromCharCode(byte[0]);
  }
}

function obey(order, size) {
  switch (order) {
    case "heap":
      // An element is 8 bytes. Small arrays leave nothing of a page of V8's untouched.
      for (let got = 0; got < size; got += 1 << 10) kept.push(new Array(1 << 7).fill(got));
      break;
    case "buffers":
      for (let got = 0; got < size; got += MIB) kept.push(Buffer.alloc(MIB, 1));
      break;
    case "addon":
      leak(Math.floor(size / 1000), 1000);
      break;
    default:
      throw new Error(order);
  }
}

fs.writeSync(1, "ready\n");
for (let text; (text = line()) !== null; ) {
  const [order, number] = text.split(" ");
  obey(order, Number(number) * MIB);
  // What the collector has reserved ahead and not touched is in its own figure, and not resident.
  gc();
  gc();
  const { arrayBuffers } = process.memoryUsage();
  // Of heapTotal, what V8 has touched.
  const heapTotal = require("node:v8").getHeapStatistics().total_physical_size;
  fs.writeSync(1, `heap ${heapTotal}\nbuffers ${arrayBuffers}\ndone\n`);
}
