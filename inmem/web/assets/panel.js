// The details of one thing, at the side.

const { make, add, button } = parts;
const panel = document.getElementById("panel");
let back = null, asked = 0;

// `load` gives title, details, and what is below them. Shown unless something else was asked for meanwhile.
export async function showWhen(name, load) {
  const number = ++asked;
  let found;
  try { found = await load(); } catch (error) { found = [name, [["", error.message]]]; }
  if (number === asked) showDetails(...found);
}
export function showDetails(title, details, extra = []) {
  asked++;
  if (panel.hidden) back = document.activeElement;
  const close = button("×", hideDetails);
  close.className = "close";
  close.setAttribute("aria-label", "Close");
  const texts = details.filter(([, text]) => text).flatMap(([name, text]) => [make("h3", "", name), make("pre", "", text)]);
  panel.replaceChildren(close, make("h2", "", title), ...texts, ...extra);
  panel.hidden = false;
  panel.scrollTop = 0;
}
export function hideDetails() {
  asked++;
  if (panel.hidden) return false;
  panel.hidden = true;
  back?.focus?.();
  return true;
}

// Asks once more before something is done that cannot be undone.
export function risky(text, what, action) {
  const found = button(text, () => {
    if (found.dataset.sure) { action(); return; }
    found.dataset.sure = "yes";
    found.textContent = what;
    setTimeout(() => { delete found.dataset.sure; found.textContent = text; }, 4000);
  });
  found.className = "danger";
  return found;
}
