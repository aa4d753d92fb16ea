// What the server is asked, and what it tells.

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

// Calls `handlers.changed(kind)` and `handlers.status(document)`. When the server was away all kinds count as changed.
export function follow(run, handlers) {
  const light = document.getElementById("live");
  const show = (state, text) => { light.className = state; light.textContent = text; };
  const source = new EventSource("/api/stream" + (run === null ? "" : "?" + new URLSearchParams({ run })));
  source.addEventListener("open", () => show("on", "live"));
  source.addEventListener("error", () => show("off", "not connected"));
  source.addEventListener("changed", (event) => handlers.changed(JSON.parse(event.data)));
  source.addEventListener("status", (event) => {
    const told = JSON.parse(event.data);
    if (told.problem) show("off", told.problem); else show("on", "live");
    handlers.status?.(told);
  });
  source.addEventListener("bye", (event) => show("off", JSON.parse(event.data)));
  return () => source.close();
}

// One call at a time: what is asked for meanwhile is done once more after it.
export function oneAtATime(work) {
  let isRunning = false, again = false;
  return async function run() {
    if (isRunning) { again = true; return; }
    isRunning = true;
    try {
      do { again = false; await work(); } while (again);
    } catch (error) {
      if (!(error instanceof Failure)) console.error(error);
      const light = document.getElementById("live");
      light.className = "off"; light.textContent = error.message;
    } finally { isRunning = false; }
  };
}
