// Elements, of the page and of the report.
const parts = (() => {
  // Everything that is stored goes through here, as text: nothing is ever parsed as markup.
  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined && text !== null) element.textContent = text;
    return element;
  }
  function add(parent, ...children) { for (const child of children) if (child) parent.append(child); return parent; }
  function count(number) { return number.toLocaleString("en"); }
  function percent(value) { return Math.round(value * 1e5) / 1e3 + "%"; }
  function terms(list) {
    const box = make("dl");
    for (const [name, text, kind] of list) add(box, add(make("div", kind), make("dt", "", name), make("dd", "", text)));
    return box;
  }
  function label(kind, name, about, tags) {
    const box = make("div", "label");
    add(box, make("span", "dot " + kind), make("span", "name " + kind, name));
    for (const tag of tags) add(box, make("span", "tag", tag));
    return add(box, make("span", "about", about));
  }
  function button(text, action) {
    const element = make("button", "", text);
    element.type = "button";
    element.addEventListener("click", action);
    return element;
  }
  return { make, add, count, percent, terms, label, button };
})();
