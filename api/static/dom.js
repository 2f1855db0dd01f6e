// Elements and numbers. Text is always set as text, never as HTML.

/** @param {string} id @returns {any} */
export const $ = (id) => document.getElementById(id);

/**
 * An HTML element, without the attributes that are false.
 * @param {string} tag
 * @param {object} [attributes]
 * @param {...(Node | string)} children
 * @returns {any}
 */
export const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

const SVG = "http://www.w3.org/2000/svg";

/** An SVG element. @param {string} tag @param {object} attributes @param {...(Node | string)} children */
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** Show or hide an element. @param {string} id @param {unknown} isShown */
export const show = (id, isShown) => { $(id).hidden = !isShown; };

/** Set a new text of an element. @param {string} id @param {string} text */
export const put = (id, text) => { if ($(id).textContent !== text) $(id).textContent = text; };

/** Set the text of an element, and show it if there is a text. @param {string} id @param {string} text */
export function say(id, text) {
  put(id, text);
  show(id, text);
}

/** Replace a list of terms, values and notes. @param {Element} list @param {any[][]} entries */
export function define(list, entries) {
  list.replaceChildren(...entries.map(([term, value, note]) =>
    el("div", {}, el("dt", {}, term), el("dd", {}, value), ...(note ? [el("dd", { class: "note" }, note)] : []))));
  return list;
}

/**
 * Replace the content of a table, which scrolls in its parent, below a heading.
 * @param {string} id
 * @param {string[]} head
 * @param {string[][]} rows
 */
export function tabulate(id, head, rows) {
  const { parentNode } = $(id);
  const ariaLabel = parentNode.previousElementSibling.textContent;
  Object.assign(parentNode, { className: "scroll", tabIndex: 0, role: "region", ariaLabel });
  $(id).ariaLabel = ariaLabel;
  $(id).replaceChildren(
    el("thead", {}, el("tr", {}, ...head.map((one) => el("th", { scope: "col" }, one)))),
    el("tbody", {}, ...rows.map((row) =>
      el("tr", {}, ...row.map((one, column) => el("td", { "data-head": head[column] }, one))))));
}

/** 12,345 or 0.061 @param {number} value @param {number} [digits] */
export const number = (value, digits = 15) => value.toLocaleString("en", { maximumSignificantDigits: digits });

/** 0.025 %, 16.4 %, 99.962 % @param {number} p */
export function percent(p) {
  const tail = 100 * Math.min(p, 1 - p);
  const digits = tail > 0 ? Math.min(Math.max(1 - Math.floor(Math.log10(tail)), 1), 6) : 0;
  return `${Number((100 * p).toFixed(digits))}\u00a0%`;
}

/** "1 row", "2 rows" @param {number} count @param {string} noun */
export const counted = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
