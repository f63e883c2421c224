// What the server is asked.

async function answer(address, options = {}) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer: is ccr serve still running?");
  }
  let content;
  try {
    content = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    content = {};
  }
  if (response.ok) return content;
  throw new Error(content.error ?? `The server refuses this (status ${response.status}).`);
}

const address = (pairs) => `/api/search?${new URLSearchParams(pairs)}`;

export const describe = () => answer("/api/index");

export const onePicture = (picture, signal) => answer(`/api/picture/${picture}`, { signal });

export function searchTexts(queries, k, signal, picture = null) {
  const pairs = queries.flatMap(({ text, language }) => [["q", text], ["language", language]]);
  if (picture !== null) pairs.push(["picture", picture]);
  return answer(address([...pairs, ["k", k]]), { signal });
}

export const searchLike = (picture, k, find, signal) =>
  answer(address([["like", picture], ["k", k], ["find", find]]), { signal });

export const searchUpload = (file, k, find, signal) =>
  answer(address([["k", k], ["find", find]]), { method: "POST", body: file, signal });
