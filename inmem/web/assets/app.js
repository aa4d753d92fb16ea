// Which view is shown, and the keys that work everywhere.

import { get, tell } from "./api.js";
import { overview } from "./overview.js";
import { hideDetails } from "./panel.js";
import { TAB_NAMES, runPage } from "./run.js";

const { make, add, terms, button } = parts;
const main = document.getElementById("main"), help = document.getElementById("help");
let store = null, view = null;

function show() {
  view?.close();
  main.replaceChildren();
  const { pathname, search } = location, query = new URLSearchParams(search);
  const keep = (place) => history.replaceState(null, "", place);
  if (pathname.startsWith("/run/")) {
    const name = decoded(pathname.slice(5));
    document.title = name + " – inmem";
    view = runPage(main, store, name, query, go, keep);
  } else {
    document.title = "inmem";
    view = overview(main, store, query, go, keep);
  }
  document.documentElement.dataset.ready = "yes";
}
function decoded(text) { try { return decodeURIComponent(text); } catch { return text; } } // a % of its own
function go(place) { history.pushState(null, "", place); show(); }

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-link]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  go(link.getAttribute("href"));
});
addEventListener("popstate", show);

const KEYS = [
  ["/", "search"], ["↑ ↓ or k j", "choose a row"], ["Enter", "open it"], ["← →", "close and open a trace"],
  ["1 – 6", "events, traces, KV, cells, leases, queues"], ["h", "all runs"], ["Esc", "back"], ["?", "this"],
];
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input, textarea, select");
  if (event.key === "Escape") {
    if (help.open) return;
    if (isTyping && event.target.id !== "filter") event.target.blur(); // what was written in a form stays
    else if (isTyping) { event.target.value = ""; event.target.dispatchEvent(new Event("input")); event.target.blur(); view?.focus?.focus(); }
    else if (!hideDetails() && location.pathname !== "/") go("/");
    return;
  }
  if (isTyping || help.open || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") { event.preventDefault(); document.getElementById("filter")?.focus(); }
  else if (event.key === "?") help.showModal();
  else if (event.key === "h") go("/");
  else if (view?.tab && TAB_NAMES[Number(event.key) - 1]) { view.tab(TAB_NAMES[Number(event.key) - 1]); view.focus?.focus(); }
  else if (["j", "ArrowDown"].includes(event.key) && event.target === document.body) { view?.focus?.focus(); view?.focus?.dispatchEvent(new KeyboardEvent("keydown", { key: "j" })); }
});

const kbd = terms(KEYS.map(([key, what]) => [key, what]));
add(help, make("h2", "", "Keys"), kbd, button("close", () => help.close()));

get("store").then((found) => {
  store = found;
  document.getElementById("where").textContent = found.name + (found.namespace === "default/default/default" ? "" : "  " + found.namespace);
  show();
}, (error) => tell("off", error.message));
