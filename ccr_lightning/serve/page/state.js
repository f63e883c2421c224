// What is searched, in the address of the page: so that it can be shared, and Back works.

export const COLUMNS = 8; // that the page shows side by side

export function fromAddress(search) {
  const given = new URLSearchParams(search);
  const whole = (name) => (/^\d{1,15}$/.test(given.get(name) ?? "") ? Number(given.get(name)) : null);
  const languages = given.getAll("language");
  const queries = given.getAll("q").map((text, place) => ({ text, language: languages[place] ?? "" }));
  return {
    queries: queries.slice(0, COLUMNS),
    like: whole("like"),
    languagesOf: whole("languages_of"),
    k: whole("k") || null,
  };
}

export function toAddress({ queries = [], like = null, languagesOf = null, k = null }) {
  const pairs = queries.flatMap(({ text, language }) => [["q", text], ["language", language]]);
  if (!queries.some(({ language }) => language)) pairs.splice(0, pairs.length, ...queries.map(({ text }) => ["q", text]));
  if (like !== null) pairs.push(["like", like]);
  if (languagesOf !== null) pairs.push(["languages_of", languagesOf]);
  if (k) pairs.push(["k", k]);
  return pairs.length ? `/?${new URLSearchParams(pairs)}` : "/";
}
