// The service, live: its parts, workers and queues every two seconds; and the card of its model.

import { drawSpark } from "./charts.js";
import { $, counted, define, el, number, percent, put, tabulate } from "./dom.js";
import { read } from "./http.js";

const EVERY_MS = 2000;
const ANSWER_S = 10;
const KEPT = 150; // values of the chart: five minutes

/** @type {Promise<any> | null} */
let card = null;
let versions = null; // of the workers
/** @type {Date | null} */
let answeredAt = null;
const waiting = [];

/** The card of the model; asked again after a failure. @returns {Promise<any>} */
export function readCard() {
  card ??= read("churn/model", { answerS: ANSWER_S }).catch((error) => { card = null; throw error; });
  return card;
}

export function startService() {
  addEventListener("hashchange", refreshCard);
  poll();
}

function refreshCard() {
  if (location.hash !== "#service") return;
  const explain = ({ message }) => $("card").replaceChildren(el("h2", {}, "The model"), el("p", {}, message));
  readCard().then(showCard, explain);
}

// Ask for the state every two seconds while the tab is visible.
async function poll() {
  if (!document.hidden) {
    let isAnswered = false;
    try {
      const response = await fetch("readyz", { cache: "no-store", signal: AbortSignal.timeout(1000 * ANSWER_S) });
      showState(await response.json(), await readQueue());
      isAnswered = true;
      answeredAt = new Date();
    } catch {
      const since = answeredAt ? ` The numbers below are those of ${answeredAt.toLocaleTimeString("en-GB")}.` : "";
      setState("bad", "No answer", `The API does not answer; the page asks again.${since}`);
    }
    $("live").classList.toggle("old", !isAnswered);
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
  const text = isReady ? "Ready: a prediction that is sent now is computed." : detail;
  setState(isReady ? "good" : "bad", isReady ? "Ready" : title, [text, ...warnings].join(" "));
  if (!workers) return; // Unavailable, while the API stops
  const all = Object.entries(workers);
  const found = all.map(([, worker]) => worker.detail).sort().join();
  if (found !== versions) { // another model
    card = null;
    versions = found;
    refreshCard();
  }
  const able = all.filter(([, { model }]) => model === "loaded").length;
  const row = (term, { waiting: count, oldest_s, drained_per_s }) => {
    const oldest = count && `the oldest for ${number(oldest_s, 2)} s`;
    const rate = drained_per_s && `${number(drained_per_s, 3)} per second`;
    return [term, number(count), [oldest, rate].filter(Boolean).join(", ")];
  };
  define($("parts"), [["Broker", broker], ["Result store", result_store],
    ["Workers that can predict", `${able} of ${all.length}`],
    ...(queue ? [row("Predictions waiting", queue.predictions), row("Batch rows waiting", queue.batch_rows)] : [])]);
  if (queue) {
    waiting.push(queue.predictions.waiting + queue.batch_rows.waiting);
    waiting.splice(0, waiting.length - KEPT);
    drawSpark($("spark"), waiting, KEPT);
    const most = number(Math.max(...waiting));
    put("spark-text", `Now ${number(waiting.at(-1))}, at most ${most} in the last five minutes`);
  }
  const rows = all.map(([name, { model, detail: one }]) => [name, model, one]);
  tabulate("workers", ["Worker", "Model", "Version or reason"], rows);
}

// The queue; null without a key or the result store.
const readQueue = () => read("churn/queue", { isQuiet: true, answerS: ANSWER_S }).catch(() => null);

/** The place of a prediction that waits: later ones may be counted too. */
export async function queueText() {
  const queue = await readQueue();
  if (!queue) return "";
  const { predictions: { waiting: count }, estimated_s, workers } = queue;
  const estimate = workers.loaded ? `It takes about ${number(estimated_s, 2)} s.` : "No worker can predict now.";
  return ` Its place is ${number(count)} at most. ${estimate}`;
}

// The meanings of scores and of the calibration; an own model may have others.
const MEANINGS = {
  roc_auc: "how well it ranks: 0.5 is chance, 1 is best",
  average_precision: "precision over all thresholds: 1 is best",
  f1: "precision and recall in one, at the threshold",
  precision: "share of true cases among those at or above the threshold",
  recall: "share of all true cases that are at or above the threshold",
  accuracy: "share of right verdicts at the threshold",
  brier: "mean squared error of the probability: 0 is best",
  log_loss: "error of the probability that punishes confident mistakes: 0 is best",
  calibration_error: "mean distance of the probability from the observed share: 0 is best",
  slope: "factor on the log-odds of the model: 1 changes nothing",
  intercept: "added to the log-odds of the model: 0 changes nothing",
};

function showCard(card) {
  const { name, version, created, description = "", intended_use, limits = [], training, threshold } = card;
  const { in_use, scores, spread, calibration, features } = card;
  const title = (text) => text.replaceAll("_", " ");
  const digits = (value) => (typeof value === "number" ? value.toFixed(3) : value);
  const tiles = (entries) => define(el("dl", { class: "tiles" }), entries);
  const part = (heading, isKnown, node) => (isKnown ? [el("h3", {}, heading), node] : []);
  const users = in_use.map((one) => `${counted(one.workers, "worker")}${in_use[1] ? ` with ${one.version}` : ""}`);
  const spreadOf = (one) =>
    spread?.mean[one] && `other splits: ${digits(spread.mean[one])} ± ${digits(spread.deviation[one])}`;
  const measures = (values) => tiles(Object.entries(values ?? {}).map(([one, value]) =>
    [title(one), digits(value), [MEANINGS[one], values === scores && spreadOf(one)].filter(Boolean).join("; ")]));
  const facts = [["Version", version], ["In use", users.join(", ")], ["Trained on", created],
    ["Rows", training?.rows && number(training.rows)], ["Threshold", threshold && percent(threshold)]];
  const table = el("table", { id: "card-features" });
  $("card").replaceChildren(el("h2", {}, `The model: ${name}`), el("p", {}, description),
    tiles(facts.filter(([, value]) => value)),
    ...part("Intended use", intended_use, el("p", {}, intended_use ?? "")),
    ...part("Limits", limits[0], el("ul", {}, ...limits.map((one) => el("li", {}, one)))),
    ...part("Scores on rows that the training did not see", scores, measures(scores)),
    ...part("Calibration", calibration, measures(calibration)),
    ...part("Features in the training data", true, el("div", {}, table)));
  const extent = ({ type, minimum, maximum }) =>
    (minimum == null ? type : `${number(minimum)} to ${number(maximum)}, ${type}`);
  const rows = features.map((one) => [one.name, one.categories?.join(", ") ?? extent(one)]);
  tabulate(table.id, ["Feature", "Values"], rows);
}
