// One customer: the form, the prediction with its reasons, and the prediction anew after each change.

import { drawReasons } from "./charts.js";
import { $, define, el, number, percent, put, say, show } from "./dom.js";
import { Problem, send } from "./http.js";
import { queueText, readCard } from "./service.js";

const CHANGE_MS = 350; // from the last key to the prediction

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
    $("form").dispatchEvent(new Event("checkrange"));
    clearTimeout(timer);
    if (last >= 0) timer = setTimeout(predict, CHANGE_MS); // the first prediction is asked for
  };
  $("cancel").onclick = () => running?.abort();
  $("reset").onclick = () => {
    for (const { name, example } of features) $(`f-${name}`).value = String(example ?? "");
    $("form").oninput();
  };
  readCard().then(addRanges, () => {});
}

function field({ name, title, description, extent, type, categories, isRequired, example = "" }) {
  const id = `f-${name}`;
  const shared = { id, name, "aria-describedby": `h-${id} e-${id}`, autocomplete: "off" };
  const options = [...(isRequired ? [] : [""]), ...categories].map((one) => el("option", { selected: String(example) === one }, one));
  const input = categories.length ? el("select", shared, ...options)
    : el("input", { ...shared, value: example, ...(type !== "category" && { type: "number", step: "any", inputmode: "decimal" }) });
  return el("div", { class: "field" }, el("label", { for: id }, title), input,
    el("p", { class: "hint", id: `h-${id}` }, `${description} ${extent}`), el("p", { class: "bad", id: `e-${id}`, hidden: true }));
}

// Tell the ranges of the training data, and mark a value outside of them.
function addRanges(card) {
  put("h-answer", `Probability of ${card.name}`);
  for (const { name, minimum, maximum } of card.features) {
    const input = $(`f-${name}`);
    if (!input || minimum == null) continue;
    $(`h-f-${name}`).append(` Training data: ${number(minimum)} to ${number(maximum)}.`);
    input.value ||= (minimum + maximum) / 2; // a customer without an example
    $("form").addEventListener("checkrange", () =>
      input.parentNode.classList.toggle("outside", input.value !== "" && (input.value < minimum || input.value > maximum)));
  }
}

// The customer of the form; a text that is no number stays a text, so that the API names the fault.
function readForm() {
  const customer = {};
  for (const { name, type, isBoolean } of features) {
    const text = $(`f-${name}`).value.trim();
    const isNumber = type !== "category" && !Number.isNaN(Number(text));
    if (text) customer[name] = isBoolean ? text === "true" : isNumber ? Number(text) : text;
  }
  return customer;
}

// Predict the customer of the form. After the button the page moves to the fault or to the answer.
async function predict(isAsked = false) {
  running?.abort();
  const own = (running = new AbortController());
  const customer = readForm();
  const slow = setTimeout(() => wait("Predicting."), 700);
  $("answer").classList.add("busy");
  try {
    const started = performance.now();
    const card = await readCard().catch(() => ({}));
    const { prediction, stages } = await request(customer, card.explains, own.signal);
    const facts = [["Model version", prediction.model_version], ["Answered in", `${(performance.now() - started).toFixed(0)} ms`], ...stages];
    markFaults([]);
    showAnswer(prediction, card, customer);
    define("facts", facts);
    if (isAsked) moveTo($("h-answer").parentNode);
  } catch (error) {
    if (own !== running) return; // a newer prediction has replaced it
    if (own.signal.aborted) for (const id of ["said", "empty"]) say(id, "Cancelled.");
    else if (error instanceof Problem) explain(error, isAsked);
    else throw error;
  } finally {
    clearTimeout(slow);
    if (own === running) {
      running = null;
      $("answer").classList.remove("busy");
      show("waiting", false);
    }
  }
}

// Send the customer. The request waits a second, and then for the id, by which a prediction can be cancelled.
async function request(customer, hasReasons, signal) {
  const options = { signal, onPause: (reason, seconds) => wait(`${reason} Trying again${seconds ? ` in ${seconds} s` : ""}.`) };
  const headers = { "Content-Type": "application/json", Prefer: "wait=1", "Cancel-After": "300" };
  let response = await send(`churn/predict${hasReasons ? "?explain=true" : ""}`, { ...options, method: "POST", headers, body: JSON.stringify(customer) });
  if (response.status === 202) {
    const path = `churn/result/${(await response.json()).task_id}`;
    try {
      while (response.status === 202) {
        wait(`The prediction waits in the queue.${await queueText()}`);
        response = await send(path, { ...options, headers: { Prefer: "wait=5" } });
      }
    } finally {
      if (signal.aborted) send(path, { method: "DELETE", isQuiet: true }).catch(() => {});
    }
  }
  const stages = [...(response.headers.get("Server-Timing") ?? "").matchAll(/([\w-]+);[^,]*?dur=([\d.]+)/g)].map(([, name, ms]) => [name, `${Number(ms).toFixed(1)} ms`]);
  return { prediction: await response.json(), stages };
}

function wait(text) {
  show("waiting", true);
  put("waiting-text", text);
}

function showAnswer({ probability, reasons }, { name, threshold }, customer) {
  const shown = percent(probability);
  const isOver = probability >= threshold;
  const verdict = threshold == null ? ""
    : `${isOver ? "Counts" : "Does not count"} as ${name}: ${isOver ? "at or above" : "below"} the threshold of ${percent(threshold)}`;
  show("empty", false);
  show("answer", true);
  put("probability", shown);
  put("brief", shown);
  put("verdict", verdict);
  $("verdict").classList.toggle("over", isOver);
  put("change", last < 0 || last === probability ? "" : `It was ${percent(last)}.`);
  say("said", `Probability ${shown}. ${verdict}`);
  last = probability;
  show("reasons", reasons);
  const value = (one) => (typeof one === "number" ? number(one) : String(one ?? ""));
  if (reasons) {
    drawReasons($("steps"), reasons, probability, threshold,
      (feature) => [features.find((one) => one.name === feature)?.title ?? feature, value(customer[feature])]);
  }
}

function explain({ message, body: { errors = [] } }, isAsked) {
  const others = markFaults(errors);
  const text = errors.length > others.length ? "Correct the marked fields." : [message, ...others].join(" ");
  say("said", text);
  say("empty", text);
  show("answer", false);
  if (isAsked) $("fields").querySelector("[aria-invalid]")?.focus();
}

// Show each fault at its field; return the messages of those that belong to none.
function markFaults(faults) {
  const messages = new Map(faults.map(({ pointer, message }) => [pointer.split("/")[1], message]));
  for (const { name } of features) {
    say(`e-f-${name}`, messages.get(name) ?? "");
    if (messages.delete(name)) $(`f-${name}`).setAttribute("aria-invalid", "true");
    else $(`f-${name}`).removeAttribute("aria-invalid");
  }
  return [...messages.values()];
}

// Scroll to an element that is out of sight, as on a phone.
function moveTo(element) {
  const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (element.getBoundingClientRect().top > innerHeight - 120) element.scrollIntoView({ behavior: isCalm ? "auto" : "smooth" });
}
