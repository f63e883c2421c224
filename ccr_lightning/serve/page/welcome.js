// What to try first: captions of some pictures of the index.

import { thumbnail } from "./card.js";
import { allCaptions, element, foreign, languageName, ownCaption } from "./text.js";

export function welcome(about, { search, compare, like, languages }) {
  const captioned = about.examples
    .filter((picture) => allCaptions(picture).length)
    .sort((one, other) => ownCaption(one).text.length - ownCaption(other).text.length);
  if (!captioned.length) return withoutCaptions(about.examples.slice(0, 12), like);
  const several = captioned.filter((picture) => Object.keys(picture.captions).length > 1);
  const parts = [];
  if (several.length) {
    parts.push(
      element("h2", {}, "The same in several languages"),
      element("p", {}, "Side by side, with what moves in rank between them."),
      element("ul", { class: "chains" }, ...several.slice(0, 4).map((picture) => chain(picture, compare))),
      element("h2", {}, "One picture in all languages"),
      element("p", {}, "At which rank each of its captions finds it."),
      element("ul", { class: "examples small" }, ...several.slice(4, 12).map((picture) => example(picture, "", () => languages(picture)))),
    );
  }
  const tried = captioned.slice(several.length > 12 ? 12 : 0).slice(0, 6);
  parts.push(
    element("h2", {}, "A caption in one language"),
    element("p", {}, "And the pictures that fit it best."),
    element("ul", { class: "examples" }, ...tried.map((picture, place) => captionExample(picture, place, search))),
  );
  return element("section", { class: "welcome" }, ...parts);
}

function chain(picture, compare) {
  const codes = Object.keys(picture.captions).filter((code) => picture.captions[code].length);
  const wanted = ["en", "de", "tr", "ja", "ar", ...codes].filter((code) => codes.includes(code));
  const queries = [...new Set(wanted)].slice(0, 5).map((language) => ({ language, text: picture.captions[language][0] }));
  return element(
    "li",
    {},
    element(
      "button",
      { type: "button", class: "chain", onclick: () => compare(queries) },
      thumbnail(picture, 48),
      ...queries.map(({ language, text }) => foreign("bdi", language, text)),
    ),
  );
}

function captionExample(picture, place, search) {
  const captions = allCaptions(picture);
  const caption = captions[(place * 5) % captions.length];
  return example(picture, languageName(caption.language), () => search(caption), caption);
}

function example(picture, note, act, caption = ownCaption(picture)) {
  return element(
    "li",
    {},
    element(
      "button",
      { type: "button", class: "card example", onclick: act },
      element("span", { class: "thumb" }, thumbnail(picture)),
      element("span", { class: "facts" }, foreign("bdi", caption.language, caption.text, { class: "caption" }), note ? element("span", { class: "from" }, note) : null),
    ),
  );
}

function withoutCaptions(pictures, like) {
  return element(
    "section",
    { class: "welcome" },
    element("h2", {}, "Type what is in a picture, in any language"),
    element("p", {}, "Or begin with one of these, and find what is like it."),
    element("ul", { class: "examples" }, ...pictures.map((picture) => example(picture, "", () => like(picture)))),
  );
}
