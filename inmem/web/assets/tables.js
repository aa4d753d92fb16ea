// Keys, cells, leases, queues: tables that are read anew when they have changed.

import { change, get, inTurn, oneAtATime } from "./api.js";
import { VirtualList } from "./list.js";
import { risky, showDetails, showWhen } from "./panel.js";
import { bytes, lasted, when } from "./words.js";

const { make, add, count, button } = parts;
const PAGE = 200, MOST = 5000;

function name(text) { return make("div", "label name", text); }
function value(text) { return make("div", "value", text); }
function time(us) { return make("div", "time", when(us)); }
function number(text) { return make("div", "number", text); }

// A table of pages under names in order. Rows whose version is another one than before are marked for a moment.
function paged(panel, page, options) {
  let rows = [], next = "", isClosed = false, isFirst = true, isAnother = false;
  const versions = new Map();
  const list = new VirtualList({
    shape: options.shape, height: 36, empty: options.empty,
    render(index, node) {
      if (rows[index].isFresh) node.classList.add("fresh");
      rows[index].isFresh = false; // it is marked once
      return options.cells(rows[index]);
    },
    choose: (index) => choose(rows[index][0]),
    near: (_, to) => { if (next && to >= rows.length) more(true); },
  });
  list.box.setAttribute("aria-label", options.label);
  const ask = (query) => get(options.what, { run: page.name, ...options.query?.(), ...query });
  function told(found) {
    const readAt = performance.now();
    for (const row of found) {
      row.isFresh = !isFirst && versions.get(row[0]) !== row[1];
      row.readAt = readAt;
      versions.set(row[0], row[1]);
    }
    return found;
  }
  const turn = inTurn(); // a page that is added must follow the rows that are there
  const load = oneAtATime(() => turn(async () => {
    if (isClosed) return;
    if (isAnother) { isFirst = true; versions.clear(); options.at = ""; }
    const limit = isAnother ? PAGE : Math.min(MOST, Math.max(PAGE, rows.length));
    isAnother = false;
    const got = await ask({ limit });
    if (isClosed) return;
    rows = told(got.rows);
    next = got.next;
    list.resize(rows.length);
    if (isFirst && options.at !== "") choose(options.at);
    isFirst = false;
  }));
  const more = oneAtATime(() => turn(async () => {
    if (!next || isClosed) return;
    const got = await ask({ after: next, limit: PAGE });
    if (isClosed) return;
    const wasFirst = isFirst;
    isFirst = true; // what comes by scrolling is not new
    rows = rows.concat(told(got.rows));
    isFirst = wasFirst;
    next = got.next;
    list.resize(rows.length, { onlyMore: true });
  }));
  function choose(key) {
    page.keep(key);
    showWhen(key, () => options.details(key));
  }
  const timer = setInterval(() => { if (options.ticks && rows.some(options.ticks)) list.refresh(); }, 1000);
  add(panel, ...(options.tools?.(() => { isAnother = true; load(true); }) || []), list.box);
  load();
  return { changed: load, close() { isClosed = true; clearInterval(timer); list.close(); }, focus: list.box };
}

export function keys(panel, page, at) {
  const input = make("input");
  Object.assign(input, { type: "search", placeholder: "Keys that begin with", id: "filter" });
  input.setAttribute("aria-label", "Keys that begin with");
  let timer = 0;
  async function details(key) {
    const found = await get("entry", { run: page.name, key });
    return [key, found.details, found.json === undefined ? [] : [edit(page, key, found.json, found.version)]];
  }
  return paged(panel, page, {
    what: "kv", shape: "kv", label: "Entries", empty: "no entries", at, details,
    query: () => (input.value ? { prefix: input.value } : {}),
    ticks: (row) => row[4] !== null, // the time that is left
    cells: (row) => {
      const [key, , at_, words, ttl, size] = row, left = ttl * 1e6 - (performance.now() - row.readAt) * 1000;
      return [name(key), time(at_), value(words), number(ttl === null ? bytes(size) : "for " + lasted(Math.max(0, left)))];
    },
    tools: (again) => {
      input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(again, 150); });
      const tools = add(make("div", "bar-of-tools"), input);
      if (page.store.write) add(tools, button("put a key", () => showDetails("A key", [], [edit(page, "", "")])));
      return [tools];
    },
  });
}

function edit(page, key, text, version) {
  const box = make("div", "edit"), field = make("input"), area = make("textarea"), said = make("span", "note");
  field.value = key;
  field.placeholder = "key";
  field.setAttribute("aria-label", "Key");
  area.value = text;
  area.setAttribute("aria-label", "Value as JSON");
  field.readOnly = Boolean(key);
  async function ask(what) {
    try {
      await change({ run: page.name, key: field.value, ...what });
      said.textContent = "done";
    } catch (error) { said.textContent = error.message; }
  }
  // What has changed since it was read is not overwritten. The next put begins with what this one has made.
  const put = async () => {
    await ask({ do: "put", value: area.value, ...(key ? { version } : {}) });
    if (key && said.textContent === "done") version = (await get("entry", { run: page.name, key })).version;
  };
  add(box, field, area, button("put this JSON", put));
  if (key) add(box, risky("remove the key", "remove it?", () => ask({ do: "remove" })));
  return add(box, said);
}

// No history of a cell is stored. What was seen while this page is open is shown.
export function cells(panel, page, at) {
  const seen = new Map();
  const shown = paged(panel, page, {
    what: "cells", shape: "cell", label: "Cells", empty: "no cells", at,
    cells: ([cell, version, at_, words]) => {
      const known = seen.get(cell) || [];
      if (!known.length || known[known.length - 1][0] !== version) seen.set(cell, [...known.slice(-49), [version, at_, words]]);
      return [name(cell), number("v" + count(version)), time(at_), value(words)];
    },
    async details(cell) {
      const found = await get("cell", { run: page.name, name: cell });
      const before = (seen.get(cell) || []).filter(([version]) => version < found.version).reverse();
      const lines = before.map(([version, at_, words]) => "v" + version + "  " + when(at_) + "  " + words).join("\n");
      return [cell, [...found.details, ["before, as seen by this page", lines]]];
    },
  });
  return shown;
}

export function leases(panel, page) {
  let rows = [], ahead = 0, isClosed = false;
  const list = new VirtualList({
    shape: "lease", height: 36, empty: "no leases are held",
    render: (index) => {
      const [lease, holder, , expires, token] = rows[index];
      const left = expires - (Date.now() * 1000 + ahead);
      return [name(lease), value(holder), number(left > 0 ? lasted(left) + " left" : "ran out"), number("token " + token)];
    },
    choose: (index) => {
      const [lease, holder, since, until, token] = rows[index];
      showDetails(lease, [["holder", holder], ["since", when(since)], ["until", when(until)], ["token", String(token)]]);
    },
  });
  list.box.setAttribute("aria-label", "Leases");
  const load = oneAtATime(async () => {
    if (isClosed) return;
    const got = await get("leases", { run: page.name });
    if (isClosed) return;
    rows = got.rows;
    ahead = got.now - Date.now() * 1000;
    list.resize(rows.length);
  });
  const timer = setInterval(() => list.refresh(), 1000); // the time that is left
  add(panel, list.box);
  load();
  return { changed: load, close() { isClosed = true; clearInterval(timer); list.close(); }, focus: list.box };
}

const STATES = ["ready", "delayed", "claimed", "dead"];

export function queues(panel, page, at) {
  let rows = [], jobs = [], open = at, ahead = 0, isClosed = false;
  const list = new VirtualList({
    shape: "queue", height: 36, empty: "no queues",
    render: (index) => [name(rows[index][0]), ...STATES.map((state) => number(rows[index][1][state] ? count(rows[index][1][state]) + " " + state : "–"))],
    choose: (index) => { open = rows[index][0]; page.keep(open); load(true); },
  });
  list.box.setAttribute("aria-label", "Queues");
  list.box.classList.add("short");
  const title = make("p", "note");
  const below = new VirtualList({
    shape: "job", height: 36, empty: "no jobs",
    render: (index) => {
      const job = jobs[index], left = job.time - (Date.now() * 1000 + ahead);
      const due = job.state === "delayed" ? "in " + lasted(Math.max(0, left)) : job.state === "claimed" ? job.worker + ", " + lasted(Math.max(0, left)) : "since " + when(job.put);
      return [name(job.id), make("div", "note", job.state), make("div", "time", due), value(job.line)];
    },
    choose: (index) => {
      const job = jobs[index];
      const about = "attempt " + job.attempt + " of " + job.most + (job.priority ? ", priority " + job.priority : "") + (job.key ? ", key " + job.key : "");
      const extra = page.store.write && job.state === "dead"
        ? [button("put it back", () => change({ do: "requeue", run: page.name, job: job.id }).catch((error) => alert(error.message)))] : [];
      showDetails(job.id, [["state", job.state], ["", about], ["worker", job.worker], ...job.details], extra);
    },
  });
  below.box.setAttribute("aria-label", "Jobs");
  const load = oneAtATime(async () => {
    if (isClosed) return;
    const got = await get("queues", { run: page.name });
    if (isClosed) return;
    rows = got.rows;
    ahead = got.now - Date.now() * 1000;
    list.resize(rows.length);
    list.box.style.height = (rows.length + 1) * 36 + "px";
    const row = rows.find(([queue]) => queue === open) || rows[0];
    if (!row) { jobs = []; below.resize(0); title.textContent = ""; return; }
    const pages = await Promise.all(STATES.filter((state) => row[1][state]).map((state) => get("jobs", { run: page.name, queue: row[0], state })));
    if (isClosed) return;
    jobs = pages.flatMap((each) => each.rows);
    title.textContent = row[0] + ": the first " + count(jobs.length) + " jobs";
    below.resize(jobs.length);
  });
  const timer = setInterval(() => below.refresh(), 1000);
  add(panel, list.box, title, below.box);
  load();
  return { changed: load, close() { isClosed = true; clearInterval(timer); list.close(); below.close(); }, focus: list.box };
}
