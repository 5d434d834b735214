// What one kind of growth does to Node, by the clock: `growth_node.js buffers|heap|garbage MILLISECONDS`. After the line that
// begins it, it answers with what it holds, and then stays as it is.
"use strict";
const fs = require("node:fs");

const STEP_MS = 100;
const MIB = 1 << 20;
const [kind, duration] = [process.argv[2], Number(process.argv[3])];
const kept = [];

const steps = {
  // Backing stores of buffers lie outside of the collected heap, in blocks of malloc.
  buffers: () => kept.push(Buffer.alloc(MIB, 1)),
  heap: () => kept.push(Array.from({ length: 4000 }, (_, index) => ({ index, pair: [index, index + 1] }))),
  // Nobody holds these; they go when the collector runs, which it has no reason to.
  garbage: () => Buffer.alloc(1000),
};

fs.writeSync(1, "ready\n");
process.stdin.once("data", () => {
  const begin = performance.now();
  let done = 0;
  const timer = setInterval(() => {
    const now = Math.min(performance.now() - begin, duration);
    for (; (done + 1) * STEP_MS <= now; done += 1) steps[kind]();
    if (now === duration) {
      clearInterval(timer);
      fs.writeSync(1, `steps ${done}\ndone\n`);
    }
  }, STEP_MS / 2);
  process.stdin.on("end", () => process.exit(0));
});
