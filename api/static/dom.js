// Elements and numbers. Text is always set as text, never as HTML.

/** @param {string} id @returns {any} */
export const $ = (id) => document.getElementById(id);

/** Create an HTML element; attributes of null and false are left out. @param {string} tag @param {object} [attributes] @param {...(Node | string)} children @returns {any} */
export const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/** Create an SVG element. @param {string} tag @param {object} attributes @param {...(Node | string)} children */
export const svg = (tag, attributes, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value != null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** Show or hide an element. @param {string} id @param {unknown} isShown */
export const show = (id, isShown) => { $(id).hidden = !isShown; };

/** Set the text of an element; an equal text is not said again by a screen reader. @param {string} id @param {string} text */
export const put = (id, text) => { if ($(id).textContent !== text) $(id).textContent = text; };

/** Set the text of an element, and show it if there is a text. @param {string} id @param {string} text */
export function say(id, text) {
  put(id, text);
  show(id, text);
}

/** Replace a list of terms, values and notes. @param {string} id @param {any[][]} entries */
export const define = (id, entries) => $(id).replaceChildren(...entries.map(([term, value, note]) =>
  el("div", {}, el("dt", {}, term), el("dd", {}, value), ...(note ? [el("dd", { class: "note" }, note)] : []))));

/** Replace the content of a table. @param {string} id @param {string[]} head @param {string[][]} rows */
export const tabulate = (id, head, rows) => $(id).replaceChildren(
  el("thead", {}, el("tr", {}, ...head.map((one) => (one ? el("th", { scope: "col" }, one) : el("td"))))),
  el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((one) => el("td", {}, one))))));

const whole = new Intl.NumberFormat("en");

/** 12,345 or 0.061 @param {number} value @param {number} [digits] */
export const number = (value, digits = 6) => (Number.isInteger(value) ? whole.format(value) : String(Number(value.toPrecision(digits))));

/** 0.025 %, 16.4 %, 99.962 %: as many digits as the distance from 0 or 1 needs. @param {number} p */
export function percent(p) {
  const tail = 100 * Math.min(p, 1 - p);
  const digits = tail > 0 ? Math.min(Math.max(1 - Math.floor(Math.log10(tail)), 1), 6) : 0;
  return `${Number((100 * p).toFixed(digits))}\u00a0%`;
}

/** "1 row", "2 rows" @param {number} count @param {string} noun */
export const counted = (count, noun) => `${whole.format(count)} ${noun}${count === 1 ? "" : "s"}`;
