// The store: its writer, and the runs of its namespace.

import { follow, get, inTurn, oneAtATime } from "./api.js";
import { VirtualList } from "./list.js";
import { bytes, lasted, when } from "./words.js";

const { make, add, count, button } = parts;
const PAGE = 200, MOST = 5000, CURVE = 60;

export function overview(main, store, query, go, keep) {
  const cards = make("div", "cards");
  const tools = make("div", "bar-of-tools");
  const search = make("input");
  Object.assign(search, { type: "search", placeholder: "Search runs by id or tag", value: query.get("words") || "", id: "filter" });
  search.setAttribute("aria-label", "Search runs");
  const status = make("select");
  status.setAttribute("aria-label", "Status");
  const state = { rows: [], next: "", curve: [] };
  const others = make("div", "links");
  const list = new VirtualList({
    shape: "run-row", height: 38, empty: "no runs", render: (index) => runRow(state.rows[index]),
    choose: (index) => go("/run/" + encodeURIComponent(state.rows[index].id)),
    near: (_, to) => { if (state.next && to >= state.rows.length) more(true); },
  });
  list.box.setAttribute("aria-label", "Runs");

  function wanted() {
    return { words: search.value, status: status.value, tag: query.get("tag") || "", parent: query.get("parent") || "" };
  }
  let isClosed = false, isAnother = false; // another search: from its first page on
  const turn = inTurn();
  const load = oneAtATime(() => turn(async () => {
    if (isClosed) return;
    const limit = isAnother ? PAGE : Math.min(MOST, Math.max(PAGE, state.rows.length));
    isAnother = false;
    const found = await get("runs", { ...wanted(), limit });
    if (isClosed) return;
    state.rows = found.runs;
    state.next = found.next;
    list.resize(state.rows.length);
    options(found.stats);
    const links = [...(found.shared || []), ...(found.uncreated || [])].map((name) => {
      const link = make("a", "", name);
      link.href = "/run/" + encodeURIComponent(name);
      link.dataset.link = "";
      return link;
    });
    others.replaceChildren(...(links.length ? [make("span", "note", "not created, or shared:"), ...links] : []));
  }));
  const more = oneAtATime(() => turn(async () => {
    if (!state.next || isClosed) return;
    const found = await get("runs", { ...wanted(), after: state.next, limit: PAGE });
    if (isClosed) return;
    state.rows = state.rows.concat(found.runs);
    state.next = found.next;
    list.resize(state.rows.length, { onlyMore: true });
  }));
  function options(stats) {
    const total = Object.values(stats).reduce((a, b) => a + b, 0);
    const chosen = status.value || query.get("status") || "";
    const all = make("option", "", "all, " + count(total));
    all.value = "";
    status.replaceChildren(all, ...Object.entries(stats).map(([name, number]) => {
      const option = make("option", "", name + ", " + count(number));
      option.value = name;
      return option;
    }));
    status.value = stats[chosen] === undefined ? "" : chosen;
  }
  let timer = 0;
  function searched() {
    clearTimeout(timer);
    timer = setTimeout(() => {
      const given = Object.entries(wanted()).filter(([, value]) => value);
      keep("/" + (given.length ? "?" + new URLSearchParams(given) : ""));
      isAnother = true;
      load(true);
    }, 120);
  }
  search.addEventListener("input", searched);
  status.addEventListener("change", searched);
  add(tools, search, status);
  for (const name of ["tag", "parent"]) if (query.get(name)) add(tools, button(name + ": " + query.get(name) + " ×", () => go("/")));
  const title = make("h1", "", "Runs");
  title.tabIndex = -1;
  add(main, cards, add(make("div", "headline"), title), tools, others, list.box);
  search.value = query.get("words") || "";

  const stop = follow(null, {
    changed: () => load(),
    status: (told) => { if (told.status) cards.replaceChildren(...gauges(told, state, store)); },
  });
  load();
  return { close() { isClosed = true; stop(); list.close(); clearTimeout(timer); }, focus: list.box };
}

function runRow(run) {
  const label = add(make("div", "label"), make("span", "name", run.id));
  for (const tag of run.tags) add(label, make("span", "tag", tag));
  if (run.error) add(label, make("span", "about error", run.error));
  return [
    make("span", "badge " + run.status, run.status), label, make("div", "note label", run.parent ? "below " + run.parent : ""),
    make("div", "took", run.took), make("div", "time", "changed " + when(run.updated)),
  ];
}

function card(value, name) { return add(make("div", "card"), make("b", "", value), make("span", "", name)); }

function gauges(told, state, store) {
  const s = told.status, r = told.rates;
  state.curve.push(r ? r.commits : 0);
  state.curve = state.curve.slice(-CURVE);
  const commits = card(r ? count(Math.round(r.commits)) : "…", "commits/s");
  commits.append(curve(state.curve));
  const found = [commits, card(r ? count(Math.round(r.conflicts)) : "…", "conflicts/s"), card(count(s.clients), "clients")];
  if (store.local) {
    const held = s.oldest_snapshot_age_s;
    found.push(
      card(bytes(s.image_bytes), "of " + bytes(s.quota_bytes) + " in memory"), card(bytes(s.wal_bytes), "log"),
      card(held === null ? "–" : lasted(held * 1e6), "oldest snapshot"),
      card(s.durability, "durability"), card(String(s.writer_pid), "writer process, number " + s.epoch),
    );
  } else found.push(card(bytes(s.image_file_bytes), "tables and indices"), card(s.durability, "durability"));
  const hot = Object.entries(s.hot)[0];
  if (hot) found.push(card(hot[0].split("/").pop(), "busiest run, " + Math.round(hot[1] * 100) + " %"));
  return found;
}

function curve(values) {
  const space = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(space, "svg"), line = document.createElementNS(space, "path");
  const most = Math.max(1, ...values), step = 100 / (CURVE - 1), first = 100 - (values.length - 1) * step;
  picture.setAttribute("viewBox", "0 0 100 20");
  picture.setAttribute("preserveAspectRatio", "none");
  picture.setAttribute("aria-hidden", "true");
  line.setAttribute("d", values.map((value, n) => (n ? "L" : "M") + (first + n * step).toFixed(2) + " " + (19 - 18 * value / most).toFixed(2)).join(""));
  picture.append(line);
  return picture;
}
