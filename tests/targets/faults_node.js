// Grows V8's heap and the memory of buffers, and says by how much: as bytes of "heap" and "buffers".
const kept = [];

function growHeap() {
  for (let index = 0; index < 400000; index++) kept.push({ index, text: 'x' + index, list: [index, index + 1] });
}

function growBuffers() {
  for (let index = 0; index < 24; index++) kept.push(Buffer.allocUnsafeSlow(1 << 20).fill(7));
}

process.stdout.write('ready\n');
process.stdin.once('data', () => {
  global.gc();
  const before = process.memoryUsage();
  growHeap();
  growBuffers();
  global.gc();
  global.gc();
  const after = process.memoryUsage();
  const site = (name, bytes) => ({
    lens: 'node', function: name, outstanding_bytes: Math.max(0, bytes), outstanding_count: 1,
  });
  const sites = [
    site('heap', after.heapTotal - before.heapTotal),
    site('buffers', after.arrayBuffers - before.arrayBuffers),
    site('rss', after.rss - before.rss),
  ];
  process.stdout.write('truth ' + JSON.stringify({ is_strict: false, sites }) + '\n');
});
process.stdin.once('end', () => process.exit(kept.length > 0 ? 0 : 1));
