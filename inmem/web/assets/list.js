// A list of any length: only the rows that can be seen are in the document.

const { make, add } = parts;
const AROUND = 12; // rows above and below what is seen

export class VirtualList {
  // `render(index)` gives the cells of a row; `choose(index)` is called for a row that is clicked or entered.
  constructor({ shape, height, render, choose, empty = "none", near }) {
    Object.assign(this, { shape, height, render, choose, empty, near });
    this.box = make("div", "list");
    this.box.tabIndex = 0;
    this.box.setAttribute("role", "listbox");
    this.rows = add(this.box, make("div", "rows")).firstChild;
    this.rows.setAttribute("role", "presentation");
    this.nodes = new Map();
    this.count = 0;
    this.chosen = -1;
    this.box.addEventListener("scroll", () => this.soon(), { passive: true });
    this.box.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row && !event.target.closest("button")) this.pick(Number(row.dataset.index), true);
    });
    this.box.addEventListener("keydown", (event) => this.pressed(event));
    this.watcher = new ResizeObserver(() => this.soon());
    this.watcher.observe(this.box);
  }
  close() { this.isClosed = true; this.watcher.disconnect(); }
  isAtEnd() { return this.box.scrollTop + this.box.clientHeight >= this.count * this.height - this.height; }
  // There are so many rows now. What is shown is made anew unless only new rows came at the end.
  resize(count, { onlyMore = false } = {}) {
    this.count = count;
    this.rows.style.height = Math.max(1, count * this.height) + "px";
    if (!onlyMore) this.refresh();
    this.soon();
  }
  refresh() {
    for (const node of this.nodes.values()) node.remove();
    this.nodes.clear();
    this.soon();
  }
  redraw(index) {
    const node = this.nodes.get(index);
    if (node) { node.remove(); this.nodes.delete(index); this.soon(); }
  }
  soon() {
    if (this.waits) return;
    this.waits = true;
    requestAnimationFrame(() => { this.waits = false; this.draw(); });
  }
  draw() {
    if (this.isClosed) return;
    const from = Math.max(0, Math.floor(this.box.scrollTop / this.height) - AROUND);
    const to = Math.min(this.count, Math.ceil((this.box.scrollTop + this.box.clientHeight) / this.height) + AROUND);
    for (const [index, node] of this.nodes) if (index < from || index >= to) { node.remove(); this.nodes.delete(index); }
    for (let index = from; index < to; index++) if (!this.nodes.has(index)) {
      const node = make("div", "row " + this.shape);
      node.style.top = index * this.height + "px";
      node.style.height = this.height + "px";
      node.dataset.index = index;
      node.id = this.shape + "-" + index;
      node.setAttribute("role", "option");
      node.setAttribute("aria-posinset", index + 1);
      node.setAttribute("aria-setsize", this.count);
      node.setAttribute("aria-selected", String(index === this.chosen));
      if (index === this.chosen) node.classList.add("chosen");
      add(node, ...this.render(index, node));
      this.nodes.set(index, node);
      this.rows.append(node);
    }
    if (!this.count && !this.nothing) this.nothing = add(this.rows, make("div", "empty", this.empty)).lastChild;
    if (this.count && this.nothing) { this.nothing.remove(); this.nothing = null; }
    this.near?.(from, to);
  }
  show(index) {
    const top = index * this.height;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (top + this.height > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = top + this.height - this.box.clientHeight;
    this.soon();
  }
  toEnd() { this.box.scrollTop = this.count * this.height; this.soon(); }
  pick(index, isEntered = false) {
    if (index < 0 || index >= this.count) return;
    const before = this.chosen;
    this.chosen = index;
    for (const one of [before, index]) {
      const node = this.nodes.get(one);
      node?.classList.toggle("chosen", one === index);
      node?.setAttribute("aria-selected", String(one === index));
    }
    this.box.setAttribute("aria-activedescendant", this.shape + "-" + index);
    this.show(index);
    if (isEntered) this.choose?.(index);
  }
  pressed(event) {
    if (event.target !== this.box || event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(this.box.clientHeight / this.height) - 1);
    const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page, Home: -this.count, End: this.count }[event.key];
    if (step !== undefined) {
      event.preventDefault();
      this.pick(Math.min(this.count - 1, Math.max(0, (this.chosen < 0 && step > 0 ? -1 : this.chosen) + step)));
    } else if (event.key === "Enter" && this.chosen >= 0) this.choose?.(this.chosen);
  }
}
