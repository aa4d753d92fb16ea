// What the server is asked, and what it tells.

const AGAIN_MS = 3000, REST_MS = 10000, SHARE = 9;

export class Failure extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

async function answered(answer) {
  const data = await answer.json().catch(() => ({ error: answer.status + " " + answer.statusText }));
  if (!answer.ok) throw new Failure(data.error, answer.status);
  return data;
}

// A server that is away is no fault of the page: what is shown is read anew when it is back.
async function asked(url, options) {
  try { return await fetch(url, options); } catch { throw new Failure("not connected", 0); }
}

export async function get(name, query = {}) {
  return answered(await asked("/api/" + name + "?" + new URLSearchParams(query)));
}

export async function change(what) {
  return answered(await asked("/api/do", { method: "POST", body: JSON.stringify(what), headers: { "content-type": "application/json" } }));
}

// What the light at the top says. A screen reader is told of it when it changes only.
export function tell(state, text) {
  const light = document.getElementById("live");
  if (light.className !== state || light.textContent !== text) { light.className = state; light.textContent = text; }
}

// Calls `handlers.changed(kind)` and `handlers.status(document)`; all kinds count as changed when it begins to follow.
// A page that nobody sees does not follow: browsers have six connections to a server, and one page takes one.
export function follow(run, handlers) {
  let source = null, timer = 0;
  function begin() {
    source = new EventSource("/api/stream" + (run === null ? "" : "?" + new URLSearchParams({ run })));
    source.addEventListener("open", () => tell("on", "live"));
    source.addEventListener("error", () => {
      tell("off", "not connected");
      if (source.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
      end();
      timer = setTimeout(seen, AGAIN_MS);
    });
    source.addEventListener("changed", (event) => handlers.changed(JSON.parse(event.data)));
    source.addEventListener("status", (event) => {
      const told = JSON.parse(event.data);
      if (told.problem) tell("off", told.problem); else tell("on", "live");
      handlers.status?.(told);
    });
    source.addEventListener("bye", (event) => tell("off", JSON.parse(event.data)));
  }
  function end() { clearTimeout(timer); source?.close(); source = null; }
  function seen() { if (document.hidden) end(); else if (!source) begin(); }
  document.addEventListener("visibilitychange", seen);
  seen();
  return () => { document.removeEventListener("visibilitychange", seen); end(); };
}

// One call at a time: what is asked for meanwhile is done once more after it. Then it rests, so that the
// server has at most a tenth of a core for it, however much there is to read; `run(true)` does not wait for that.
export function oneAtATime(work) {
  let isRunning = false, again = false, isUrgent = false, wake = null;
  return async function run(urgent = false) {
    if (isRunning) { again = true; if (urgent) { isUrgent = true; wake?.(); } return; }
    isRunning = true;
    do {
      again = isUrgent = false;
      const began = performance.now();
      try { await work(); } catch (error) {
        if (!(error instanceof Failure)) console.error(error);
        tell("off", error.message);
      }
      const rest = Math.min(REST_MS, SHARE * (performance.now() - began));
      if (!isUrgent) await new Promise((resolve) => { wake = resolve; setTimeout(resolve, rest); });
      wake = null;
    } while (again);
    isRunning = false;
  };
}

// For works that must not overlap: each begins when the one before it has ended.
export function inTurn() {
  let last = Promise.resolve();
  return (work) => { last = last.then(work, work); return last; };
}
