// The only way to the page: text becomes text nodes, never markup.
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "css") for (const [key, one] of Object.entries(value)) node.style.setProperty(key, one);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}

export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const PATHS = {
  overview: "M4 13h6V4H4zM14 20h6v-9h-6zM14 4v3h6V4zM4 20h6v-3H4z",
  records: "M4 6h16M4 12h16M4 18h10",
  events: "M12 7v5l3 2M12 3a9 9 0 1 0 .01 0",
  node: "M5 5h14v6H5zM5 13h14v6H5zM8 8h.01M8 16h.01",
  ok: "M5 12.500l4.500 4.500L19 7.500",
  warn: "M12 7v6M12 16.500h.01",
  bad: "M7 7l10 10M17 7L7 17",
  crown: "M4 17l-1-9 5 4 4-7 4 7 5-4-1 9z",
  sun: "M12 8a4 4 0 1 0 .01 0M12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.400 1.400M17.600 17.600L19 19M19 5l-1.400 1.400M6.400 17.600L5 19",
  play: "M8 5.500v13l11-6.500z",
  pause: "M8 5v14M16 5v14",
  close: "M6 6l12 12M18 6L6 18",
  first: "M18 6l-6 6 6 6M7 6v12",
  last: "M6 6l6 6-6 6M17 6v12",
  older: "M15 6l-6 6 6 6",
  newer: "M9 6l6 6-6 6",
  arrow: "M5 12h14M13 6l6 6-6 6",
};

export const icon = (name, size = 18) =>
  s("svg", { viewBox: "0 0 24 24", width: size, height: size, class: "icon", "aria-hidden": "true" }, s("path", { d: PATHS[name] }));

// A piece of a page that follows the state: made anew only where what it shows has changed, so that
// focus and selection stay. `choose` picks what it shows, `make` shows it.
const parts = new Set();

export function part(choose, make) {
  const one = { choose, make, told: undefined, node: undefined };
  parts.add(one);
  draw(one);
  return one.node;
}

function draw(one) {
  const shown = one.choose();
  const told = JSON.stringify(shown);
  if (told === one.told) return;
  one.told = told;
  const node = one.make(shown);
  one.node?.replaceWith(node);
  one.node = node;
}

export function drawParts() {
  for (const one of parts) one.node.isConnected ? draw(one) : parts.delete(one);
}
