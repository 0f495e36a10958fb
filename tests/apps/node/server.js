// A counter in memory, and endpoints that tests need. Listens on 127.0.0.1:$PORT.
//
// GET  /             steps the counter; {"count", "pid", "generation"}
// GET  /health       "ok"
// GET  /generation   the text of /run/edgepoint/generation, read at each request
// GET  /slow?ms=200  answers after a wait
// POST /echo         the body back, its sha256 in x-sha256
//
// Node's standard library only.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const http = require('node:http');

const GENERATION_FILE = '/run/edgepoint/generation';
const MAX_BODY_BYTES = 64 << 20;
const MAX_WAIT_MS = 60_000;

let count = 0;

function generation() {
  try {
    return fs.readFileSync(GENERATION_FILE, 'ascii').trim();
  } catch {
    return '0';
  }
}

// Head and body in one write.
function answer(res, status, body, headers) {
  res.writeHead(status, { 'content-length': Buffer.byteLength(body), ...headers });
  res.end(body);
}

const text = (res, status, body) =>
  answer(res, status, `${body}\n`, { 'content-type': 'text/plain; charset=utf-8' });
const json = (res, status, value) =>
  answer(res, status, `${JSON.stringify(value)}\n`, { 'content-type': 'application/json' });

function echo(req, res) {
  const pieces = [];
  let size = 0;
  req.on('data', (piece) => {
    size += piece.length;
    if (size <= MAX_BODY_BYTES) pieces.push(piece);
  });
  req.on('end', () => {
    if (size > MAX_BODY_BYTES) return text(res, 413, `the body may have up to ${MAX_BODY_BYTES} bytes`);
    const body = Buffer.concat(pieces);
    answer(res, 200, body, {
      'content-type': req.headers['content-type'] ?? 'application/octet-stream',
      'x-sha256': crypto.createHash('sha256').update(body).digest('hex'),
    });
  });
}

const server = http.createServer((req, res) => {
  const [path, query] = req.url.split('?', 2);
  if (req.method === 'POST') {
    return path === '/echo' ? echo(req, res) : text(res, 404, 'no such path');
  }
  switch (path) {
    case '/': {
      count += 1;
      const now = generation();
      return json(res, 200, { count, pid: process.pid, generation: /^\d+$/.test(now) ? Number(now) : now });
    }
    case '/health':
      return text(res, 200, 'ok');
    case '/generation':
      return text(res, 200, generation());
    case '/slow': {
      const ms = new URLSearchParams(query).get('ms') ?? '200';
      if (!/^\d{1,6}$/.test(ms) || Number(ms) > MAX_WAIT_MS) {
        return text(res, 400, `ms must be a whole number up to ${MAX_WAIT_MS}`);
      }
      return setTimeout(() => text(res, 200, 'slow'), Number(ms));
    }
    default:
      return text(res, 404, 'no such path');
  }
});

// Longer than a proxy keeps idle connections, so that it is the proxy who closes them.
server.keepAliveTimeout = 600_000;
server.on('error', (error) => {
  console.log(`node: ${error.message}`);
  process.exit(1);
});

const port = Number(process.env.PORT);
server.listen({ host: '127.0.0.1', port, backlog: 1024 }, () => {
  console.log(`node: listening on 127.0.0.1:${port}, pid ${process.pid}`);
});
