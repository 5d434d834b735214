// An HTTP server as they are: parses what it gets, makes a Buffer, keeps a small cache, answers with JSON.
const http = require('http');
const cache = new Map();
let requests = 0;
const server = http.createServer((request, response) => {
  const key = requests++ % 1000;
  const body = Buffer.alloc(4096 + (key & 1023), 97);
  cache.set(key, body.subarray(0, 64).toString('latin1'));
  response.setHeader('content-type', 'application/json');
  response.end(JSON.stringify({ requests, path: request.url, bytes: body.length, head: cache.get(key) }));
});
server.listen(Number(process.argv[2]), '127.0.0.1');
