// How elements, numbers and languages are written. Texts of others become text nodes, never markup.

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const number = (value) => value.toLocaleString("en");

const rules = new Intl.PluralRules("en", { type: "ordinal" });
const endings = { one: "st", two: "nd", few: "rd", other: "th" };
export const ordinal = (value) => number(value) + endings[rules.select(value)];

export const count = (value, noun) => `${number(value)} ${noun}${value === 1 ? "" : "s"}`;

const names = new Intl.DisplayNames(["en"], { type: "language", fallback: "code" });
export function languageName(code) {
  try {
    return names.of(code.replaceAll("_", "-"));
  } catch {
    return code;
  }
}

export const foreign = (tag, language, text, more = {}) =>
  element(tag, { lang: language || null, dir: "auto", ...more }, text);

// The caption that whoever looks is likeliest to read.
export function ownCaption(picture) {
  const wanted = [...navigator.languages.map((code) => code.split("-")[0]), "en", ...Object.keys(picture.captions)];
  const language = wanted.find((code) => Object.hasOwn(picture.captions, code) && picture.captions[code].length);
  return language ? { language, text: picture.captions[language][0] } : { language: "", text: picture.name };
}

export const allCaptions = (picture) =>
  Object.entries(picture.captions).flatMap(([language, texts]) => texts.map((text) => ({ language, text })));

// A text within another, whatever direction it has or wants to force on what follows.
export const isolated = (text) => `\u2068${text.length > 60 ? `${text.slice(0, 60)}…` : text}\u2069`;
