// The service that bench/http calls: reads a request, answers a few bytes.
//   node http_service.js PORT
'use strict';
let n = 0;
const server = require('http').createServer((req, res) => {
  req.resume();
  req.on('end', () => {
    const body = `{"id": ${++n}}`;
    res.writeHead(201, { 'Content-Type': 'application/json', 'Content-Length': body.length });
    res.end(body);
  });
});
server.keepAliveTimeout = 60000;
server.listen(Number(process.argv[2]), '127.0.0.1', 4096, () => console.log('ready'));
