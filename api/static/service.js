// The service, live: its parts, workers and queues every two seconds; and the card of its model.

import { drawSpark } from "./charts.js";
import { $, counted, define, el, number, percent, put, tabulate } from "./dom.js";
import { read } from "./http.js";

const EVERY_MS = 2000;
const KEPT = 150; // values of the chart: five minutes

/** @type {Promise<any> | null} */
let card = null;
let versions = null; // of the workers
const waiting = [];

/** The card of the model; asked again after a failure. @returns {Promise<any>} */
export function readCard() {
  card ??= read("churn/model").catch((error) => { card = null; throw error; });
  return card;
}

export function startService() {
  addEventListener("hashchange", refreshCard);
  poll();
}

function refreshCard() {
  if (location.hash === "#service") readCard().then(showCard, ({ message }) => $("card").replaceChildren(el("h2", {}, "The model"), el("p", {}, message)));
}

// Ask for the state every two seconds while the tab is visible.
async function poll() {
  if (!document.hidden) {
    try {
      showState(await (await fetch("readyz", { cache: "no-store" })).json(), await readQueue());
    } catch {
      setState("bad", "No answer", "The API does not answer; the page asks again.");
    }
  }
  setTimeout(poll, EVERY_MS);
}

function setState(kind, state, text) {
  $("state").className = `pill ${kind}`;
  put("state-text", state);
  put("ready-text", text);
}

function showState({ status, title, detail, broker, result_store, workers, warnings = [] }, queue) {
  const isReady = status === "ready";
  setState(isReady ? "good" : "bad", isReady ? "Ready" : title, [isReady ? "Ready: a prediction that is sent now is computed." : detail, ...warnings].join(" "));
  if (!workers) return; // Unavailable, while the API stops
  const all = Object.entries(workers);
  const found = all.map(([, worker]) => worker.detail).sort().join();
  if (found !== versions) { // another model
    card = null;
    versions = found;
    refreshCard();
  }
  const able = all.filter(([, { model }]) => model === "loaded").length;
  const row = (term, { waiting: count, oldest_s, drained_per_s }) =>
    [term, number(count), [count && `the oldest for ${number(oldest_s, 2)} s`, drained_per_s && `${number(drained_per_s, 3)} per second`].filter(Boolean).join(", ")];
  define($("parts"), [["Broker", broker], ["Result store", result_store], ["Workers that can predict", `${able} of ${all.length}`],
    ...(queue ? [row("Predictions waiting", queue.predictions), row("Batch rows waiting", queue.batch_rows)] : [])]);
  if (queue) {
    waiting.push(queue.predictions.waiting + queue.batch_rows.waiting);
    waiting.splice(0, waiting.length - KEPT);
    drawSpark($("spark"), waiting, KEPT);
    put("spark-text", `Now ${number(waiting.at(-1))}, at most ${number(Math.max(...waiting))} in the last five minutes`);
  }
  tabulate("workers", ["Worker", "Model", "Version or reason"], all.map(([name, { model, detail: one }]) => [name, model, one]));
}

// The queue; null without a key or the result store.
const readQueue = () => read("churn/queue", { isQuiet: true }).catch(() => null);

/** The place of a prediction that waits: later ones may be counted too. */
export async function queueText() {
  const queue = await readQueue();
  if (!queue) return "";
  const { predictions: { waiting: count }, estimated_s, workers } = queue;
  return ` Its place is ${number(count)} at most. ${workers.loaded ? `It takes about ${number(estimated_s, 2)} s.` : "No worker can predict now."}`;
}

function showCard({ name, version, created, description = "", intended_use, limits = [], training, threshold, in_use, scores, spread, calibration, features }) {
  const title = (text) => text.replaceAll("_", " ");
  const digits = (value) => (typeof value === "number" ? value.toFixed(3) : value);
  const tiles = (entries) => define(el("dl", { class: "tiles" }), entries);
  const part = (heading, isKnown, node) => (isKnown ? [el("h3", {}, heading), node] : []);
  const facts = [["Version", version], ["In use", in_use.map((one) => `${counted(one.workers, "worker")}${in_use[1] ? ` with ${one.version}` : ""}`).join(", ")],
    ["Trained on", created], ["Rows", training?.rows && number(training.rows)], ["Threshold", threshold && percent(threshold)]];
  const table = el("table", { id: "card-features" });
  $("card").replaceChildren(el("h2", {}, `The model: ${name}`), el("p", {}, description), tiles(facts.filter(([, value]) => value)),
    ...part("Intended use", intended_use, el("p", {}, intended_use ?? "")),
    ...part("Limits", limits[0], el("ul", {}, ...limits.map((one) => el("li", {}, one)))),
    ...part("Scores on rows that the training did not see", scores, tiles(Object.entries(scores ?? {}).map(([one, value]) =>
      [title(one), digits(value), spread?.mean[one] && `other splits: ${digits(spread.mean[one])} ± ${digits(spread.deviation[one])}`]))),
    ...part("Calibration", calibration, tiles(Object.entries(calibration ?? {}).map(([one, value]) => [title(one), digits(value)]))),
    ...part("Features in the training data", true, el("div", {}, table)));
  tabulate(table.id, ["Feature", "Values"], features.map(({ name: feature, type, categories, minimum, maximum }) =>
    [feature, categories?.join(", ") ?? (minimum == null ? type : `${number(minimum)} to ${number(maximum)}, ${type}`)]));
}
