// The form, the prediction with its reasons, and a new prediction after each change.

import { drawReasons } from "./charts.js";
import { $, define, el, number, percent, put, say, show } from "./dom.js";
import { faultText, Problem, send } from "./http.js";
import { queueText, readCard } from "./service.js";

const CHANGE_MS = 350; // from the last key to the prediction
const SLOW_MS = 1200; // the API itself answers after a second, if only with the id
const STAGES = { // of Server-Timing
  accept: "until it was recorded",
  queue: "until a worker took it",
  predict: "in the worker",
  store: "until the API had the result",
};

/** @type {import("./schema.js").Feature[]} */
let features = [];
/** @type {AbortController | null} */
let running = null;
let last = -1; // the probability before

/** @param {import("./schema.js").Schema} schema */
export function startCustomer(schema) {
  let timer = 0;
  ({ features } = schema);
  put("schema-text", schema.text);
  $("fields").append(...features.map(field));
  $("form").onsubmit = (event) => { event.preventDefault(); clearTimeout(timer); predict(true); };
  $("form").oninput = () => {
    clearTimeout(timer);
    if (last >= 0) timer = setTimeout(predict, CHANGE_MS); // the first prediction is asked for
  };
  $("cancel").onclick = () => running?.abort();
  $("reset").onclick = () => {
    for (const { name, example } of features) $(`f-${name}`).value = String(example);
    $("form").oninput();
  };
  // Below the fields, because a hint at its field would cover the next one or the button.
  $("fields").addEventListener("focusin", ({ target }) => put("hint", $(`h-${target.id}`).textContent));
  readCard().then(addRanges, () => {});
}

function field({ name, title, description, extent, type, categories, isRequired, example }) {
  const id = `f-${name}`;
  const shared = { id, "aria-describedby": `h-${id} e-${id}` };
  const options = [...(isRequired ? [] : [""]), ...categories].map((one) =>
    el("option", { selected: String(example) === one }, one));
  const input = categories.length ? el("select", shared, ...options)
    : el("input", { ...shared, value: example, ...(type !== "category" && { type: "number", step: "any" }) });
  const hint = [title, description, extent && `Allowed: ${extent}`].filter(Boolean).map(sentence).join(" ");
  return el("div", { class: "field" }, el("label", { for: id }, title), input,
    el("p", { class: "bad", id: `e-${id}`, hidden: true }), el("p", { class: "hint", id: `h-${id}` }, hint));
}

const sentence = (text) => (text.endsWith(".") ? text : `${text}.`);

// Tell the ranges of the training data.
function addRanges(card) {
  put("h-answer", `Probability of ${card.name}`);
  for (const { name, minimum, maximum } of card.features) {
    const input = $(`f-${name}`);
    if (!input || minimum == null) continue;
    $(`h-f-${name}`).append(` Training data: ${number(minimum)} to ${number(maximum)}.`);
    input.value ||= (minimum + maximum) / 2; // a customer without an example
    Object.assign(input, { min: minimum, max: maximum }); // the style of :out-of-range
  }
}

// A text that is no number stays a text, so that the API names the fault.
function readForm() {
  const customer = {};
  for (const { name, type, isBoolean } of features) {
    const { value, validity } = $(`f-${name}`);
    const text = validity.badInput ? "?" : value.trim(); // the browser hides a text such as 1e400
    if (!text) continue;
    if (isBoolean) customer[name] = text === "true";
    else if (type === "category" || Number.isNaN(Number(text))) customer[name] = text;
    else customer[name] = Number(text);
  }
  return customer;
}

// Predict the customer. After the button the page moves to the fault or to the answer.
async function predict(isAsked = false) {
  running?.abort();
  const own = (running = new AbortController());
  const customer = readForm();
  if (last < 0) tell("Predicting.");
  $("answer").classList.add("busy");
  const slow = setTimeout(() => $("waiting").hidden && wait("The API has not answered yet."), SLOW_MS);
  try {
    const card = await readCard().catch(() => ({}));
    const started = performance.now();
    own.signal.throwIfAborted();
    const { prediction, stages } = await request(customer, card.explains, own.signal);
    const took = `${(performance.now() - started).toFixed(0)} ms`;
    define($("facts"), [["Model version", prediction.model_version], ["Answered in", took], ...stages]);
    markFaults([]);
    showAnswer(prediction, card, customer);
    const heading = $("h-answer");
    if (isAsked && heading.getBoundingClientRect().top > innerHeight - 120) heading.scrollIntoView(); // as on a phone
  } catch (error) {
    if (own !== running) return; // a newer prediction has replaced it
    if (own.signal.aborted) tell("Cancelled.");
    else if (error instanceof Problem) explain(error, isAsked);
    else tell(`The connection was lost (${error.message}). Press Predict again.`);
  } finally {
    clearTimeout(slow);
    if (own === running) {
      running = null;
      $("answer").classList.remove("busy");
      show("waiting", false);
    }
  }
}

// Wait a second for the answer, and then by its id, with which a prediction can be cancelled.
async function request(customer, hasReasons, signal) {
  const options = { signal, onPause: wait };
  const headers = { "Content-Type": "application/json", Prefer: "wait=1", "Cancel-After": "300" };
  const path = `churn/predict${hasReasons ? "?explain=true" : ""}`;
  let response = await send(path, { ...options, method: "POST", headers, body: JSON.stringify(customer) });
  if (response.status === 202) {
    const result = `churn/result/${(await response.json()).task_id}`;
    try {
      while (response.status === 202) {
        wait(`The prediction waits in the queue.${await queueText()}`);
        response = await send(result, { ...options, headers: { Prefer: "wait=5" } });
      }
    } finally {
      if (signal.aborted) send(result, { method: "DELETE" }).catch(() => {});
    }
  }
  const timing = response.headers.get("Server-Timing") ?? ""; // such as `queue;dur=3.4, predict;dur=5.6`
  const stages = [...timing.matchAll(/([\w-]+);[^,]*?dur=([\d.]+)/g)].map(([, stage, ms]) =>
    [`of which ${STAGES[stage] ? `${stage}, ${STAGES[stage]}` : stage}`, `${Number(ms).toFixed(1)} ms`]);
  return { prediction: await response.json(), stages };
}

function wait(text) {
  show("waiting", true);
  if (last < 0) put("said", ""); // "Predicting."
  put("waiting-text", text);
  put("brief", "…");
}

// Show a text in place of the answer; beside it only a screen reader has the text.
function tell(text, hasAnswer = false) {
  put("said", text);
  put("brief", "");
  $("said").className = hasAnswer ? "sr" : "quiet";
  show("answer", hasAnswer);
}

function showAnswer({ probability, reasons }, { name, threshold }, customer) {
  const shown = percent(probability);
  const isOver = probability >= threshold;
  const [counts, place] = isOver ? ["Counts", "at or above"] : ["Does not count", "below"];
  const verdict = threshold == null ? "" : `${counts} as ${name}: ${place} the threshold of ${percent(threshold)}.`;
  tell(`Probability ${shown}. ${verdict}`, true);
  put("probability", shown);
  put("brief", shown);
  put("verdict", verdict);
  $("verdict").classList.toggle("over", isOver);
  put("change", last < 0 || last === probability ? "" : `It was ${percent(last)}.`);
  last = probability;
  show("reasons", reasons);
  if (reasons) {
    drawReasons($("steps"), reasons, probability, threshold, (feature) =>
      [features.find((one) => one.name === feature)?.title ?? feature, (customer[feature] ?? "").toLocaleString("en")]);
  }
}

function explain({ message, body }, isAsked) {
  const { errors = [] } = body;
  const others = markFaults(errors);
  tell(errors.length > others.length ? "Correct the marked fields." : [message, ...others].join(" "));
  if (isAsked) $("fields").querySelector("[aria-invalid]")?.focus();
}

// Show each fault at its field; return the messages of the others.
function markFaults(faults) {
  const messages = new Map(faults.map((fault) => [fault.pointer.split("/")[1], faultText(fault)]));
  for (const { name } of features) {
    say(`e-f-${name}`, messages.get(name) ?? "");
    $(`f-${name}`).ariaInvalid = messages.delete(name) ? "true" : null;
  }
  return [...messages.values()];
}
