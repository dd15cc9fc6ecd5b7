// SPDX-License-Identifier: Apache-2.0
// What a directory knows, drawn. Asks /api/fleet again as soon as there is something newer, and
// changes only what has changed on the page. Every name comes from somebody else: text goes in by
// textContent alone.
'use strict';

const STOPS = ['source', 'stage', 'slot', 'publish', 'discover', 'transfer', 'install',
  'postprocess', 'ack'];
const MANY = 16;            // workers beyond this are counted, and listed on demand
const LISTED = 200;
const SILENT_MS = 2000;     // who reads for longer says so each second
const TOKEN = 'weir-token';
const bar = document.getElementById('bar');
const page = document.getElementById('fleet');
const rates = new Map();    // worker and version: what it had when, and how fast it is
let fleet = null;
let health = { kind: 'warn', text: 'connecting' };
let chosen = decodeURIComponent(location.hash.slice(1));

/* ---- drawing: a node is { tag, attributes, children }, and what is there is changed to match ---*/

function real(children) {
  return children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false);
}

function h(tag, attributes, ...children) {
  return { tag, attributes: attributes || {}, children: real(children) };
}

function setAttributes(element, wanted) {
  const before = element.drawn || {};
  for (const name of Object.keys(before)) {
    if (!(name in wanted) && !name.startsWith('on')) {
      element.removeAttribute(name);
    }
  }
  for (const [name, value] of Object.entries(wanted)) {
    if (name.startsWith('on')) {
      element[name] = value;
    } else if (name === 'place') {      // style attributes are not allowed here, properties are
      for (const [property, length] of Object.entries(value)) {
        if (element.style[property] !== length) {
          element.style[property] = length;
        }
      }
    } else if (before[name] !== value) {
      element.setAttribute(name, value);
    }
  }
  element.drawn = wanted;
}

function draw(parent, wanted) {
  const children = real(wanted);
  children.forEach((child, i) => {
    let there = parent.childNodes[i];
    if (typeof child !== 'object') {
      const text = String(child);
      if (there && there.nodeType === Node.TEXT_NODE) {
        if (there.textContent !== text) {
          there.textContent = text;
        }
      } else if (there) {
        parent.replaceChild(document.createTextNode(text), there);
      } else {
        parent.appendChild(document.createTextNode(text));
      }
      return;
    }
    if (!there || there.nodeType !== Node.ELEMENT_NODE ||
        there.localName !== child.tag) {
      const made = document.createElement(child.tag);
      if (there) {
        parent.replaceChild(made, there);
      } else {
        parent.appendChild(made);
      }
      there = made;
    }
    setAttributes(there, child.attributes);
    draw(there, child.children);
  });
  while (parent.childNodes.length > children.length) {
    parent.removeChild(parent.lastChild);
  }
}

/* ---- figures ----------------------------------------------------------------------------------*/

const whole = new Intl.NumberFormat('en');

function bytes(n) {
  const units = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];
  let i = 0;
  while (n >= 999.5 && i < units.length - 1) {
    n /= 1000;
    i++;
  }
  return (i === 0 ? String(Math.round(n)) : n.toPrecision(3)) + ' ' + units[i];
}

function span(seconds) {
  if (seconds < 0.001) return Math.round(seconds * 1e6) + ' µs';
  if (seconds < 1) return (seconds * 1e3).toPrecision(3) + ' ms';
  if (seconds < 60) return seconds.toFixed(seconds < 10 ? 2 : 1) + ' s';
  if (seconds < 3600) return Math.floor(seconds / 60) + ' min ' + Math.floor(seconds % 60) + ' s';
  if (seconds < 172800) return Math.floor(seconds / 3600) + ' h ' + Math.floor(seconds / 60 % 60) + ' min';
  return Math.floor(seconds / 86400) + ' d';
}

function age(ms) {
  if (!ms) return '–';
  const seconds = Math.max(0, (fleet.now_ms - ms) / 1000);
  return seconds < 60 ? Math.floor(seconds) + ' s' : span(seconds);
}

function plural(n, one, many) {
  return whole.format(n) + ' ' + (n === 1 ? one : many || one + 's');
}

/* ---- who is who -------------------------------------------------------------------------------*/

// A worker id is its name, and eight random digits for this life of it.
function nameOf(workerId) {
  return workerId.replace(/-[0-9a-f]{8}$/, '');
}

function kindOf(role) {
  if (role === 'trainer') return 'trainer';
  return role === 'inference_replica' || role === 'replica' ? 'replica' : 'other';
}

function label(worker) {
  if (kindOf(worker.role) === 'trainer') return 'rank ' + worker.rank;
  const name = nameOf(worker.worker_id);
  return worker.rank > 0 ? name + ' · ' + worker.rank : name;
}

// Flat lists to one object per model and run.
function runsOf(all) {
  const runs = new Map();
  const get = (model, run) => {
    const key = model + '\n' + run;
    if (!runs.has(key)) {
      runs.set(key, { model, run, trainer: [], replica: [], other: [], versions: [], refits: [],
        flights: [], groups: [] });
    }
    return runs.get(key);
  };
  const runOfWorker = new Map();
  const registered = new Map(all.workers.map((w) => [w.worker_id, w]));
  for (const source of all.sources) {
    const worker = registered.get(source.worker_id);
    get(source.model, source.run)[kindOf(source.role)].push({ ...source,
      isGone: all.workers_left_out === 0 && source.role !== '' && !worker,
      isSuperseded: Boolean(worker && worker.superseded) });
    runOfWorker.set(source.worker_id, source.run);
  }
  all.groups.forEach((g) => get(g.model, g.run).groups.push(g));
  all.versions.forEach((v) => get(v.model, v.run).versions.push(v));
  all.refits.forEach((r) => get(r.model, r.run).refits.push(r));
  const anyRun = (model) => ([...runs.values()].find((r) => r.model === model) || { run: '' }).run;
  for (const flight of all.in_flight) {
    const run = runOfWorker.has(flight.worker_id) ? runOfWorker.get(flight.worker_id)
      : anyRun(flight.model);
    get(flight.model, run).flights.push(flight);
  }
  for (const worker of all.workers) {   // registered, and nothing published or held yet
    if (!runOfWorker.has(worker.worker_id) && !worker.superseded && all.sources_left_out === 0) {
      get(worker.model, anyRun(worker.model))[kindOf(worker.role)].push({ ...worker, rank: 0,
        status: 'WAITING', host: '', run: '' });
    }
  }
  return [...runs.values()].filter((r) => chosen === '' || r.model === chosen);
}

/* ---- the bar ----------------------------------------------------------------------------------*/

function choose(model) {
  chosen = model;
  history.replaceState(null, '', '#' + encodeURIComponent(model));
  drawAll();
}

function drawBar() {
  const d = fleet ? fleet.directory : null;
  const models = fleet ? [...new Set([...fleet.sources, ...fleet.versions].map((s) => s.model))] : [];
  const button = (model, text) => h('button', { type: 'button', onclick: () => choose(model),
    'aria-pressed': String(chosen === model) }, text);
  draw(bar, [
    h('span', { class: 'brand' }, 'Weir'),
    h('span', { class: 'place' }, location.host),
    h('span', { class: 'health', id: 'health' }, h('i', { class: 'dot ' + health.kind }), health.text),
    models.length > 1 && h('nav', { class: 'models' }, button('', 'all models'),
      models.slice(0, 24).map((m) => button(m, m))),
    d && h('span', { class: 'facts' },
      h('span', {}, h('b', {}, whole.format(d.workers)), ' workers'),
      h('span', {}, h('b', {}, whole.format(d.versions)), ' versions'),
      h('span', {}, h('b', {}, whole.format(d.leases)), ' leases'),
      h('span', { class: 'wide-only' }, h('b', {}, whole.format(d.waits)), ' waiting calls'),
      h('span', { class: 'wide-only' }, h('b', {}, bytes(d.store_bytes)), ' records'),
      h('span', {}, 'up ', h('b', {}, span(d.uptime_s)))),
  ]);
}

/* ---- cards ------------------------------------------------------------------------------------*/

function card(id, title, side, attributes, ...children) {
  return h('section', { ...attributes, class: 'card ' + (attributes.class || ''), 'data-card': id },
    h('header', {}, h('h3', {}, title), side !== '' && h('span', { class: 'side' }, side)), children);
}

function statusChip(worker) {
  if (worker.isSuperseded) return h('span', { class: 'chip' }, 'superseded');
  if (worker.isGone) return h('span', { class: 'chip bad' }, 'gone');
  const kinds = { READY: 'good', INITIALIZING: 'cool', STALE: 'bad', GONE: 'bad', WAITING: '' };
  const kind = worker.status in kinds ? kinds[worker.status] : 'warn';
  return h('span', { class: 'chip ' + kind }, worker.status.toLowerCase());
}

function workerRow(worker, isTrainer) {
  return h('tr', { 'data-worker': worker.worker_id },
    h('td', { class: isTrainer ? 'num' : 'cut' }, isTrainer ? String(worker.rank) : label(worker)),
    h('td', { class: 'num' }, worker.version ? String(worker.version) : '–'),
    h('td', {}, statusChip(worker)),
    h('td', { class: 'cut soft wide-only', title: worker.worker_id }, worker.host || worker.endpoint || '–'),
    h('td', { class: 'num soft' }, age(worker.updated_ms)));
}

function workerTable(workers, isTrainer) {
  return h('table', {},
    h('thead', {}, h('tr', {}, h('th', { class: isTrainer ? 'num c-rank' : '' },
      isTrainer ? 'rank' : 'replica'), h('th', { class: 'num c-version' }, 'version'),
    h('th', { class: 'c-state' }, 'state'), h('th', { class: 'wide-only' }, isTrainer ? 'endpoint' : 'host'),
    h('th', { class: 'num c-age' }, 'heard'))),
    h('tbody', {}, workers.map((w) => workerRow(w, isTrainer))));
}

// Of many: how many hold which version, and in what state.
function shares(groups) {
  const most = Math.max(...groups.map((g) => g.n));
  const sorted = [...groups].sort((a, b) => (b.version || 0) - (a.version || 0) || b.n - a.n);
  return h('div', { class: 'share' }, sorted.slice(0, 8).map((g) => [
    h('span', {}, !g.version ? 'no version' : 'version ' + g.version,
      g.status === 'READY' ? '' : ' ' + g.status.toLowerCase()),
    h('span', { class: 'track' }, h('i', { place: { width: 100 * g.n / most + '%' } })),
    h('span', { class: 'num' }, whole.format(g.n))]));
}

function sortWorkers(workers) {
  return [...workers].sort((a, b) => a.rank - b.rank && kindOf(a.role) === 'trainer' ? a.rank - b.rank
    : a.worker_id < b.worker_id ? -1 : 1);
}

function workersCard(run, kind, title) {
  const isTrainer = kind === 'trainer';
  const groups = run.groups.filter((g) => kindOf(g.role) === kind);
  const waiting = run[kind].filter((w) => w.status === 'WAITING').length;
  const n = groups.reduce((sum, g) => sum + g.n, 0) + waiting;
  const ready = groups.reduce((sum, g) => sum + (g.status === 'READY' ? g.n : 0), 0);
  const workers = sortWorkers(run[kind]);
  const side = n === 0 ? '' : ready === n ? whole.format(n) + ' ready'
    : whole.format(ready) + ' of ' + whole.format(n) + ' ready';
  return card(kind, title, side, {},
    n === 0 ? h('p', { class: 'none' }, isTrainer ? 'No rank has published.' : 'No replica is here.')
      : n <= MANY ? workerTable(workers, isTrainer)
        : [shares(groups), h('details', {}, h('summary', {}, 'Each of them'),
          workerTable(workers.slice(0, LISTED), isTrainer),
          n > LISTED && h('p', { class: 'none' }, 'and ' + whole.format(n - LISTED) + ' more'))]);
}

/* ---- a refit in flight ------------------------------------------------------------------------*/

function measure(flight) {
  const key = flight.worker_id + '\n' + flight.version + '\n' + flight.stop;
  const before = rates.get(key);
  if (!before) {
    rates.set(key, { done: flight.done_bytes, at: flight.at_ms, rate: 0, seen: fleet.now_ms });
  } else if (flight.at_ms > before.at) {
    const rate = Math.max(0, flight.done_bytes - before.done) / (flight.at_ms - before.at) * 1000;
    rates.set(key, { done: flight.done_bytes, at: flight.at_ms, seen: fleet.now_ms,
      rate: before.rate > 0 ? 0.6 * before.rate + 0.4 * rate : rate });
  } else {
    before.seen = fleet.now_ms;
  }
  return rates.get(key).rate;
}

function flightCard(run) {
  if (run.flights.length === 0) return null;
  const flights = run.flights.map((f) => ({ ...f, rate: measure(f) }));
  const done = flights.reduce((sum, f) => sum + f.done_bytes, 0);
  const total = flights.reduce((sum, f) => sum + f.total_bytes, 0);
  const rate = flights.reduce((sum, f) => sum + f.rate, 0);
  const left = (f) => f.rate > 0 ? (f.total_bytes - f.done_bytes) / f.rate : Infinity;
  const slowest = flights.reduce((worst, f) => {
    const a = f.total_bytes ? f.done_bytes / f.total_bytes : 1;
    const b = worst.total_bytes ? worst.done_bytes / worst.total_bytes : 1;
    return a < b ? f : worst;
  });
  const seconds = left(slowest);
  const versions = [...new Set(flights.map((f) => f.version))];
  const figure = (name, value) => h('div', {}, h('span', {}, name), h('b', {}, value));
  const percent = (f) => (f.total_bytes ? 100 * f.done_bytes / f.total_bytes : 0).toFixed(1) + '%';
  return card('flight', 'In flight', 'version ' + versions.join(', ') + ' to ' +
    plural(flights.length, 'worker'), { class: 'wide' },
  h('div', { class: 'track' }, h('i', { place: { width: (total ? 100 * done / total : 0) + '%' } })),
  h('div', { class: 'figures' }, figure('moved', bytes(done) + ' of ' + bytes(total)),
    figure('rate', rate > 0 ? bytes(rate) + '/s' : '–'),
    figure('left', Number.isFinite(seconds) ? span(seconds) : '–'),
    figure('slowest link', (slowest.slowest_from ? nameOf(slowest.slowest_from) + ' → ' : '') +
      nameOf(slowest.worker_id))),
  flights.length <= MANY && h('div', { class: 'links' }, flights.map((f) => [
    h('span', { class: 'cut', title: f.worker_id }, nameOf(f.worker_id)),
    h('span', { class: 'track' }, h('i', { place: { width: percent(f) } })),
    h('span', { class: 'num soft rate' }, bytes(f.done_bytes) + ' ' + f.stop),
    h('span', { class: 'num' }, f.rate > 0 ? bytes(f.rate) + '/s' : percent(f))])));
}

/* ---- the last refits --------------------------------------------------------------------------*/

function stopsOf(word) {
  return word.stops.filter((s) => STOPS.includes(s.name));
}

// Who refused may have come at any time: its lane begins at its own first stop.
function lane(word, first, end) {
  const width = Math.max(1, end - first);
  const stops = stopsOf(word);
  const took = stops.reduce((sum, s) => sum + s.duration_us, 0) / 1e6;
  const isRefused = word.status !== 'OK';
  const begin = isRefused && stops.length > 0 ? stops[0].begun_us : first;
  return h('div', { class: 'lane' + (isRefused ? ' refused' : ''), 'data-worker': word.worker_id },
    h('span', { class: 'who cut', title: word.worker_id }, label(word)),
    h('span', { class: 'spans' }, stops.map((s) => h('i', { class: s.name, 'data-stop': s.name,
      title: s.name + ' ' + span(s.duration_us / 1e6), place: {
        left: 100 * (s.begun_us - begin) / width + '%', width: 100 * s.duration_us / width + '%' } }))),
    h('span', { class: 'took' }, isRefused ? h('span', { class: 'chip bad' }, 'refused') : span(took)));
}

// The slowest of many, each side.
function lanesOf(words) {
  const took = (w) => stopsOf(w).reduce((sum, s) => sum + s.duration_us, 0);
  const pick = (role) => {
    const all = words.filter((w) => kindOf(w.role) === role);
    const kept = new Set([...all].sort((a, b) => took(b) - took(a)).slice(0, 8));
    return all.filter((w) => kept.has(w)).sort((a, b) => a.rank - b.rank ||
      (a.worker_id < b.worker_id ? -1 : 1));
  };
  return [...pick('trainer'), ...pick('replica')];
}

function refit(one) {
  const lanes = lanesOf(one.words);
  const good = lanes.filter((w) => w.status === 'OK');
  const stops = (good.length > 0 ? good : lanes).flatMap(stopsOf);
  const begin = Math.min(...stops.map((s) => s.begun_us));
  const end = Math.max(...stops.map((s) => s.begun_us + s.duration_us));
  const installed = one.n_replicas - one.n_refused;
  const moved = one.words.reduce((sum, w) => sum + (kindOf(w.role) === 'replica' ? w.bytes : 0), 0);
  const hidden = one.n_words - lanes.length;
  return h('div', { class: 'refit', 'data-version': String(one.version) },
    h('div', { class: 'what' }, h('b', {}, 'Version ' + one.version),
      h('span', { class: 'soft' }, plural(Math.max(0, installed), 'install') +
        (moved > 0 && one.words_left_out === 0 ? ' · ' + bytes(moved) : '') +
        (hidden > 0 ? ' · the slowest; ' + whole.format(hidden) + ' others are not shown' : '')),
      one.n_refused > 0 && h('span', { class: 'chip bad' }, plural(one.n_refused, 'refusal'))),
    lanes.map((w) => lane(w, begin, end)),
    stops.length > 0 && h('div', { class: 'axis' }, h('span', {}),
      h('div', {}, h('span', {}, '0'), h('span', {}, span((end - begin) / 1e6))), h('span', {})));
}

function refitsCard(run) {
  const seen = new Set(run.refits.flatMap((r) => r.words.flatMap((w) => stopsOf(w).map((s) => s.name))));
  const legend = h('span', { class: 'legend' }, STOPS.filter((s) => seen.has(s))
    .map((s) => h('span', {}, h('i', { class: s }), s)));
  return card('refits', 'Last refits', legend, { class: 'wide' },
    run.refits.length === 0 ? h('p', { class: 'none' }, 'None yet.')
      : run.refits.slice(0, 5).map(refit));
}

function refusalsCard(run) {
  const refused = run.refits.flatMap((r) => r.words.filter((w) => w.status !== 'OK')
    .map((w) => ({ ...w, version: r.version })))
    .sort((a, b) => b.at_ms - a.at_ms);
  const aborted = run.versions.filter((v) => v.state === 'ABORTED').map((v) => ({ version: v.version,
    worker_id: '', role: '', rank: 0, status: 'ABORTED', text: v.reason, at_ms: v.ready_ms || v.created_ms }));
  const all = [...refused, ...aborted];
  return all.length > 0 && card('refusals', 'Refusals', String(all.length), { class: 'wide' },
    all.slice(0, 12).map((w) => h('div', { class: 'refusal' },
      h('span', {}, 'version ' + w.version),
      h('span', { class: 'cut soft', title: w.worker_id }, w.worker_id ? label(w) : 'the version'),
      h('span', { class: 'why' }, h('b', {}, w.status.replace(/^ERR_/, '').toLowerCase().replace(/_/g, ' ')), w.text),
      h('span', { class: 'num soft' }, age(w.at_ms)))));
}

/* ---- versions and leases ----------------------------------------------------------------------*/

function versionsCard(run) {
  const kinds = { READY: 'good', STAGING: 'cool', RELEASING: '', ABORTED: 'bad' };
  return card('versions', 'Versions', '', {}, run.versions.length === 0
    ? h('p', { class: 'none' }, 'None.')
    : h('table', {}, h('thead', {}, h('tr', {}, h('th', { class: 'num c-version' }, 'version'),
      h('th', { class: 'c-state' }, 'state'), h('th', {}, 'shards'), h('th', { class: 'num c-age' }, 'made'))),
    h('tbody', {}, run.versions.slice(0, 8).map((v) => h('tr', { 'data-version': String(v.version) },
      h('td', { class: 'num' }, v.version === undefined ? v.uid : String(v.version)),
      h('td', {}, v.unreadable ? h('span', { class: 'chip bad', title: 'nobody can read it' }, 'unreadable')
        : h('span', { class: 'chip ' + kinds[v.state] }, v.state.toLowerCase())),
      h('td', { class: 'cut soft', title: (v.gone || []).map((g) => g.slot + ' of ' + g.worker_id).join(', ') },
        v.covered + ' of ' + v.slots,
        v.missing && v.missing.length > 0 && (v.unreadable || v.state === 'STAGING')
          ? ' · missing ' + v.missing.join(', ') : '',
        v.attempt > 1 ? ' · attempt ' + v.attempt : ''),
      h('td', { class: 'num soft' }, age(v.created_ms)))))));
}

function leasesCard(run) {
  const flies = (v, l) => run.flights.some((f) => f.worker_id === l.worker_id && f.version === v.version);
  const leases = run.versions.flatMap((v) => v.leases.map((l) => ({ ...l, version: v.version,
    isSilent: l.begun_ms + SILENT_MS < fleet.now_ms && !flies(v, l) })))
    .sort((a, b) => b.isSilent - a.isSilent);
  const n = run.versions.reduce((sum, v) => sum + v.n_leases, 0);
  return card('leases', 'Leases', n > 0 ? whole.format(n) : '', {}, n === 0
    ? h('p', { class: 'none' }, 'Nobody is reading.')
    : h('table', {}, h('thead', {}, h('tr', {}, h('th', { class: 'num c-version' }, 'version'),
      h('th', {}, 'read by'), h('th', { class: 'num c-age' }, 'ends in'))),
    h('tbody', {}, leases.slice(0, 8).map((l) => h('tr', {},
      h('td', { class: 'num' }, String(l.version)),
      h('td', { class: 'cut', title: l.worker_id }, nameOf(l.worker_id),
        l.isSilent && h('span', { class: 'soft' }, l.said_ms ? ' · in ' + l.stop + ', silent for ' + age(l.said_ms)
          : ' · reads for ' + age(l.begun_ms) + ', has said nothing'),
        l.isSilent && h('span', { class: 'chip bad' }, 'silent')),
      h('td', { class: 'num soft' }, Math.max(0, Math.round((l.expires_ms - fleet.now_ms) / 1000)) + ' s'))))));
}

/* ---- the page ---------------------------------------------------------------------------------*/

function runSection(run) {
  const ready = run.versions.filter((v) => v.state === 'READY').map((v) => v.version);
  const newest = ready.length > 0 ? Math.max(...ready) : null;
  const holders = run.groups.filter((g) => kindOf(g.role) === 'replica' && g.status === 'READY');
  const n = holders.reduce((sum, g) => sum + g.n, 0);
  const held = holders.reduce((sum, g) => sum + (g.version === newest ? g.n : 0), 0);
  return h('article', { class: 'run', 'data-run': run.run },
    h('div', { class: 'title' }, h('h2', {}, run.model),
      run.run !== '' && h('span', { class: 'soft' }, 'run ' + run.run),
      newest !== null && h('span', { class: 'held' }, 'version ', h('b', {}, String(newest)),
        n > 0 ? ' held by ' + whole.format(held) + ' of ' + whole.format(n) : '')),
    h('div', { class: 'grid' }, flightCard(run), workersCard(run, 'trainer', 'Trainer ranks'),
      workersCard(run, 'replica', 'Replicas'),
      run.other.length > 0 && workersCard(run, 'other', 'Other sources'),
      refitsCard(run), refusalsCard(run), versionsCard(run), leasesCard(run)));
}

function drawAll() {
  drawBar();
  if (!fleet) return;
  const runs = runsOf(fleet);
  draw(page, runs.length > 0 ? runs.map(runSection)
    : [h('p', { class: 'note' }, 'Nothing has been published here yet. Trainers and replicas appear as soon ' +
      'as they speak to this directory.')]);
  const inFlight = fleet.in_flight.length;
  document.title = (inFlight > 0 ? '● ' : '') + 'Weir · ' + location.host;
  for (const [key, rate] of rates) {
    if (fleet.now_ms - rate.seen > 60000) rates.delete(key);
  }
}

function askForToken(text) {
  return new Promise((resolve) => {
    drawBar();
    draw(page, [h('form', { class: 'ask', onsubmit: (event) => {
      event.preventDefault();
      sessionStorage.setItem(TOKEN, event.target.querySelector('input').value.trim());
      draw(page, []);
      resolve();
    } }, h('h2', {}, 'This directory asks for a token'), h('p', { class: 'soft' }, text),
    h('input', { type: 'password', name: 'token', autocomplete: 'off', required: 'required',
      'aria-label': 'token' }), h('button', { type: 'submit' }, 'Show the fleet'))]);
    page.querySelector('input').focus();
  });
}

/* ---- asking -----------------------------------------------------------------------------------*/

const sleep = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

async function ask(after, waitMs) {
  const token = sessionStorage.getItem(TOKEN);
  const answer = await fetch('/api/fleet?after=' + after + '&wait_ms=' + waitMs, {
    headers: token ? { Authorization: 'Bearer ' + token } : {},
    signal: AbortSignal.timeout(waitMs + 15000) });
  if (answer.status === 401) {
    await askForToken(token ? 'The one that was given is not it.' : 'It stays in this tab.');
    return null;
  }
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

async function watch() {
  let after = 0;
  let failures = 0;
  for (;;) {
    try {
      const moving = fleet && (fleet.in_flight.length > 0 || fleet.directory.leases > 0);
      const got = await ask(after, moving ? 500 : 15000);
      if (got === null) {
        after = 0;
        continue;
      }
      fleet = got;
      after = got.revision;
      failures = 0;
      health = got.directory.trouble === '' ? { kind: 'good', text: 'live' }
        : { kind: 'bad', text: got.directory.trouble };
      drawAll();
      await sleep(document.hidden ? 2000 : 200);
    } catch (error) {
      failures++;
      after = 0;
      health = { kind: failures > 1 ? 'bad' : 'warn', text: error.name === 'TypeError' ||
        error.name === 'TimeoutError' ? 'not reachable, asking again' : error.message };
      drawBar();
      await sleep(Math.min(5000, 500 * failures));
    }
  }
}

window.addEventListener('hashchange', () => {
  chosen = decodeURIComponent(location.hash.slice(1));
  drawAll();
});
drawAll();
watch();
