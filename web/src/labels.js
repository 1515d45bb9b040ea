// Writes a label beside each mark of accuracy against nll where it meets no mark, no other label and, if there is room,
// no bar and no line; nearest first.

import { shape } from "./document.js";

const LETTER = 6.6; // about the width of one, of 12 pixels
const HEIGHT = 15;
const MARK = 7; // half of the width that a mark takes
const STEP = 14;

// Returns a mark of Plot.
export function labels(points, front) {
  return (index, { x, y }, values, { width, height, marginLeft, marginRight, marginTop, marginBottom }) => {
    const frame = box(marginLeft, marginTop, width - marginRight, height - marginBottom);
    const marks = points.map(({ label, nll, accuracy }) => ({ label, x: x(nll), y: y(accuracy) }));
    const taken = marks.map((mark) => box(mark.x - MARK, mark.y - MARK, mark.x + MARK, mark.y + MARK));
    const thin = [...bars(points, x, y), ...steps(front, x, y)];
    const group = shape("g", { "aria-label": "label", "font-size": 12, fill: "var(--ink)" });
    for (const mark of marks) {
      const free = places(mark).filter((place) => isInside(place, frame) && !taken.some((other) => meet(place, other)));
      const found = free.find((place) => !thin.some((other) => meet(place, other))) ?? free[0];
      if (!found) continue;
      taken.push(found);
      group.append(...drawn(mark, found));
    }
    return group;
  };
}

// Beside a mark, above and below it, and then further away.
function places({ x, y, label }) {
  const wide = label.length * LETTER;
  const at = (left, middle) => box(left, middle - HEIGHT / 2, left + wide, middle + HEIGHT / 2);
  const found = [at(x + MARK + 3, y), at(x - MARK - 3 - wide, y)];
  for (let away = 0; away < 8; away += 1) {
    const [aside, off] = [4 + away * 6, 10 + away * STEP];
    for (const dy of [-off, off]) found.push(at(x + aside, y + dy), at(x - aside - wide, y + dy), at(x - wide / 2, y + dy + Math.sign(dy) * 6));
  }
  return found;
}

function bars(points, x, y) {
  return points.flatMap(({ nll, accuracy, nllLow, nllHigh, accuracyLow, accuracyHigh }) => [
    ...(accuracyLow === null ? [] : [box(x(nll), y(accuracyHigh), x(nll), y(accuracyLow))]),
    ...(nllLow === null ? [] : [box(x(nllLow), y(accuracy), x(nllHigh), y(accuracy))]),
  ]);
}

function steps(front, x, y) {
  return front.slice(1).flatMap((next, i) => [
    box(x(front[i].nll), y(front[i].accuracy), x(next.nll), y(front[i].accuracy)),
    box(x(next.nll), y(next.accuracy), x(next.nll), y(front[i].accuracy)),
  ]);
}

function drawn({ label, x, y }, { left, right, top, bottom }) {
  const text = shape("text", {
    x: (left + right) / 2, y: (top + bottom) / 2, dy: "0.35em", "text-anchor": "middle",
    stroke: "var(--page)", "stroke-width": 4, "paint-order": "stroke", "stroke-linejoin": "round",
  });
  text.textContent = label;
  const [toX, toY] = [Math.min(Math.max(x, left), right), Math.min(Math.max(y, top), bottom)];
  if (Math.hypot(toX - x, toY - y) < 1.5 * STEP) return [text];
  return [shape("path", { d: `M${x},${y}L${toX},${toY}`, stroke: "var(--muted)", "stroke-width": 0.75 }), text];
}

function box(left, top, right, bottom) {
  return { left, top, right, bottom };
}

function meet(a, b) {
  return a.left <= b.right && b.left <= a.right && a.top <= b.bottom && b.top <= a.bottom;
}

function isInside(a, frame) {
  return a.left >= frame.left && a.right <= frame.right && a.top >= frame.top && a.bottom <= frame.bottom;
}
