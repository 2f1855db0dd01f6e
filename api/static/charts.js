// Charts as SVG by hand. Their numbers are in the text beside them.

import { el, percent, svg } from "./dom.js";

const logOdds = (p) => Math.log(p / (1 - p));
const fromLogOdds = (x) => 1 / (1 + Math.exp(-x));
const signed = (value) => `${value < 0 ? "\u2212" : "+"}${Math.abs(value).toFixed(2)}`;

/**
 * The way from the base to the result: a list with a bar for each contribution.
 * @param {Element} list
 * @param {{base: number, up: any[], down: any[], others: number}} reasons
 * @param {number} result probability
 * @param {number | undefined} threshold
 * @param {(feature: string) => [string, string]} describe title and value
 */
export function drawReasons(list, reasons, result, threshold, describe) {
  const steps = [...reasons.up, ...reasons.down]
    .map(({ feature, log_odds }) => ({ text: describe(feature), by: log_odds }));
  steps.push({ text: ["All other features", ""], by: reasons.others });
  let at = reasons.base;
  const spans = steps.map(({ by }) => [at, (at += by)]);
  const points = [reasons.base, ...spans.flat(), ...(threshold ? [logOdds(threshold)] : [])];
  const [least, most] = [Math.min(...points), Math.max(...points)];
  const pad = 0.06 * (most - least) + 0.2;
  const x = (value) => 4 + (92 * (value - least + pad)) / (most - least + 2 * pad); // in percent of the width
  const limit = threshold ? `${x(logOdds(threshold))}%` : null;
  const dot = (value, kind) => svg("circle", { class: kind, cx: `${x(value)}%`, cy: "50%", r: 5 });
  const row = (kind, [title, value], mark, by, after) => el("li", { class: kind },
    el("span", {}, `${title} `, el("b", {}, value)),
    svg("svg", { class: "lane", "aria-hidden": "true" },
      ...(limit ? [svg("line", { class: "limit", x1: limit, x2: limit, y1: 0, y2: "100%" })] : []), mark),
    el("span", { class: "by" }, signed(by)), el("span", { class: "after" }, percent(fromLogOdds(after))));
  list.replaceChildren(
    row("", ["Start", ""], dot(reasons.base, "start"), reasons.base, reasons.base),
    ...steps.map(({ text, by }, place) => {
      const [from, to] = spans[place].map(x);
      const width = `${Math.max(Math.abs(to - from), 0.6)}%`;
      const bar = { class: by < 0 ? "down" : "up", x: `${Math.min(from, to)}%`, width, height: 12, rx: 3 };
      return row("", text, svg("rect", bar), by, spans[place][1]);
    }),
    row("sum", ["Result", ""], dot(at, "end"), logOdds(result), logOdds(result)));
}

const STRETCHED = { viewBox: "0 0 100 100", preserveAspectRatio: "none" };

/**
 * Bars of a histogram; those from the threshold on are accented.
 * @param {Element} place
 * @param {number[]} counts
 * @param {number} threshold
 */
export function drawHistogram(place, counts, threshold) {
  const most = Math.max(...counts, 1);
  const step = 100 / counts.length;
  const bars = counts.map((count, bin) => {
    const height = count && Math.max((96 * count) / most, 1);
    const kind = (bin + 0.5) / counts.length >= threshold ? "up" : "down";
    return svg("rect", { class: kind, x: bin * step + 0.3, width: step - 0.6, y: 100 - height, height });
  });
  place.replaceChildren(svg("svg", { ...STRETCHED, role: "img", "aria-labelledby": "histogram-text" },
    ...bars, svg("line", { class: "limit", x1: 100 * threshold, x2: 100 * threshold, y1: 0, y2: 100 })));
}

/**
 * A line of the last values.
 * @param {Element} place
 * @param {number[]} values
 * @param {number} capacity values that the full width shows
 */
export function drawSpark(place, values, capacity) {
  const most = Math.max(...values, 1);
  const x = (at) => (100 * (at + capacity - values.length)) / (capacity - 1);
  const points = values.map((value, at) => `${x(at)},${97 - (92 * value) / most}`).join(" ");
  place.replaceChildren(svg("svg", { ...STRETCHED, "aria-hidden": "true" },
    svg("polygon", { points: `${x(0)},100 ${points} 100,100` }), svg("polyline", { points })));
}
