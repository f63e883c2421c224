// A picture at its full size, with all that is known of it.

import { allCaptions, count, element, foreign, languageName, ordinal, ownCaption } from "./text.js";

const dialog = document.getElementById("dialog");

export function openPicture(picture, queries, actions) {
  const caption = ownCaption(picture);
  const captions = allCaptions(picture);
  const leave = (action) => () => {
    dialog.close();
    action();
  };
  const close = element("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => dialog.close() }, "×");
  dialog.replaceChildren(
    element("header", {}, foreign("h2", caption.language, caption.text, { id: "dialog-title" }), close),
    element(
      "div",
      { class: "content" },
      element("figure", {}, foreign("img", caption.language, null, { src: picture.picture_url, alt: caption.text })),
      element(
        "div",
        { class: "known" },
        places(picture, queries),
        element(
          "div",
          { class: "buttons" },
          captions.length > 1 ? element("button", { type: "button", class: "primary", onclick: leave(() => actions.languages(picture)) }, `Compare its captions in ${count(Object.keys(picture.captions).length, "language")}`) : null,
          element("button", { type: "button", onclick: leave(() => actions.like(picture)) }, "Search with this picture"),
        ),
        captions.length ? element("h3", {}, "Captions: choose one to search with it") : null,
        element("ul", { class: "captions" }, ...captions.map((of) => captionButton(of, leave(() => actions.search(of))))),
        element("p", { class: "file" }, foreign("bdi", "", picture.name)),
      ),
    ),
  );
  if (!captions.length) dialog.querySelector(".captions").remove();
  dialog.showModal();
  dialog.scrollTop = 0;
}

export function captionButton({ language, text }, act, note = null) {
  return element(
    "li",
    {},
    element(
      "button",
      { type: "button", class: "row", onclick: act },
      element("span", { class: "code", title: languageName(language) }, language),
      foreign("span", language, text, { class: "text" }),
      note ? element("span", { class: "similarity" }, note) : null,
    ),
  );
}

function places(picture, queries) {
  if (!queries.length || picture.place === undefined) return null;
  const ranks = picture.ranks ?? [picture.place];
  return element(
    "ul",
    { class: "places" },
    ...queries.map((query, at) => {
      const hit = query.hits.find((of) => of.number === picture.number);
      const similarity = hit ? `similarity ${hit.similarity.toFixed(4)}` : "";
      return element(
        "li",
        {},
        element("strong", {}, ordinal(ranks[at])),
        " for ",
        query.text === null ? "the picture" : foreign("bdi", query.language, query.text),
        element("span", { class: "similarity" }, similarity),
      );
    }),
  );
}

dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close(); // beside what is in it
});
