// A service as steps of a saga meet it, for the tests: node, no packages.
//
//   node http_service.js PORT DIRECTORY [http | https | http2]
//
// (for the latter two DIRECTORY has server.key and server.crt).
// Effects are lines of DIRECTORY/effects, requests lines of DIRECTORY/requests;
// so they outlive the process, and a new one goes on where it was.  An effect
// happens once for each Idempotency-Key, and a repeated key gets the answer of
// the first time, as good services do it.
//
//   METHOD /MODE/WHAT    MODE says how it answers (see "modes" below);
//                        once-MODE does so for the first request of a key only
//   GET /busy            the number of requests that are under way
'use strict';
const fs = require('fs');
const path = require('path');

const [port, dir, protocol] = [Number(process.argv[2]), process.argv[3], process.argv[4] || 'http'];
const effectsFile = path.join(dir, 'effects');
const requestsFile = path.join(dir, 'requests');
const answers = new Map();      // by key: status and body of the first time
const seen = new Map();         // by key: requests
let effects = 0;
let busy = 0;
let most = 0;

if (fs.existsSync(effectsFile)) {
  for (const line of fs.readFileSync(effectsFile, 'utf8').split('\n')) {
    if (line === '') continue;
    const effect = JSON.parse(line);
    effects = effect.id;
    answers.set(effect.key, effect.answer);
  }
}

// The effect, or the answer it had when it happened.
function act(call) {
  const before = answers.get(call.key);
  if (before) return before;
  const answer = { id: ++effects, what: call.what, body: call.body };
  fs.appendFileSync(effectsFile, JSON.stringify({
    id: effects, key: call.key, method: call.method, what: call.what, body: call.body, answer,
  }) + '\n');
  answers.set(call.key, answer);
  return answer;
}

function json(res, status, value, headers) {
  res.writeHead(status, { 'Content-Type': 'application/json', ...headers });
  res.end(JSON.stringify(value));
}

function raw(res, type, text, status) {
  res.writeHead(status || 200, type ? { 'Content-Type': type } : {});
  res.end(text);
}

// Written for as long as the other side takes it.
function endlessly(res, chunk) {
  const more = () => { while (!res.destroyed && res.write(chunk)); };
  res.on('drain', more);
  more();
}

const modes = {
  ok: (call, res) => json(res, 201, act(call)),
  slow: (call, res, ms) => { const answer = act(call); setTimeout(() => json(res, 200, answer), Number(ms)); },
  status: (call, res, code) => json(res, Number(code), { error: 'as you wish' }),
  doneStatus: (call, res, code) => { act(call); json(res, Number(code), { error: 'not what it seems' }); },
  after: (call, res, seconds) => json(res, 429, { error: 'too fast' }, { 'Retry-After': seconds }),
  date: (call, res, seconds) => json(res, 503, { error: 'closed' },
    { 'Retry-After': new Date(Date.now() + Number(seconds) * 1000).toUTCString() }),
  accepted: (call, res) => json(res, 202, act(call)),
  hang: () => {},
  doneHang: (call) => { act(call); },
  // reset after the effect, before it, in the middle of the answer
  doneReset: (call, res) => { act(call); res.socket.resetAndDestroy(); },
  reset: (call, res) => res.socket.resetAndDestroy(),
  doneClose: (call, res) => { act(call); res.socket.end(); },
  half: (call, res) => {
    act(call);
    res.writeHead(200, { 'Content-Type': 'application/json', 'Content-Length': '1000' });
    res.write('{"half": ');
    setTimeout(() => res.socket.destroy(), 50);
  },
  huge: (call, res, size) => { act(call); raw(res, 'application/json', JSON.stringify('x'.repeat(Number(size)))); },
  endless: (call, res) => {
    act(call);
    res.writeHead(200, { 'Content-Type': 'application/json' });
    endlessly(res, 'x'.repeat(65536));
  },
  endlessNo: (call, res) => {
    res.writeHead(409, { 'Content-Type': 'text/plain' });
    endlessly(res, 'no! '.repeat(16384));
  },
  headers: (call, res) => {
    act(call);
    res.socket.write('HTTP/1.1 200 OK\r\n');
    const more = () => { while (!res.socket.destroyed && res.socket.write('X-More: ' + 'y'.repeat(8000) + '\r\n')); };
    res.socket.on('drain', more);
    more();
  },
  // a head that comes one byte at a time and never ends
  drip: (call, res) => {
    act(call);
    res.socket.write('HTTP/1.1 200 OK\r\nX-Slow: ');
    const timer = setInterval(() => (res.socket.destroyed ? clearInterval(timer) : res.socket.write('z')), 20);
  },
  garbage: (call, res) => { act(call); res.socket.end(Buffer.from([0, 255, 13, 10, 7, 200, 13, 10, 13, 10])); },
  oldHttp: (call, res) => { act(call); res.socket.end('hello without a head'); },
  badJson: (call, res) => { act(call); raw(res, 'application/json', '{"a": '); },
  badUtf8: (call, res) => { act(call); raw(res, 'application/json', Buffer.from([0x22, 0xc3, 0x28, 0xff, 0x22])); },
  zero: (call, res) => { act(call); raw(res, 'application/json', '{"a": "b\\u0000c"}'); },
  rawZero: (call, res) => { act(call); raw(res, 'text/plain', 'a\0b'); },
  deep: (call, res) => { act(call); raw(res, 'application/json', '['.repeat(500000)); },
  text: (call, res) => { act(call); raw(res, 'text/plain; charset=utf-8', 'plain "text" \u00fc'); },
  binary: (call, res) => { act(call); raw(res, 'application/octet-stream', 'no json'); },
  array: (call, res) => { act(call); json(res, 200, [{ sku: 'a' }, { sku: 'b' }]); },
  number: (call, res) => { act(call); raw(res, null, '42'); },
  empty: (call, res) => { act(call); res.writeHead(204); res.end(); },
  redirect: (call, res) => { res.writeHead(302, { Location: '/ok/stolen' }); res.end(); },
  close: (call, res) => json(res, 200, act(call), { Connection: 'close' }),
  gzip: (call, res) => {
    act(call);
    res.writeHead(200, { 'Content-Type': 'application/json', 'Content-Encoding': 'gzip' });
    res.end(require('zlib').gzipSync('{"a": 1}'));
  },
  echo: (call, res) => json(res, 400, { you: call.headers }),
  echoOk: (call, res) => json(res, 200, { you: call.headers }),
  cookie: (call, res) => json(res, 200, act(call), { 'Set-Cookie': 'tracker=1; Path=/' }),
};

function handle(req, res) {
  const chunks = [];
  if (++busy > most) most = busy;
  res.on('close', () => busy--);
  res.on('error', () => {});
  req.on('data', (chunk) => chunks.push(chunk));
  req.on('end', () => {
    const url = req.url;
    if (url === '/busy') return json(res, 200, { busy: busy - 1, most, effects });
    const [, first, ...rest] = url.split('?')[0].split('/');
    const text = Buffer.concat(chunks).toString();
    const call = {
      method: req.method, url, what: rest.join('/'), headers: req.headers, version: req.httpVersion,
      key: req.headers['idempotency-key'] || '', text, body: text === '' ? null : JSON.parse(text),
    };
    const times = (seen.get(call.key) || 0) + 1;
    seen.set(call.key, times);
    fs.appendFileSync(requestsFile, JSON.stringify(call) + '\n');
    let words = decodeURIComponent(first).split('-');
    if (words[0] === 'once') words = times === 1 ? words.slice(1) : ['ok'];
    const mode = modes[words[0]];
    if (!mode) return json(res, 404, { error: 'no such thing' });
    return mode(call, res, words[1]);
  });
}

const tls = () => ({
  key: fs.readFileSync(path.join(dir, 'server.key')),
  cert: fs.readFileSync(path.join(dir, 'server.crt')),
});
const server = protocol === 'http2' ? require('http2').createSecureServer({ ...tls(), allowHTTP1: true }, handle)
  : protocol === 'https' ? require('https').createServer(tls(), handle)
    : require('http').createServer(handle);
server.on('clientError', (error, socket) => socket.destroy());
server.listen(port, '127.0.0.1', 4096, () => console.log('ready'));
