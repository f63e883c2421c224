// The search boxes: one, or several to compare.

import { COLUMNS } from "./state.js";
import { element, languageName } from "./text.js";

const list = document.getElementById("queries");
const add = document.getElementById("add");
let languages = [];

export function offerLanguages(codes) {
  languages = codes;
  list.querySelectorAll("select").forEach((select) => offer(select, select.value));
}

export const getQueries = () =>
  [...list.children].map((row) => ({
    text: row.querySelector("input").value,
    language: row.querySelector("select").value,
  }));

export function setQueries(queries) {
  const focused = [...list.children].findIndex((made) => made.contains(document.activeElement));
  list.replaceChildren(...(queries.length ? queries : [{ text: "", language: "" }]).map(row));
  renumber();
  if (focused >= 0) focusQuery(Math.min(focused, list.children.length - 1));
}

export function focusQuery(place = 0) {
  list.children[place]?.querySelector("input").focus();
}

add.addEventListener("click", () => {
  list.append(row({ text: "", language: "" }));
  renumber();
  focusQuery(list.children.length - 1);
});

function offer(select, language) {
  const known = language && !languages.includes(language) ? [...languages, language] : languages;
  const options = known.map((code) => [languageName(code), code]).sort(([one], [other]) => one.localeCompare(other, "en"));
  select.replaceChildren(
    element("option", { value: "" }, "Any language"),
    ...options.map(([name, code]) => element("option", { value: code }, name)),
  );
  select.value = language;
}

function row({ text, language }) {
  const select = element("select");
  offer(select, language);
  const input = element("input", { type: "search", dir: "auto", autocomplete: "off", enterkeyhint: "search" });
  input.value = text;
  const mark = () => (input.lang = select.value);
  select.addEventListener("change", mark);
  mark();
  const remove = element("button", { type: "button", class: "remove" }, element("span", { "aria-hidden": "true" }, "×"));
  remove.addEventListener("click", () => {
    const place = [...list.children].indexOf(made);
    made.remove();
    renumber();
    focusQuery(Math.max(0, place - 1));
    list.dispatchEvent(new Event("removed", { bubbles: true }));
  });
  const made = element("li", { class: "query" }, element("span", { class: "badge", "aria-hidden": "true" }), select, input, remove);
  return made;
}

function renumber() {
  const several = list.children.length > 1;
  list.classList.toggle("several", several);
  add.hidden = list.children.length >= COLUMNS;
  [...list.children].forEach((made, index) => {
    const which = several ? ` ${index + 1}` : "";
    made.querySelector(".badge").textContent = index + 1;
    made.querySelector("input").setAttribute("aria-label", `Query${which}, in any language`);
    made.querySelector("input").placeholder = index ? "The same in another language" : "What is in the picture?";
    made.querySelector("select").setAttribute("aria-label", `Language of query${which}`);
    made.querySelector(".remove").setAttribute("aria-label", `Remove query${which}`);
    made.querySelector(".remove").hidden = !several;
  });
}
