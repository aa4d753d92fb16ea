// The log of a run. Pages of it are read when they come into view.

import { Failure, get, oneAtATime } from "./api.js";
import { VirtualList } from "./list.js";
import { showWhen } from "./panel.js";
import { clock, lasted } from "./words.js";

const { make, add, count, label, percent } = parts;
const PAGE = 500;

export function events(panel, page, at) {
  let rows = [], total = 0, search = "", found = null, next = 0, isFirst = true, isClosed = false;
  const asked = new Set();
  const list = new VirtualList({ shape: "event", height: 40, empty: "no events", render, choose, near });
  list.box.setAttribute("aria-label", "Events");
  const input = make("input");
  Object.assign(input, { type: "search", placeholder: "Search events", id: "filter" });
  input.setAttribute("aria-label", "Search events");
  const note = make("span", "note");
  add(panel, add(make("div", "bar-of-tools"), input, note), list.box);

  const shownRow = (index) => (found ? found[index] : rows[index]);
  function render(index) {
    const row = shownRow(index);
    if (!row) return [make("div", "number", index), make("div", "time", "…")];
    return [make("div", "number", count(row[0])), make("div", "time", clock(row[1])), label("logged", row[2], row[3], []), track(row[1])];
  }
  function track(us) {
    const { first, last } = page.document;
    if (last <= first) return null;
    const bar = make("div", "bar logged point");
    bar.style.left = percent(Math.min(0.997, Math.max(0, (us - first) / (last - first))));
    return add(make("div", "track"), bar);
  }
  function choose(index) {
    const sequence = found ? found[index][0] : index, before = index ? shownRow(index - 1) : null;
    page.keep(sequence);
    showWhen("event " + count(sequence), async () => {
      const { row, details } = await get("event", { run: page.name, sequence });
      if (before) details.push(["after the one before", lasted(row[1] - before[1])]);
      return ["event " + count(row[0]) + ", " + row[2], details];
    });
  }
  async function fetchPage(number) {
    if (asked.has(number)) return;
    asked.add(number);
    try {
      const got = await get("events", { run: page.name, start: number * PAGE, limit: PAGE });
      if (isClosed) return;
      got.rows.forEach((row) => { rows[row[0]] = row; list.redraw(row[0]); });
      if (got.rows.length < PAGE) asked.delete(number); // more of it may come
    } catch (error) { asked.delete(number); throw error; }
  }
  function near(from, to) {
    if (found) { if (next >= 0 && to >= found.length) searchOn(true); return; }
    for (let n = Math.floor(from / PAGE); n <= Math.floor(Math.max(from, to - 1) / PAGE) && n * PAGE < total; n++)
      if (rows[Math.max(from, n * PAGE)] === undefined || rows[Math.min(to, total, (n + 1) * PAGE) - 1] === undefined) fetchPage(n).catch((error) => { if (!(error instanceof Failure)) throw error; });
  }
  const load = oneAtATime(async () => {
    if (isClosed) return;
    const got = await get("events", { run: page.name, start: total, limit: PAGE });
    if (isClosed) return;
    const wasAtEnd = list.isAtEnd();
    got.rows.forEach((row) => { rows[row[0]] = row; });
    const before = total;
    total = got.count;
    if (found) return;
    list.resize(total, { onlyMore: before > 0 });
    for (let index = before; index < total; index++) list.redraw(index);
    const isActive = page.document.status === "active";
    if (isFirst && at !== "") list.pick(Number(at), true);
    else if (wasAtEnd && (!isFirst || isActive)) list.toEnd();
    isFirst = false;
  });
  const searchOn = oneAtATime(async () => {
    if (next < 0 || !found || isClosed) return;
    const words = search;
    const got = await get("events", { run: page.name, start: next, limit: PAGE, words });
    if (isClosed || words !== search || !found) return;
    found = found.concat(got.rows);
    next = got.next;
    note.textContent = count(found.length) + (next < 0 ? " found" : " found so far");
    list.resize(found.length, { onlyMore: true });
    if (next >= 0 && found.length < 50) setTimeout(() => searchOn(true));
  });
  let timer = 0;
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      search = input.value.trim();
      found = search ? [] : null;
      next = 0;
      note.textContent = "";
      list.chosen = -1;
      list.resize(found ? 0 : total);
      if (found) searchOn(true);
    }, 150);
  });
  load();
  return {
    changed() { if (found && next < 0) { next = found.length ? found[found.length - 1][0] + 1 : 0; searchOn(); } load(); },
    close() { isClosed = true; list.close(); clearTimeout(timer); },
    headChanged() { list.refresh(); },
    focus: list.box,
  };
}
