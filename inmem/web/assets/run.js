// One run: what its record says, and a tab for each of its primitives.

import { change, follow, get, oneAtATime } from "./api.js";
import { hideDetails, risky } from "./panel.js";
import { events } from "./events.js";
import { traces } from "./traces.js";
import { cells, keys, leases, queues } from "./tables.js";

const { make, add, count, terms, button } = parts;
const TABS = { events: ["Events", events], traces: ["Traces", traces], kv: ["KV", keys], cells: ["Cells", cells], leases: ["Leases", leases], queues: ["Queues", queues] };
export const TAB_NAMES = Object.keys(TABS);

export function runPage(main, store, name, query, go, keep) {
  const head = make("div", "headline");
  const about = make("div");
  const bar = make("div");
  bar.setAttribute("role", "tablist");
  const panel = make("div");
  panel.setAttribute("role", "tabpanel");
  add(main, head, about, bar, panel);
  const page = { name, store, document: null, go, keep: (at) => keep(link(tab, at)), query };
  let tab = null, shown = null, isClosed = false;

  function link(which, at) {
    const given = { ...(which ? { tab: which } : {}), ...(at === undefined || at === "" ? {} : { at }) };
    const search = new URLSearchParams(given).toString();
    return "/run/" + encodeURIComponent(name) + (search ? "?" + search : "");
  }
  const load = oneAtATime(async () => {
    let found;
    if (isClosed) return;
    try { found = await get("run", { run: name }); } catch (error) {
      if (isClosed) return;
      if (error.status !== 404 && error.status !== 400) throw error;
      gone(error.message);
      return;
    }
    if (isClosed) return;
    page.document = found;
    draw(found);
    if (tab === null) open(query.get("tab") in TABS ? query.get("tab") : usual(found.counts), query.get("at"));
    else shown.headChanged?.();
  });
  function usual(counts) { return TAB_NAMES.find((one) => counts[one]) || "events"; }
  function gone(message) {
    isClosed = true;
    stop();
    hideDetails();
    head.replaceChildren(make("h1", "", name), make("p", "failure", message));
    about.replaceChildren();
    bar.replaceChildren();
    shown?.close();
    shown = null;
    panel.replaceChildren();
  }
  function draw(found) {
    const title = make("h1", "", found.run);
    title.tabIndex = -1;
    head.replaceChildren(title);
    if (found.status) add(head, make("span", "badge " + found.status, found.status));
    for (const tag of found.tags) {
      const link = make("a", "tag", tag);
      link.href = "/?" + new URLSearchParams({ tag });
      link.dataset.link = "";
      add(head, link);
    }
    if (store.write && found.status) add(head, actions(found));
    if (found.error) add(head, make("p", "failure", found.error));
    const wasOpen = about.querySelector("details")?.open;
    about.replaceChildren(terms(found.facts));
    if (found.about.length) {
      const box = add(make("details"), make("summary", "", "metadata"), terms(found.about));
      box.open = Boolean(wasOpen);
      add(about, box);
    }
    const near = [...(found.parent ? [["below", found.parent]] : []), ...found.children.map(([id]) => ["", id])];
    if (near.length) {
      const links = make("div", "links");
      near.forEach(([word, id], index) => {
        if (word) add(links, make("span", "note", word));
        else if (index === (found.parent ? 1 : 0)) add(links, make("span", "note", "children"));
        const link = make("a", "", id);
        link.href = "/run/" + encodeURIComponent(id);
        link.dataset.link = "";
        add(links, link);
      });
      add(about, links);
    }
    for (const one of TAB_NAMES) {
      let button = bar.querySelector("#tab-" + one);
      if (!button) {
        button = add(make("button"), make("b", "", ""), make("span"));
        button.replaceChildren(TABS[one][0], make("span"));
        button.type = "button";
        button.id = "tab-" + one;
        button.setAttribute("role", "tab");
        button.addEventListener("click", () => open(one));
        bar.append(button);
      }
      button.lastChild.textContent = count(found.counts[one] || 0);
    }
  }
  function actions(found) {
    const box = make("span", "actions");
    const ask = (what) => change({ do: what, run: name }).then(() => load(true), (error) => alert(error.message));
    const may = { active: ["complete", "pause", "cancel"], paused: ["resume", "cancel"] }[found.status] || [];
    for (const what of may) add(box, what === "cancel" ? risky("cancel", "cancel this run?", () => ask(what)) : button(what, () => ask(what)));
    return add(box, risky("delete", "delete all of it?", () => ask("delete")));
  }
  function open(which, at) {
    if (tab === which || isClosed) return;
    shown?.close();
    hideDetails();
    tab = which;
    for (const button of bar.children) button.setAttribute("aria-selected", String(button.id === "tab-" + which));
    panel.replaceChildren();
    panel.setAttribute("aria-labelledby", "tab-" + which);
    shown = TABS[which][1](panel, page, at ?? "");
    keep(link(which, at ?? ""));
  }
  const stop = follow(name, {
    changed(kind) {
      if (kind === "gone") { gone("this run was deleted"); return; }
      load();
      if (kind === tab) shown?.changed();
    },
  });
  load();
  return { close() { isClosed = true; stop(); shown?.close(); hideDetails(); }, tab: (which) => open(which), get focus() { return shown?.focus; } };
}
