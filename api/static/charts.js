// Charts as SVG by hand. Their numbers are in the text beside them, so that a screen reader needs no picture.

import { el, fromLogOdds, logOdds, percent, svg } from "./dom.js";

const TICKS = [0.5, 0.1, 0.9, 0.01, 0.99, 0.001, 0.999, 1e-4, 0.9999, 1e-5, 0.99999];

/**
 * The way from the base to the result: a list with a bar for each contribution.
 * @param {Element} list
 * @param {{base: number, up: {feature: string, log_odds: number}[], down: {feature: string, log_odds: number}[], others: number}} reasons
 * @param {number} result probability
 * @param {number | undefined} threshold
 * @param {(feature: string) => [string, string]} describe returns the title and the value of a feature
 */
export function drawReasons(list, reasons, result, threshold, describe) {
  const steps = [...reasons.up, ...reasons.down].map(({ feature, log_odds }) => ({ text: describe(feature), by: log_odds }));
  steps.push({ text: ["All other features", ""], by: reasons.others });
  let at = reasons.base;
  const spans = steps.map(({ by }) => /** @type {[number, number]} */ ([at, (at += by)]));
  const points = [reasons.base, ...spans.flat(), ...(threshold ? [logOdds(threshold)] : [])];
  const [least, most] = [Math.min(...points), Math.max(...points)];
  const pad = 0.06 * (most - least) + 0.2;
  const x = (value) => 4 + (92 * (value - least + pad)) / (most - least + 2 * pad);
  const ticks = TICKS.map((p) => ({ p, x: x(logOdds(p)) })).filter((tick) => tick.x > 6 && tick.x < 94);
  const shown = ticks.filter((tick, place) => ticks.slice(0, place).every((other) => Math.abs(other.x - tick.x) > 16));
  const line = (kind, where) =>
    svg("line", { class: kind, x1: `${where}%`, x2: `${where}%`, y1: 0, y2: "100%" });
  const lane = (...marks) => svg("svg", { class: "lane", "aria-hidden": true },
    ...shown.map((tick) => line("grid", tick.x)), ...(threshold ? [line("limit", x(logOdds(threshold)))] : []), ...marks);
  const dot = (value, kind) => svg("circle", { class: kind, cx: `${x(value)}%`, cy: "50%", r: 5 });
  const row = (kind, text, marks, by, after) =>
    el("li", { class: kind }, el("span", { class: "what" }, text[0], " ", el("b", {}, text[1])), lane(marks),
      el("span", { class: "by" }, by), el("span", { class: "after" }, percent(fromLogOdds(after))));
  list.replaceChildren(
    row("base", ["Start of every customer", ""], dot(reasons.base, "start"), signed(reasons.base), reasons.base),
    ...steps.map(({ text, by }, place) => {
      const [from, to] = spans[place].map(x);
      const bar = svg("rect", { class: by < 0 ? "down" : "up", x: `${Math.min(from, to)}%`, width: `${Math.max(Math.abs(to - from), 0.6)}%`, y: 5, height: 12, rx: 3 });
      return row("step", text, bar, signed(by), spans[place][1]);
    }),
    row("sum", ["This customer", ""], dot(at, "end"), signed(logOdds(result)), logOdds(result)),
    el("li", { class: "axis", "aria-hidden": true }, el("span", {}), svg("svg", { class: "lane" }, ...shown.map((tick) => {
      const text = svg("text", { x: `${tick.x}%`, y: 13 });
      text.textContent = percent(tick.p);
      return text;
    }))));
}

const signed = (value) => `${value < 0 ? "\u2212" : "+"}${Math.abs(value).toFixed(2)}`;

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
    const height = count ? Math.max((96 * count) / most, 1) : 0;
    return svg("rect", { class: (bin + 0.5) / counts.length >= threshold ? "up" : "down", x: bin * step + 0.3, width: step - 0.6, y: 100 - height, height });
  });
  place.replaceChildren(svg("svg", { class: "histogram", viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img", "aria-labelledby": "histogram-text" },
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
  const points = values.map((value, at) => `${(100 * (at + capacity - values.length)) / (capacity - 1)},${97 - (92 * value) / most}`);
  const area = values.length > 1 ? `${points[0].split(",")[0]},100 ${points.join(" ")} 100,100` : "";
  place.replaceChildren(svg("svg", { class: "spark", viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": true },
    svg("polygon", { points: area }), svg("polyline", { points: points.join(" ") })));
}
