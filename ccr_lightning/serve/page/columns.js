// The same in several languages, side by side: a column for each query, and lines between the same pictures.

import { card, placesElsewhere, shiftFromFirst } from "./card.js";
import { element, foreign, languageName, isolated } from "./text.js";

const SVG = "http://www.w3.org/2000/svg";
let watching = null;

export function columns(results, open) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "lines");
  const firsts = new Set(results[0].hits.map((hit) => hit.number));
  const inner = element("div", { class: "inner" }, svg, ...results.map((result, place) => column(result, place, firsts, open)));
  inner.style.setProperty("--columns", results.length);
  const region = element("section", { class: "columns", "aria-label": "Results side by side" }, inner);
  watching?.disconnect();
  watching = new ResizeObserver(() => draw(inner, svg));
  watching.observe(inner);
  for (const [event, lit] of [["pointerover", true], ["focusin", true], ["pointerleave", false], ["focusout", false]]) {
    inner.addEventListener(event, (of) => light(inner, lit ? of.target.closest(".card")?.dataset.number : null));
  }
  return region;
}

function column({ text, language, hits }, place, firsts, open) {
  const shared = hits.filter((hit) => firsts.has(hit.number)).length;
  const notes = [language ? languageName(language) : null, place ? `${shared} of ${hits.length} also for 1` : "the reference"];
  const id = `column-${place + 1}`;
  return element(
    "section",
    { class: "column", "aria-labelledby": id },
    element(
      "header",
      {},
      element("h2", { id }, element("span", { class: "badge" }, String(place + 1)), " ", foreign("bdi", language, text)),
      element("p", {}, notes.filter(Boolean).join(" · ")),
    ),
    element(
      "ol",
      { "aria-label": `Pictures for ${isolated(text)}` },
      ...hits.map((hit) => element("li", {}, card(hit, open, place ? shiftFromFirst(hit) : placesElsewhere(hit)))),
    ),
  );
}

function draw(inner, svg) {
  const origin = inner.getBoundingClientRect();
  const seen = new Map();
  const paths = [];
  [...inner.querySelectorAll(".column")].forEach((of, place) => {
    [...of.querySelectorAll(".card")].forEach((shown, rank) => {
      const box = shown.getBoundingClientRect();
      const here = { place, rank, left: box.left - origin.left, right: box.right - origin.left, y: box.top + box.height / 2 - origin.top };
      const before = seen.get(shown.dataset.number);
      if (before) paths.push(line(before, here, shown.dataset.number));
      seen.set(shown.dataset.number, here);
    });
  });
  svg.setAttribute("width", inner.scrollWidth);
  svg.setAttribute("height", inner.scrollHeight);
  svg.replaceChildren(...paths);
}

function line(from, to, number) {
  const path = document.createElementNS(SVG, "path");
  const bend = Math.min(60, (to.left - from.right) / 2);
  path.setAttribute("d", `M${from.right} ${from.y}C${from.right + bend} ${from.y} ${to.left - bend} ${to.y} ${to.left} ${to.y}`);
  const kind = to.rank < from.rank ? "up" : to.rank > from.rank ? "down" : "same";
  path.setAttribute("class", `${kind}${to.place - from.place > 1 ? " far" : ""}`);
  path.dataset.number = number;
  return path;
}

function light(inner, number) {
  const lit = number ? [...inner.querySelectorAll("[data-number]")].filter((of) => of.dataset.number === number) : [];
  inner.querySelectorAll(".lit").forEach((of) => of.classList.remove("lit"));
  lit.forEach((of) => of.classList.add("lit"));
  inner.classList.toggle("has-lit", lit.length > 0);
}
