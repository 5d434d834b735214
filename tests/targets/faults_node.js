// Grows V8's heap and the memory of buffers, and says by how much: as bytes of "heap" and "buffers".
const v8 = require('v8');

const kept = [];

function growHeap() {
  for (let index = 0; index < 400000; index++) kept.push({ index, text: 'x' + index, list: [index, index + 1] });
}

function growBuffers() {
  for (let index = 0; index < 24; index++) kept.push(Buffer.allocUnsafeSlow(1 << 20).fill(7));
}

// What V8 has of its heap in memory: `heapTotal` has what it never touched too.
const figures = () => ({ heap: v8.getHeapStatistics().total_physical_size, ...process.memoryUsage() });

global.gc();
const before = figures();
process.stdout.write('ready\n');
process.stdin.once('data', () => {
  growHeap();
  growBuffers();
  global.gc();
  const after = figures();
  const site = (name, key) => ({
    lens: 'node', function: name, outstanding_bytes: Math.max(0, after[key] - before[key]), outstanding_count: 1,
  });
  const sites = [site('heap', 'heap'), site('buffers', 'arrayBuffers')];
  process.stdout.write('truth ' + JSON.stringify({ is_strict: false, sites }) + '\n');
});
process.stdin.once('end', () => process.exit(kept.length > 0 ? 0 : 1));
