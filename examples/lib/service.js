// A small HTTP service with its own state on disk, as the examples use them.
//
//   const { serve } = require('../lib/service');
//   serve({ 'POST /emails': (request, state) => ({ effect: {...}, body: {...} }) });
//
//   SERVICE_PORT   where it listens, on 127.0.0.1
//   SERVICE_STATE  its journal
//
// The journal has one line for each request that had an effect: the effect and
// the answer, written and flushed before the answer leaves.  So a service that
// is killed knows all it has said, and a request that comes again with the same
// Idempotency-Key gets the same answer and has no second effect.  That is all
// the cooperation an HTTP participant owes.
//
// A handler gets { params, query, body, headers } and the list of effects so
// far, and returns { status, body, effect, later }: what it leaves out is 200,
// null, none and nothing; "later" is run once the answer is sent.
//
//   GET /effects      what it has really done, in order
//   PUT /mode {...}   how it misbehaves from now on:
//     latency    ms before each answer
//     fail       share of requests that get 503 and have no effect
//     decline    share that get 409
//     lose       share whose effect happens and whose answer is lost
'use strict';
const fs = require('fs');
const http = require('http');

const LIMIT = 1 << 20;

function load(file) {
  const lines = fs.existsSync(file) ? fs.readFileSync(file, 'utf8').split('\n') : [];
  const whole = lines.slice(0, -1).map(line => JSON.parse(line));
  // a line that was being written when we were killed was never answered
  if (lines.length && lines[lines.length - 1] !== '') {
    fs.writeFileSync(file, whole.map(r => JSON.stringify(r) + '\n').join(''));
  }
  return whole;
}

function read(request) {
  return new Promise((resolve, reject) => {
    const parts = [];
    let size = 0;
    request.on('data', part => {
      size += part.length;
      if (size > LIMIT) { reject(new Error('too large')); request.destroy(); return; }
      parts.push(part);
    });
    request.on('end', () => resolve(Buffer.concat(parts).toString('utf8')));
    request.on('error', reject);
  });
}

function match(routes, method, path) {
  for (const [route, handler] of Object.entries(routes)) {
    const [routeMethod, pattern] = route.split(' ');
    if (routeMethod !== method) continue;
    const want = pattern.split('/'), have = path.split('/');
    if (want.length !== have.length) continue;
    const params = {};
    if (want.every((part, i) => part.startsWith(':')
      ? (params[part.slice(1)] = decodeURIComponent(have[i]), have[i] !== '')
      : part === have[i])) return { handler, params };
  }
  return null;
}

// started(effects) is called once, with what was done in earlier lives.
function serve(routes, started) {
  const file = process.env.SERVICE_STATE;
  const journal = load(file);
  const out = fs.openSync(file, 'a');
  const effects = journal.map(line => line.effect);
  const answers = new Map(journal.filter(line => line.key).map(line => [line.key, line.answer]));
  let mode = {};

  const chance = share => Math.random() < (share || 0);
  const pause = ms => new Promise(resolve => setTimeout(resolve, ms));

  async function answer(request) {
    const url = new URL(request.url, 'http://service');
    const text = await read(request);
    const body = text === '' ? null : JSON.parse(text);
    if (request.method === 'GET' && url.pathname === '/effects') return { body: effects };
    if (request.method === 'PUT' && url.pathname === '/mode') { mode = body; return {}; }

    if (mode.latency) await pause(mode.latency);
    const key = request.headers['idempotency-key'];
    if (key && answers.has(key)) return answers.get(key);
    if (chance(mode.fail)) return { status: 503, body: { error: 'out of order' } };
    if (chance(mode.decline)) return { status: 409, body: { error: 'not today' } };

    const found = match(routes, request.method, url.pathname);
    if (!found) return { status: 404, body: { error: 'no such thing here' } };
    const result = await found.handler({
      params: found.params, query: url.searchParams, body, headers: request.headers,
    }, effects);
    if (result.effect) {
      const said = { status: result.status, body: result.body };
      const effect = { ...result.effect, at: Date.now() };
      fs.writeSync(out, JSON.stringify({ key, effect, answer: said }) + '\n');
      fs.fsyncSync(out);
      effects.push(effect);
      if (key) answers.set(key, said);
    }
    if (result.effect && chance(mode.lose)) {
      // the work is done all the same, but its answer is lost
      request.socket.destroy();
      if (result.later) result.later();
      return null;
    }
    return result;
  }

  const server = http.createServer((request, response) => {
    answer(request).then(result => {
      if (!result || response.destroyed) return;
      const text = JSON.stringify(result.body === undefined ? null : result.body);
      response.writeHead(result.status || 200, { 'Content-Type': 'application/json' });
      response.end(text, () => result.later && result.later());
    }).catch(error => {
      if (response.headersSent || response.destroyed) return;
      response.writeHead(error instanceof SyntaxError ? 400 : 500, { 'Content-Type': 'application/json' });
      response.end(JSON.stringify({ error: String(error.message) }));
    });
  });
  server.keepAliveTimeout = 60000;
  server.listen(Number(process.env.SERVICE_PORT), '127.0.0.1', () => started && started([...effects]));
}

module.exports = { serve };
