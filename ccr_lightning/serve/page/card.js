// A picture that was found, as a button that opens it.

import { element, foreign, number, ordinal, ownCaption } from "./text.js";

export const unseen = (text) => element("span", { class: "unseen" }, text);
export const shownOnly = (tag, attributes, ...children) => element(tag, { ...attributes, "aria-hidden": "true" }, ...children);

export function thumbnail(picture, size = 160) {
  return element("img", { src: picture.thumbnail_url, alt: "", loading: "lazy", decoding: "async", width: size, height: size });
}

export function card(hit, open, shift = null) {
  const caption = ownCaption(hit);
  return element(
    "button",
    { type: "button", class: "card", "data-number": hit.number, onclick: () => open(hit) },
    element("span", { class: "thumb" }, thumbnail(hit)),
    element(
      "span",
      { class: "facts" },
      element("span", { class: "place" }, shownOnly("span", {}, number(hit.place)), unseen(`${ordinal(hit.place)}: `)),
      foreign("bdi", caption.language, caption.text, { class: "caption" }),
      shift,
      element("span", { class: "similarity" }, unseen("similarity "), hit.similarity.toFixed(3)),
    ),
  );
}

// Where a picture is for the first query, against its place in this column.
export function shiftFromFirst(hit) {
  const first = hit.ranks[0];
  const by = first - hit.place;
  const kind = by > 0 ? "up" : by < 0 ? "down" : "same";
  const words = by ? `${number(Math.abs(by))} ${Math.abs(by) === 1 ? "place" : "places"} ${by > 0 ? "higher" : "lower"} than for query 1` : "as for query 1";
  const arrow = { up: "▲", down: "▼", same: "＝" }[kind];
  return element(
    "span",
    { class: "shift" },
    shownOnly("span", { class: `by ${kind}` }, by ? `${arrow} ${number(Math.abs(by))}` : arrow),
    shownOnly("span", { class: "from" }, by ? `${ordinal(first)} for 1` : "same place"),
    unseen(`; ${words}, where it is ${ordinal(first)}; `),
  );
}

// Where a picture of the first column is for the other queries.
export function placesElsewhere(hit) {
  const others = hit.ranks.slice(1);
  const [least, most] = [Math.min(...others), Math.max(...others)];
  const range = least === most ? ordinal(least) : `${number(least)} to ${ordinal(most)}`;
  return element("span", { class: "shift" }, element("span", { class: "from" }, `${range} for the ${others.length > 1 ? "others" : "other"}`), unseen("; "));
}
