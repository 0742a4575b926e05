// The service that bench/http calls: reads a JSON body and answers with one.
//   node http_service.js PORT
'use strict';
let n = 0;
const server = require('http').createServer((req, res) => {
  const chunks = [];
  req.on('data', (chunk) => chunks.push(chunk));
  req.on('end', () => {
    const { order } = JSON.parse(Buffer.concat(chunks).toString());
    const body = JSON.stringify({ id: ++n, order, key: req.headers['idempotency-key'] });
    res.writeHead(201, { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(body) });
    res.end(body);
  });
});
server.keepAliveTimeout = 60000;
server.listen(Number(process.argv[2]), '127.0.0.1', 4096, () => console.log('ready'));
