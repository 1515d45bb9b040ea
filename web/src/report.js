// Builds the page from its facts, which stand in it as JSON: that of a run, or that of several runs side by side.

import { comparison } from "./comparison.js";
import { element } from "./document.js";
import { drawFigures } from "./figures.js";
import { run } from "./run.js";

const facts = JSON.parse(document.getElementById("facts").textContent);
const parts = { run, comparison }[facts.kind](facts).filter(Boolean);
document.querySelector("main").replaceChildren(header(), contents(), ...parts);
drawFigures();

function header() {
  return element(
    "header",
    {},
    element("p", { class: "kind" }, `orpo ${facts.kind}`),
    element("h1", {}, facts.title),
    element("p", { class: "state" }, facts.state),
    element("p", { class: "path" }, facts.folder),
  );
}

function contents() {
  const link = (part) => element("a", { href: `#${part.id}` }, part.querySelector("h2").textContent);
  return element("nav", { "aria-label": "Sections" }, parts.map(link));
}
