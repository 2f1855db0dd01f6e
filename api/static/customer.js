// One customer: the form, the prediction with its reasons, and the prediction anew after each change.

import { drawReasons } from "./charts.js";
import { $, define, el, percent, say, show } from "./dom.js";
import { Problem, send } from "./http.js";

/** @typedef {import("./schema.js").Feature} Feature */

const CHANGE_MS = 350; // from the last key to the prediction
const EXPIRE_S = 300;

/** @type {Feature[]} */
let features = [];
/** @type {() => Promise<any>} */
let readCard;
let noun = "";
/** @type {AbortController | null} */
let running = null;
/** @type {number | null} */
let last = null;
let timer = 0;

/** @param {import("./schema.js").Schema} schema @param {() => Promise<any>} card */
export function startCustomer(schema, card) {
  features = schema.features;
  readCard = card;
  say("schema-text", schema.text);
  $("fields").append(...features.map(field));
  $("form").onsubmit = (event) => { event.preventDefault(); predict(true); };
  $("form").oninput = () => {
    if (last === null && !running) return; // the first prediction is asked for
    clearTimeout(timer);
    timer = setTimeout(() => predict(false), CHANGE_MS);
  };
  $("cancel").onclick = () => running?.abort();
  $("reset").onclick = () => {
    for (const feature of features) $(`f-${feature.name}`).value = String(feature.example ?? "");
    if (last !== null) predict(false);
  };
  $("describe").onclick = () => {
    const isOn = $("fields").classList.toggle("described");
    $("describe").setAttribute("aria-pressed", String(isOn));
  };
  card().then((found) => found && rangeFields(found)).catch(() => {});
}

function field(feature) {
  const id = `f-${feature.name}`;
  const shared = { id, name: feature.name, "aria-describedby": `h-${id} e-${id}`, autocomplete: "off" };
  const value = feature.example ?? "";
  const input = feature.categories.length
    ? el("select", shared, ...(feature.isRequired ? [] : [el("option", { value: "" }, "")]),
      ...feature.categories.map((one) => el("option", { selected: String(value) === one }, one)))
    : el("input", { ...shared, value, ...(feature.type === "category" ? {} : { type: "number", step: "any", inputmode: "decimal" }) });
  const about = [feature.description, feature.extent && `${feature.extent}.`].filter(Boolean).join(" ");
  return el("div", { class: "field" }, el("label", { for: id }, feature.title), input,
    el("p", { class: "hint", id: `h-${id}` }, about), el("p", { class: "bad", id: `e-${id}`, hidden: true }));
}

// Tell the ranges of the training data; a value outside of them is predicted like the nearest one.
function rangeFields(card) {
  noun = card.name;
  $("h-answer").textContent = `Probability of ${noun}`;
  for (const { name, minimum, maximum } of card.features) {
    const input = $(`f-${name}`);
    if (!input || minimum == null || maximum == null) continue;
    const hint = $(`h-f-${name}`);
    hint.append(` Training data: ${minimum.toLocaleString("en")} to ${maximum.toLocaleString("en")}.`);
    const check = () => {
      const isOutside = input.value !== "" && (input.value < minimum || input.value > maximum);
      input.closest(".field").classList.toggle("outside", isOutside);
    };
    input.addEventListener("input", check);
    $("reset").addEventListener("click", check);
    if (input.value === "") input.value = String((minimum + maximum) / 2); // a customer without an example
    check();
  }
}

// The customer of the form; a text that is no number stays a text, so that the API names the fault.
function readForm() {
  /** @type {Record<string, any>} */
  const customer = {};
  for (const feature of features) {
    const text = $(`f-${feature.name}`).value.trim();
    if (text === "") continue;
    const isNumber = feature.type !== "category" && !Number.isNaN(Number(text));
    customer[feature.name] = feature.isBoolean ? text === "true" : isNumber ? Number(text) : text;
  }
  return customer;
}

async function predict(isAsked) {
  clearTimeout(timer);
  running?.abort();
  const own = (running = new AbortController());
  const customer = readForm();
  $("view-customer").classList.add("busy");
  const slow = setTimeout(() => pause("Predicting"), 700);
  try {
    const started = performance.now();
    const card = await readCard().catch(() => null);
    const { prediction, stages } = await request(customer, card?.explains, own);
    const took = performance.now() - started;
    markFaults([]);
    showAnswer(prediction, card, customer);
    define("facts", [["Model version", prediction.model_version], ["Answered in", `${took.toFixed(0)} ms`], ...stages]);
    if (isAsked) moveTo($("h-answer").closest("section"));
  } catch (error) {
    if (own !== running) return; // a newer prediction has replaced it
    if (own.signal.aborted) say("said", "Cancelled.");
    else if (error instanceof Problem) explain(error, isAsked);
    else throw error;
  } finally {
    clearTimeout(slow);
    if (own === running) {
      running = null;
      $("view-customer").classList.remove("busy");
      show("waiting", false);
    }
  }
}

// Send the customer; wait a second in the request, and then for the id, which a cancelled prediction needs.
async function request(customer, hasReasons, { signal }) {
  const options = { signal, onPause: retrying };
  const headers = { "Content-Type": "application/json", Prefer: "wait=1", "Cancel-After": String(EXPIRE_S) };
  let response = await send(`churn/predict${hasReasons ? "?explain=true" : ""}`, { ...options, method: "POST", headers, body: JSON.stringify(customer) });
  let id = "";
  signal.addEventListener("abort", () => {
    if (id) send(`churn/result/${id}`, { method: "DELETE", isQuiet: true }).catch(() => {});
  });
  while (response.status === 202) {
    id = (await response.json()).task_id;
    signal.throwIfAborted();
    pause(`The prediction waits in the queue.${await queueText()}`);
    response = await send(`churn/result/${id}`, { ...options, headers: { Prefer: "wait=5" } });
  }
  id = "";
  const stages = (response.headers.get("Server-Timing") ?? "").split(",").flatMap((part) => {
    const [name, ...parameters] = part.trim().split(";");
    const of = (key) => parameters.find((one) => one.startsWith(`${key}=`))?.slice(key.length + 1).replaceAll('"', "");
    return of("dur") ? [/** @type {[string, string]} */ ([of("desc") ?? name, `${Number(of("dur")).toFixed(1)} ms`])] : [];
  });
  return { prediction: await response.json(), stages };
}

async function queueText() {
  try {
    const { messages, workers } = await (await fetch("readyz", { cache: "no-store" })).json();
    const able = Object.values(workers).filter((worker) => worker.model === "loaded").length;
    return ` Messages before or with it: ${messages.churn ?? "unknown"}; workers that can predict: ${able}.`;
  } catch {
    return "";
  }
}

function pause(text) {
  show("waiting", true);
  if ($("waiting-text").textContent !== text) $("waiting-text").textContent = text;
}

function retrying(reason, seconds) {
  pause(seconds ? `${reason} Trying again in ${seconds} s.` : "Trying again.");
}

function showAnswer({ probability, reasons }, card, customer) {
  const shown = percent(probability);
  const isOver = card?.threshold != null && probability >= card.threshold;
  const verdict = card?.threshold == null ? ""
    : `${isOver ? "Counts" : "Does not count"} as ${card.name}: ${isOver ? "at or above" : "below"} the threshold of ${percent(card.threshold)}`;
  show("empty", false);
  show("answer", true);
  $("probability").textContent = shown;
  $("brief").textContent = shown;
  $("verdict").textContent = verdict;
  $("verdict").classList.toggle("over", isOver);
  $("change").textContent = last === null || last === probability ? "" : `It was ${percent(last)}.`;
  say("said", `Probability ${shown}. ${verdict}`);
  last = probability;
  show("reasons", reasons);
  const byName = new Map(features.map((feature) => [feature.name, feature]));
  const value = (one) => (typeof one === "number" ? one.toLocaleString("en") : String(one ?? ""));
  if (reasons) {
    drawReasons($("steps"), reasons, probability, card?.threshold,
      (name) => [byName.get(name)?.title ?? name, value(customer[name])]);
  }
}

function explain(problem, isAsked) {
  const others = markFaults(problem.body.errors ?? []);
  const text = problem.body.errors && !others.length ? "Correct the marked fields." : [problem.message, ...others].join(" ");
  say("said", text);
  show("answer", false);
  say("empty", text);
  const first = document.querySelector("#fields [aria-invalid]");
  if (isAsked && first instanceof HTMLElement) first.focus();
}

// Show each fault at its field; return those that belong to none.
function markFaults(faults) {
  const byName = new Map(faults.map((fault) => [fault.pointer.split("/")[1], fault.message]));
  for (const { name } of features) {
    const message = byName.get(name) ?? "";
    say(`e-f-${name}`, message);
    if (message) $(`f-${name}`).setAttribute("aria-invalid", "true");
    else $(`f-${name}`).removeAttribute("aria-invalid");
    byName.delete(name);
  }
  return [...byName.values()];
}

// Scroll to an element if it is out of sight, as on a phone.
function moveTo(element) {
  const { top, bottom } = element.getBoundingClientRect();
  const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (top > innerHeight - 120 || bottom < 120) element.scrollIntoView({ behavior: isCalm ? "auto" : "smooth", block: "start" });
}
