// The keyboard: / to the search box, arrows between pictures.

import { focusQuery } from "./queries.js";

const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const typing = event.target.closest("input, select, textarea");
  if (event.key === "/" && (!typing || (typing.type === "search" && !typing.value))) {
    event.preventDefault();
    focusQuery();
  } else if (event.key in DIRECTIONS) {
    const cards = [...document.querySelectorAll("main .card")];
    const enters = event.key === "ArrowDown" && (event.target === document.body || typing?.type === "search");
    const next = event.target.matches(".card") ? nearest(event.target, cards, DIRECTIONS[event.key]) : enters && cards[0];
    if (!next) return;
    event.preventDefault();
    next.focus();
    next.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
});

// The card that is next in a direction: near in it, and little beside it.
function nearest(from, cards, [x, y]) {
  const middle = (of) => {
    const box = of.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };
  const [fromX, fromY] = middle(from);
  let best = null;
  let least = Infinity;
  for (const of of cards) {
    const [toX, toY] = middle(of);
    const along = (toX - fromX) * x + (toY - fromY) * y;
    const beside = Math.abs((toX - fromX) * y) + Math.abs((toY - fromY) * x);
    if (along > 4 && along + 3 * beside < least) [best, least] = [of, along + 3 * beside];
  }
  return best;
}
