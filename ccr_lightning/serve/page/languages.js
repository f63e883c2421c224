// One picture, and where each of its captions finds it: a row for each language, on a logarithmic scale of ranks.

import { thumbnail } from "./card.js";
import { count, element, foreign, languageName, number, ordinal, ownCaption } from "./text.js";

export function languages(picture, results, pictures, { open, search, compare }) {
  const rows = results
    .map((result, place) => ({ ...result, rank: picture.ranks[place] }))
    .sort((one, other) => one.rank - other.rank);
  const caption = ownCaption(picture);
  const chosen = spread(rows, 5).map(({ text, language }) => ({ text, language }));
  return element(
    "section",
    { class: "languages", "aria-labelledby": "languages-title" },
    element(
      "header",
      {},
      element("button", { type: "button", class: "card subject", "data-number": picture.number, "aria-label": `Open the picture ${caption.text}`, onclick: () => open(picture) }, thumbnail(picture)),
      element(
        "div",
        {},
        element("h2", { id: "languages-title" }, "How each language finds “", foreign("bdi", caption.language, caption.text), "”"),
        element("p", { class: "summary" }, summary(rows, pictures)),
        chosen.length > 1 ? element("button", { type: "button", onclick: () => compare(chosen) }, `Show ${chosen.length} of them side by side`) : null,
      ),
    ),
    element("div", { class: "axis", "aria-hidden": "true" }, element("span", {}, "rank of the picture"), scale(pictures)),
    element("ol", {}, ...rows.map((row) => languageRow(row, picture, pictures, open, search))),
  );
}

function summary(rows, pictures) {
  const first = rows.filter((row) => row.rank === 1).length;
  const worst = rows.at(-1);
  const found = `First in ${first} of ${count(rows.length, "language")}`;
  if (worst.rank === 1) return `${found}.`;
  return `${found}; in ${languageName(worst.language)} it is ${ordinal(worst.rank)} of ${number(pictures)}.`;
}

const share = (rank, pictures) => `${(100 * Math.log(rank)) / Math.log(Math.max(2, pictures))}%`;

function scale(pictures) {
  const ticks = [];
  for (let rank = 1; rank < pictures; rank *= 10) ticks.push(rank);
  if (pictures / ticks.at(-1) < 2 && ticks.length > 1) ticks.pop();
  const marks = [...ticks, pictures].map((rank) => {
    const mark = element("span", {}, number(rank));
    mark.style.insetInlineStart = share(rank, pictures);
    return mark;
  });
  return element("span", { class: "scale" }, ...marks);
}

function languageRow({ text, language, hits, rank }, picture, pictures, open, search) {
  const dot = element("span", { class: rank === 1 ? "dot first" : rank <= 10 ? "dot near" : "dot far" });
  dot.style.insetInlineStart = share(rank, pictures);
  const bar = element("span", { class: "bar" });
  bar.style.inlineSize = share(rank, pictures);
  return element(
    "li",
    {},
    element(
      "div",
      { class: "who" },
      element("span", { class: "code", "aria-hidden": "true" }, language),
      element("span", { class: "name" }, languageName(language)),
      foreign("button", language, text, { type: "button", class: "link", onclick: () => search({ text, language }) }),
    ),
    element("p", { class: "rank" }, element("strong", {}, ordinal(rank)), element("span", { class: "unseen" }, ` of ${number(pictures)}`)),
    element("span", { class: "track", "aria-hidden": "true" }, bar, dot),
    element(
      "ol",
      { class: "strip", "aria-label": `First pictures for ${languageName(language)}` },
      ...hits.map((hit) =>
        element(
          "li",
          {},
          element(
            "button",
            { type: "button", class: hit.number === picture.number ? "card mini self" : "card mini", "data-number": hit.number, title: ownCaption(hit).text, "aria-label": `${ordinal(hit.place)}: ${ownCaption(hit).text}`, onclick: () => open(hit) },
            thumbnail(hit, 48),
          ),
        ),
      ),
    ),
  );
}

// Some of all, from the first to the last.
function spread(rows, most) {
  if (rows.length <= most) return rows;
  return Array.from({ length: most }, (_, place) => rows[Math.round((place * (rows.length - 1)) / (most - 1))]);
}
