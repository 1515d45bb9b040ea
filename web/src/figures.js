// A figure: its title, its picture, drawn again at another width, its caption, its data, and a link that saves it.

import { element, folded } from "./document.js";
import { legend, lines, tableOfLines } from "./lines.js";
import { margins, tableOfMargins } from "./margins.js";
import { savingLink } from "./saving.js";
import { setting, tableOfSetting } from "./setting.js";
import { tableOfTradeOff, tradeOff } from "./trade_off.js";

const KINDS = {
  lines: { draw: lines, tabulate: tableOfLines, size: "half" },
  margins: { draw: margins, tabulate: tableOfMargins, size: "wide" },
  setting: { draw: setting, tabulate: tableOfSetting, size: "half" },
  trade_off: { draw: tradeOff, tabulate: tableOfTradeOff, size: "wide" },
};

export function grid(figures) {
  return element("div", { class: "grid" }, figures.map(figure));
}

export function figure(facts) {
  const { draw, tabulate, size } = KINDS[facts.kind];
  const canvas = element("div", { class: "canvas" });
  const entries = legend(facts.series ?? []);
  const made = element(
    "figure",
    { id: `figure-${facts.name}`, class: size },
    element("h3", {}, facts.title),
    entries,
    canvas,
    element("figcaption", {}, facts.caption),
    savingLink(facts, canvas, entries),
    folded("Data of this figure", () => tabulate(facts)),
  );
  waiting.push(() => keepDrawn(canvas, (width) => draw(facts, width)));
  return made;
}

const waiting = [];

// Draws all figures; called when they stand in the document and so have a width.
export function drawFigures() {
  for (const keepDrawn of waiting.splice(0)) keepDrawn();
}

// Draws at once, so that a page that is printed as soon as it is there has its figures, and again at another width. That
// in the next frame: inside of the observer's call, a change of height would be observed again, with a complaint.
function keepDrawn(canvas, draw) {
  let drawn = 0;
  const redraw = () => {
    const width = Math.floor(canvas.clientWidth);
    if (width === drawn || width === 0) return;
    drawn = width;
    const picture = draw(width);
    picture.setAttribute("role", "img");
    canvas.replaceChildren(picture);
  };
  redraw();
  new ResizeObserver(() => requestAnimationFrame(redraw)).observe(canvas);
}
