// The page: what is searched, what is shown, and what is said of it.

import { describe, onePicture, searchLike, searchTexts, searchUpload } from "./api.js";
import { card } from "./card.js";
import { columns } from "./columns.js";
import { captionButton, openPicture } from "./dialog.js";
import "./keys.js";
import { languages } from "./languages.js";
import { focusQuery, getQueries, offerLanguages, setQueries } from "./queries.js";
import { COLUMNS, fromAddress, toAddress } from "./state.js";
import { count, element, foreign, isolated, number, ownCaption } from "./text.js";
import { onPicture } from "./upload.js";
import { welcome } from "./welcome.js";

const main = document.getElementById("results");
const status = document.getElementById("status");
const fault = document.getElementById("error");
const uploads = new Map(); // of this visit, by the number in history.state
let about = null;
let running = null;

const actions = {
  search: (query) => go({ queries: [query] }),
  compare: (queries) => go({ queries: queries.slice(0, COLUMNS) }),
  like: (picture) => go({ like: picture.number }),
  languages: (picture) => go({ languagesOf: picture.number }),
};

async function go(wanted) {
  history.pushState({}, "", toAddress(wanted));
  scrollTo(0, 0);
  await show();
  if (document.activeElement === document.body) main.focus({ preventScroll: true }); // where what had it is gone
}

async function show() {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  const wanted = fromAddress(location.search);
  setQueries(wanted.queries);
  fault.hidden = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    if (!about) await meet();
    const shown = await results(wanted, signal);
    if (signal.aborted) return;
    main.replaceChildren(...shown.content);
    status.textContent = shown.says;
    document.title = shown.title ? `${shown.title}: pictures` : "Search pictures in any language";
  } catch (error) {
    if (error.name === "AbortError" || signal.aborted) return;
    refuse(error.message, show);
  }
  document.body.removeAttribute("aria-busy");
}

async function meet() {
  about = await describe();
  offerLanguages(about.known_languages);
  const captions = about.captions ? ` with ${count(about.captions, "caption")} in ${count(about.languages.length, "language")}` : "";
  document.getElementById("about").replaceChildren(`${count(about.pictures, "picture")}${captions}, found by `, element("bdi", {}, about.model));
}

function results(wanted, signal) {
  const upload = uploads.get(history.state?.upload);
  if (wanted.queries.length > 1) return ofSeveral(wanted, signal);
  if (wanted.queries.length) return ofOne(wanted, signal);
  if (wanted.like !== null) return ofPicture(wanted, searchLike.bind(null, wanted.like), null, signal);
  if (wanted.languagesOf !== null) return ofLanguages(wanted.languagesOf, signal);
  if (upload) return ofPicture(wanted, searchUpload.bind(null, upload.file), upload, signal);
  return { content: [welcome(about, actions)], says: "", title: "" };
}

const howMany = (k, usual) => Math.min(k ?? usual, about.limits.k);

async function ofOne({ queries, k }, signal) {
  const wanted = howMany(k, 24);
  const { results: found } = await searchTexts(queries, wanted, signal);
  const [{ text, hits }] = found;
  return {
    content: [grid(found), more({ queries }, wanted, hits.length)],
    says: `${count(hits.length, "picture")} for “${isolated(text)}”, best first`,
    title: isolated(text),
  };
}

async function ofSeveral({ queries, k }, signal) {
  const wanted = howMany(k, 10);
  const { results: found } = await searchTexts(queries, wanted, signal);
  const open = (hit) => openPicture(hit, found, actions);
  const everywhere = found[0].hits.filter((hit) => found.every(({ hits }) => hits.some((of) => of.number === hit.number)));
  return {
    content: [columns(found, open), more({ queries }, wanted, found[0].hits.length)],
    says: `The first ${found[0].hits.length} for each of ${queries.length} queries; ${everywhere.length || "none"} in all of them`,
    title: queries.map(({ text }) => isolated(text.slice(0, 20))).join(", "),
  };
}

async function ofPicture({ like, k }, search, upload, signal) {
  const wanted = howMany(k, 24);
  const [pictures, captions, itself] = await Promise.all([
    search(wanted, "pictures", signal),
    about.captions ? search(12, "captions", signal) : { results: [{ hits: [] }] },
    upload ? null : onePicture(like, signal),
  ]);
  const [{ hits }] = pictures.results;
  const fits = captions.results[0].hits;
  const preview = upload
    ? element("img", { src: upload.url, alt: "Your picture" })
    : foreign("img", ownCaption(itself).language, "", { src: itself.picture_url, alt: ownCaption(itself).text });
  const head = element(
    "section",
    { class: "queried", "aria-label": "The picture that is searched with" },
    element("figure", {}, preview, upload ? element("figcaption", { dir: "auto" }, upload.file.name) : null),
    fits.length ? element("div", {}, element("h2", {}, "Captions that fit"), element("ul", { class: "captions" }, ...fits.map(foundCaption))) : null,
  );
  return {
    content: [head, element("h2", {}, "Pictures like it"), grid(pictures.results), more(upload ? null : { like }, wanted, hits.length)],
    says: `${count(hits.length, "picture")} like ${upload ? "yours" : "this one"}, best first`,
    title: "Like a picture",
  };
}

const foundCaption = (hit) => captionButton(hit.caption, () => actions.search(hit.caption), hit.similarity.toFixed(3));

async function ofLanguages(wanted, signal) {
  const picture = await onePicture(wanted, signal);
  const queries = Object.entries(picture.captions)
    .filter(([, texts]) => texts.length)
    .slice(0, about.limits.queries)
    .map(([language, texts]) => ({ language, text: texts[0] }));
  if (!queries.length) throw new Error("This picture has no captions to compare.");
  const found = await searchTexts(queries, 6, signal, wanted);
  const open = (hit) => openPicture(hit, [], actions);
  return {
    content: [languages(found.picture, found.results, about.pictures, { ...actions, open })],
    says: `${count(queries.length, "language")}, best first`,
    title: isolated(ownCaption(picture).text),
  };
}

const grid = (found) =>
  element("ol", { class: "grid" }, ...found[0].hits.map((hit) => element("li", {}, card(hit, (of) => openPicture(of, found, actions)))));

function more(wanted, k, shown) {
  const next = Math.min(about.limits.k, k * 2);
  if (!wanted || shown < k || next === k) return "";
  const act = () => {
    history.replaceState({}, "", toAddress({ ...wanted, k: next }));
    show();
  };
  return element("button", { type: "button", class: "more", onclick: act }, `Show ${number(next)}`);
}

function refuse(sentence, again = null) {
  const retry = again ? element("button", { type: "button", onclick: again }, "Try again") : null;
  fault.replaceChildren(element("p", {}, sentence[0].toUpperCase() + sentence.slice(1)), ...(retry ? [retry] : []));
  fault.hidden = false;
}

function submit() {
  const queries = getQueries().filter(({ text }) => text.trim());
  if (!queries.length) {
    refuse("Type what is in a picture, in any language.");
    focusQuery();
    return;
  }
  const most = about?.limits.characters ?? Infinity;
  const longest = Math.max(...queries.map(({ text }) => [...text].length)); // code points, as the server counts
  if (longest > most) {
    refuse(`A query has ${number(longest)} characters: make it no longer than ${number(most)}.`);
    return;
  }
  go({ queries });
}

function searchWith(file) {
  const most = about?.limits.upload_bytes ?? Infinity;
  if (file.size > most) {
    refuse(`The picture has more than ${most / 1e6} MB: make it smaller.`);
    return;
  }
  const upload = uploads.size + 1;
  uploads.set(upload, { file, url: URL.createObjectURL(file) });
  history.pushState({ upload }, "", "/");
  show();
}

document.getElementById("search").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
document.getElementById("queries").addEventListener("removed", () => {
  if (getQueries().some(({ text }) => text.trim()) && location.search) submit();
});
document.querySelector("h1 a").addEventListener("click", (event) => {
  event.preventDefault();
  go({});
  focusQuery();
});
addEventListener("popstate", show);
onPicture(searchWith);
setQueries([]);
show().then(() => matchMedia("(pointer: fine)").matches && !location.search && focusQuery());
