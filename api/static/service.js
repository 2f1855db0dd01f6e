// The service, live: its parts, workers and queues every two seconds; and the card of its model.

import { drawSpark } from "./charts.js";
import { $, counted, define, el, number, percent, say, show, spaced, tabulate } from "./dom.js";
import { send } from "./http.js";

const EVERY_MS = 2000;
const KEPT = 150; // values of the chart: five minutes

/** @type {Promise<any> | null} */
let card = null;
/** @type {string} */
let cardVersions = "";
/** @type {any} the schema of GET /churn/queue, if this API has it */
let queue = null;
/** @type {number[]} */
const waiting = [];

/** The card of the model; asked again after a failure. @returns {Promise<any>} */
export function readCard() {
  card ??= send("churn/model").then((response) => response.json()).catch((error) => { card = null; throw error; });
  return card;
}

/** @param {import("./schema.js").Schema} schema */
export function startService(schema) {
  queue = schema.queue;
  poll();
  addEventListener("hashchange", () => { if (location.hash === "#service") readCard().then(showCard).catch(explainCard); });
  if (location.hash === "#service") readCard().then(showCard).catch(explainCard);
}

// Ask for the state of each part, and again two seconds later; not while the tab is hidden.
async function poll() {
  if (!document.hidden) {
    try {
      const response = await fetch("readyz", { cache: "no-store" });
      await showState(await response.json());
    } catch {
      setState("bad", "No answer");
      say("ready-text", "The API does not answer. This page asks again every two seconds.");
    }
  }
  setTimeout(poll, EVERY_MS);
}

function setState(kind, text) {
  $("state").className = `pill ${kind}`;
  if ($("state-text").textContent !== text) $("state-text").textContent = text;
}

async function showState({ status, detail, broker, result_store, subscription, submissions, workers, messages, warnings }) {
  const isReady = status === "ready";
  setState(isReady ? "good" : "bad", isReady ? "Ready" : "Not ready");
  const versions = JSON.stringify(Object.values(workers ?? {}).map((one) => one.detail).sort());
  if (versions !== cardVersions) { cardVersions = versions; card = null; if (location.hash === "#service") readCard().then(showCard).catch(explainCard); }
  if ($("view-service").hidden && !isReady) return;
  say("ready-text", [isReady ? "Ready: a prediction that is sent now is computed." : detail, ...(warnings ?? [])].join(" "));
  const all = Object.entries(workers ?? {});
  const able = all.filter(([, worker]) => worker.model === "loaded").length;
  const backlog = queue ? await readQueue() : null;
  /** @type {[string, string][]} */
  const parts = [["Broker", broker], ["Result store", result_store], ["Completions", subscription], ["Last submission", submissions],
    ["Workers that can predict", `${able} of ${all.length}`]];
  const names = /** @type {Record<string, string>} */ ({ churn: "Messages of predictions", "churn.batch": "Messages of batches" });
  for (const [name, count] of Object.entries(messages ?? {})) parts.push([names[name] ?? name, number(Number(count))]);
  define("parts", [...parts, ...(backlog?.entries ?? [])]);
  waiting.push(backlog?.waiting ?? Object.values(messages ?? {}).reduce((sum, one) => sum + one, 0));
  waiting.splice(0, waiting.length - KEPT);
  drawSpark($("spark"), waiting, KEPT);
  $("spark-title").textContent = backlog?.waiting == null ? "Messages waiting" : "Customers waiting";
  say("spark-text", `Now ${number(waiting[waiting.length - 1])}, at most ${number(Math.max(...waiting))} in the last five minutes`);
  tabulate("workers", ["Worker", "Model", "Version or reason", "Queues"], all.map(([name, worker]) =>
    [name, worker.model, worker.detail, (worker.queues ?? []).join(", ")]), "Workers");
}

// Read GET /churn/queue by its schema: each number with the title that the API gives it.
async function readQueue() {
  try {
    const values = await (await send("churn/queue", { isQuiet: true })).json();
    const numbers = Object.entries(values).filter(([, value]) => typeof value === "number");
    const entries = numbers.map(([name, value]) => /** @type {[string, string]} */ ([queue.properties?.[name]?.title ?? spaced(name), number(value, 3)]));
    return { entries, waiting: numbers.find(([name]) => name.includes("waiting"))?.[1] };
  } catch {
    return null; // without a key, or the store is away: /readyz says so
  }
}

function explainCard(error) {
  $("card").replaceChildren(el("h2", {}, "The model"), el("p", { class: "quiet" }, error.message));
}

function showCard(model) {
  const has = (part, make) => (part ? make() : []);
  const list = (id) => el("dl", { class: "tiles", id });
  const table = (id, name) =>
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": name }, el("table", { id }));
  $("card").replaceChildren(
    el("h2", {}, `The model: ${model.name}`),
    ...has(model.description, () => [el("p", {}, model.description)]),
    list("card-facts"),
    ...has(model.intended_use, () => [el("h3", {}, "Intended use"), el("p", {}, model.intended_use)]),
    ...has(model.limits, () => [el("h3", {}, "Limits"), el("ul", {}, ...model.limits.map((one) => el("li", {}, one)))]),
    ...has(model.scores, () => [el("h3", {}, "Scores on rows that the training did not see"), list("card-scores")]),
    ...has(model.calibration, () => [el("h3", {}, "Calibration"), list("card-calibration")]),
    ...has(model.features.length, () => [el("h3", {}, "Features in the training data"), table("card-features", "Features")]),
    ...has(model.in_use.length > 1, () => [el("h3", {}, "Versions in use"), table("card-versions", "Versions")]));
  const training = model.training ?? {};
  define("card-facts", /** @type {[string, string][]} */ ([["Version", model.version], ["Trained on", model.created],
    ["Rows", training.rows && number(training.rows)], ["Threshold", model.threshold != null && percent(model.threshold)],
    ["Workers", counted(model.in_use[0].workers, "worker")], ["Gives reasons", model.explains == null ? "" : model.explains ? "yes" : "no"]]
    .filter(([, value]) => value)));
  if (model.scores) {
    define("card-scores", Object.entries(model.scores).map(([name, value]) => [spaced(name), value.toFixed(3),
      model.spread?.mean[name] == null ? undefined : `other splits: ${model.spread.mean[name].toFixed(3)} ± ${model.spread.deviation[name].toFixed(3)}`]));
  }
  if (model.calibration) {
    define("card-calibration", Object.entries(model.calibration).map(([name, value]) => [spaced(name), typeof value === "number" ? number(value, 3) : value]));
  }
  if (model.features.length) {
    tabulate("card-features", ["Feature", "Type", "Values"], model.features.map((one) =>
      [one.name, one.type, one.categories?.join(", ") ?? (one.minimum == null ? "" : `${number(one.minimum)} to ${number(one.maximum)}`)]), "Features");
  }
  if (model.in_use.length > 1) {
    tabulate("card-versions", ["Version", "Workers"], model.in_use.map((one) => [one.version, number(one.workers)]), "Versions in use");
  }
  show("card", true);
}
