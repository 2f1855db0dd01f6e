// The service, live: its parts, workers and queues every two seconds; and the card of its model.

import { drawSpark } from "./charts.js";
import { $, counted, define, el, number, percent, put, tabulate } from "./dom.js";
import { send } from "./http.js";

const EVERY_MS = 2000;
const KEPT = 150; // values of the chart: five minutes
const QUEUES = { churn: "Messages of predictions", "churn.batch": "Messages of batches" };

/** @type {Promise<any> | null} */
let card = null;
let versions = "";
let hasQueue = false; // GET /churn/queue
const waiting = [];

/** The card of the model; asked again after a failure. @returns {Promise<any>} */
export function readCard() {
  card ??= send("churn/model").then((response) => response.json()).catch((error) => { card = null; throw error; });
  return card;
}

/** @param {import("./schema.js").Schema} schema */
export function startService(schema) {
  ({ hasQueue } = schema);
  addEventListener("hashchange", refreshCard);
  refreshCard();
  poll();
}

function refreshCard() {
  if (location.hash === "#service") readCard().then(showCard, ({ message }) => $("card").replaceChildren(el("h2", {}, "The model"), el("p", {}, message)));
}

// Ask for the state of each part, and again two seconds later; not while the tab is hidden.
async function poll() {
  if (!document.hidden) {
    try {
      await showState(await (await fetch("readyz", { cache: "no-store" })).json());
    } catch {
      setState("bad", "No answer", "The API does not answer. The page asks again every two seconds.");
    }
  }
  setTimeout(poll, EVERY_MS);
}

function setState(kind, state, text) {
  $("state").className = `pill ${kind}`;
  put("state-text", state);
  put("ready-text", text);
}

async function showState({ status, detail, broker, result_store, subscription, submissions, workers, messages, warnings }) {
  const isReady = status === "ready";
  setState(isReady ? "good" : "bad", isReady ? "Ready" : "Not ready", [isReady ? "Ready: a prediction that is sent now is computed." : detail, ...warnings].join(" "));
  const all = Object.entries(workers);
  const found = all.map(([, worker]) => worker.detail).sort().join();
  if (found !== versions) { // another model, or the first worker
    if (versions) card = null;
    versions = found;
    refreshCard();
  }
  const backlog = await readQueue();
  const able = all.filter(([, { model }]) => model === "loaded").length;
  const rows = [["Predictions waiting", backlog?.predictions], ["Batch rows waiting", backlog?.batch_rows]].map(([title, one]) =>
    [title, number(one?.waiting ?? 0), `the oldest for ${number(one?.oldest_s ?? 0, 2)} s${one?.drained_per_s == null ? "" : `; ${number(one.drained_per_s, 3)} per second`}`]);
  define("parts", [["Broker", broker], ["Result store", result_store], ["Completions", subscription], ["Last submission", submissions],
    ["Workers that can predict", `${able} of ${all.length}`],
    ...(backlog ? [...rows, ["A new prediction takes", `${number(backlog.estimated_s, 2)} s`]]
      : Object.entries(messages).map(([name, count]) => [QUEUES[name] ?? name, number(count)]))]);
  waiting.push(backlog ? backlog.predictions.waiting + backlog.batch_rows.waiting : Object.values(messages).reduce((sum, one) => sum + one, 0));
  waiting.splice(0, waiting.length - KEPT);
  drawSpark($("spark"), waiting, KEPT);
  put("spark-title", backlog ? "Customers waiting" : "Messages waiting");
  put("spark-text", `Now ${number(waiting.at(-1))}, at most ${number(Math.max(...waiting))} in the last five minutes`);
  tabulate("workers", ["Worker", "Model", "Version or reason", "Queues"], all.map(([name, worker]) => [name, worker.model, worker.detail, (worker.queues ?? []).join(", ")]));
}

// Read GET /churn/queue; null if this API has none, or without a key.
async function readQueue() {
  if (!hasQueue) return null;
  try {
    return await (await send("churn/queue", { isQuiet: true })).json();
  } catch {
    return null;
  }
}

/** How long a prediction that waits may take. */
export async function queueText() {
  const backlog = await readQueue();
  if (!backlog) return "";
  const { predictions: { waiting: count }, estimated_s, workers } = backlog;
  return ` ${counted(count, "customer")} wait. ${workers.loaded ? `A new one takes about ${number(estimated_s, 2)} s.` : "No worker can predict now."}`;
}

function showCard({ name, version, created, description, intended_use, limits, training, threshold, explains, in_use, scores = {}, spread, calibration = {}, features }) {
  const title = (text) => text.replaceAll("_", " ");
  const part = (heading, isKnown, ...nodes) => (isKnown ? [el("h3", {}, heading), ...nodes] : []);
  const tiles = (id) => el("dl", { class: "tiles", id });
  $("card").replaceChildren(el("h2", {}, `The model: ${name}`), el("p", {}, description ?? ""), tiles("card-facts"),
    ...part("Intended use", intended_use, el("p", {}, intended_use)),
    ...part("Limits", limits, el("ul", {}, ...(limits ?? []).map((one) => el("li", {}, one)))),
    ...part("Scores on rows that the training did not see", Object.keys(scores)[0], tiles("card-scores")),
    ...part("Calibration", Object.keys(calibration)[0], tiles("card-calibration")),
    ...part("Features in the training data", features[0], el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Features" }, el("table", { id: "card-features" }))));
  const workers = in_use.map((one) => `${counted(one.workers, "worker")}${in_use[1] ? ` with ${one.version}` : ""}`).join(", ");
  define("card-facts", [["Version", version], ["In use", workers], ["Trained on", created], ["Rows", training?.rows && number(training.rows)],
    ["Threshold", threshold != null && percent(threshold)], ["Gives reasons", explains ? "yes" : "no"]].filter(([, value]) => value));
  const digits = (value) => value.toFixed(3);
  if ($("card-scores")) {
    define("card-scores", Object.entries(scores).map(([one, value]) =>
      [title(one), digits(value), spread?.mean[one] && `other splits: ${digits(spread.mean[one])} ± ${digits(spread.deviation[one])}`]));
  }
  if ($("card-calibration")) define("card-calibration", Object.entries(calibration).map(([one, value]) => [title(one), typeof value === "number" ? number(value, 3) : value]));
  if (features[0]) {
    tabulate("card-features", ["Feature", "Type", "Values"], features.map((one) =>
      [one.name, one.type, one.categories?.join(", ") ?? (one.minimum == null ? "" : `${number(one.minimum)} to ${number(one.maximum)}`)]));
  }
}
