// The traces of a run as trees. Each tree has the full width as its scale of time.

import { get, oneAtATime } from "./api.js";
import { VirtualList } from "./list.js";
import { showWhen } from "./panel.js";
import { clock, lasted } from "./words.js";

const { make, add, count, label, percent, button } = parts;
const ID = 0, PARENT = 1, AT = 2, OWN = 3, KIND = 4, NAME = 5, ABOUT = 6, TAGS = 7;
const OPEN_UP_TO = 2000; // traces: larger runs begin with their roots only

export function traces(panel, page, at) {
  const all = new Map(); // by id: { row, children, open, ... }
  let last = "", shown = [], isFirst = true, isClosed = false, words = [];
  const list = new VirtualList({ shape: "tree", height: 46, empty: "no traces", render, choose });
  list.box.setAttribute("aria-label", "Traces");
  const input = make("input");
  Object.assign(input, { type: "search", placeholder: "Search traces", id: "filter" });
  input.setAttribute("aria-label", "Search traces");
  const note = make("span", "note");
  const tools = add(make("div", "bar-of-tools"), input, button("expand all", () => openAll(true)), button("collapse all", () => openAll(false)), note);
  add(panel, tools, list.box);
  let isOpenUsually = true;

  function openAll(open) { isOpenUsually = open; for (const one of all.values()) one.open = open; lay(); }

  // In two steps, for a tree that is deeper than the stack: an order in which parents come first, and back.
  function lay() {
    const roots = [];
    for (const one of all.values()) { one.children = []; one.above = null; }
    for (const one of all.values()) {
      const above = one.row[PARENT] ? all.get(one.row[PARENT]) : null;
      if (above && above !== one) { above.children.push(one); one.above = above; } else roots.push(one);
    }
    const order = [], stack = roots.slice().reverse();
    while (stack.length) {
      const one = stack.pop();
      one.depth = one.above ? one.above.depth + 1 : 0;
      one.root = one.above ? one.above.root : one;
      order.push(one);
      for (let n = one.children.length - 1; n >= 0; n--) stack.push(one.children[n]);
    }
    for (let n = order.length - 1; n >= 0; n--) {
      const one = order[n];
      one.begin = one.row[AT];
      one.end = one.row[AT] + (one.row[OWN] ?? 0);
      one.hit = words.length ? (matches(one.row) ? 2 : 0) : 2;
      for (const child of one.children) {
        if (one.row[OWN] === null) one.end = Math.max(one.end, child.end);
        one.low = Math.min(one.low ?? Infinity, child.begin);
        if (child.hit && !one.hit) one.hit = 1;
      }
    }
    shown = [];
    for (const one of order) {
      one.seen = one.hit > 0 && (!one.above || (one.above.seen && (words.length > 0 || one.above.open)));
      if (one.seen) { one.place = shown.length; shown.push(one); }
    }
    list.resize(shown.length);
    note.textContent = words.length ? count(order.filter((one) => one.hit === 2).length) + " found" : "";
  }
  function matches(row) {
    const text = [row[NAME], row[ABOUT], ...row[TAGS]].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  }
  function render(index) {
    const one = shown[index], row = one.row;
    const text = label(row[KIND], row[NAME], row[ABOUT], row[TAGS]);
    const toggle = button(one.open ? "▾" : "▸", () => { one.open = !one.open; lay(); });
    toggle.className = "toggle" + (one.children.length ? "" : " leaf");
    toggle.tabIndex = -1;
    toggle.setAttribute("aria-label", one.open ? "Hide what is below" : "Show what is below");
    text.prepend(toggle);
    text.style.marginLeft = Math.min(one.depth, 12) * 0.9 + "rem";
    const length = one.end - one.begin;
    const took = row[OWN] !== null || length > 0 ? lasted(length) : "";
    return [make("div", "time", clock(row[AT])), text, make("div", "took", took), track(one)];
  }
  function track(one) {
    const root = one.root, whole = Math.max(1, root.end - root.begin);
    const from = Math.min(1, Math.max(0, (one.begin - root.begin) / whole)), to = Math.min(1, Math.max(from, (one.end - root.begin) / whole));
    const bar = make("div", "bar " + one.row[KIND] + (one.row[OWN] === null ? " open" : "") + (to > from ? "" : " point"));
    bar.style.left = percent(Math.min(from, 0.997));
    if (to > from) bar.style.width = percent(to - from);
    return add(make("div", "track"), bar);
  }
  function choose(index) {
    const row = shown[index].row;
    page.keep(row[ID]);
    showWhen(row[NAME], async () => [row[NAME], (await get("trace", { run: page.name, id: row[ID] })).details]);
  }
  const load = oneAtATime(async () => {
    if (isClosed) return;
    // Counted before the list is read: of what comes meanwhile nothing is taken for missing.
    const { counts } = await get("run", { run: page.name });
    let next = last;
    do {
      const got = await get("traces", { run: page.name, ...(next ? { after: next } : {}) });
      if (isClosed) return;
      for (const row of got.rows) if (!all.has(row[ID])) all.set(row[ID], { row, open: isOpenUsually });
      if (got.rows.length) last = got.rows[got.rows.length - 1][ID];
      next = got.next;
      const wanted = page.document.counts.traces;
      if (next) note.textContent = count(all.size) + " of " + count(wanted) + " read";
    } while (next);
    if (counts.traces > all.size && last) { // some have times before the last one's
      last = "";
      const found = all.size;
      let after = "";
      do {
        const got = await get("traces", { run: page.name, ...(after ? { after } : {}) });
        if (isClosed) return;
        for (const row of got.rows) if (!all.has(row[ID])) all.set(row[ID], { row, open: isOpenUsually });
        last = got.rows.length ? got.rows[got.rows.length - 1][ID] : last;
        after = got.next;
      } while (after);
      if (found === all.size) console.warn("some traces are counted and not listed");
    }
    if (isFirst && all.size > OPEN_UP_TO) openAll(false); else lay();
    if (isFirst && at !== "" && all.has(at)) {
      for (let one = all.get(at).above; one; one = one.above) one.open = true;
      lay();
      list.pick(all.get(at).place, true);
    }
    isFirst = false;
  });
  let timer = 0;
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => { words = input.value.toLowerCase().split(/\s+/).filter(Boolean); lay(); }, 120);
  });
  list.box.addEventListener("keydown", (event) => {
    const one = shown[list.chosen];
    if (!one || event.target !== list.box || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    event.preventDefault();
    if (event.key === "ArrowLeft" && one.above && (!one.open || !one.children.length)) { list.pick(one.above.place); return; }
    one.open = event.key === "ArrowRight";
    lay();
    list.pick(one.place);
  });
  load();
  return { changed: load, close() { isClosed = true; list.close(); clearTimeout(timer); }, focus: list.box };
}
