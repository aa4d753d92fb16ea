"""A page in a browser, measured: what does not fit its width, what cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from browser import Browser

MEASURE = """(() => {
  const width = document.documentElement.clientWidth, problems = [];
  const luminance = (rgb) => {
    const part = rgb.map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
  };
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const colour = rgb(getComputedStyle(element).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const scrolled = document.documentElement.scrollWidth;
  if (scrolled > width) problems.push("the page is wider than its window: " + scrolled);
  let texts = 0, least = 99;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const element = node.parentElement, style = getComputedStyle(element);
    if (!node.data.trim() || element.closest("script, noscript") || !element.checkVisibility()) continue;
    const box = element.getBoundingClientRect(), what = element.className + " " + node.data.slice(0, 40);
    if (style.visibility === "hidden" || box.width === 0 || box.height === 0) continue;
    texts += 1;
    if (box.left < -1 || box.right > width + 1) problems.push("outside: " + what);
    const [a, b] = [luminance(rgb(style.color)), luminance(ground(element))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    least = Math.min(least, contrast);
    if (contrast < 4.5) problems.push("contrast " + contrast.toFixed(2) + ": " + what);
    if (parseFloat(style.fontSize) < 10) problems.push("small: " + what);
  }
  const tracks = document.querySelectorAll(".row:not(.hidden) > .track");
  for (const track of tracks) {
    const row = track.parentElement.getBoundingClientRect(), box = track.getBoundingClientRect();
    if (row.width && box.width < row.width - 40) { problems.push("a bar is narrow: " + box.width); break; }
  }
  return { texts, least, problems: [...new Set(problems)].slice(0, 10), tracks: tracks.length };
})()"""
LAY_OUT = "for (const row of document.querySelectorAll('.row')) row.style.contentVisibility = 'visible'"


def look(browser: Browser, page: Path, width: int, scheme: str) -> dict[str, Any]:
    """The page at a width and in a scheme of colours, with all of it laid out, measured."""
    browser.resize(width, 800, scheme)
    browser.open(page)
    browser.evaluate(LAY_OUT)
    return measure(browser)


def measure(browser: Browser) -> dict[str, Any]:
    """How many texts can be seen, the least contrast of one, and what is wrong. All of it takes part."""
    seen: dict[str, Any] = browser.evaluate(MEASURE)
    return seen
