// Requests to the public API: the key, a pause and another attempt after 429 and 503, and problems (RFC 9457).

import { $, say } from "./dom.js";

const ANSWER_S = 40; // until the headers of a response; Prefer waits for less

// Texts for people, where those of the API are for programmers.
const TEXTS = {
  "unauthorized": "This service asks for a key.",
  "invalid-rows": "Nothing is scored, because no row or nearly none is valid. The table has the faults.",
  "unknown-batch": "The service does not know this batch. Its results may have expired: choose the file again.",
  "batch-deleted": "This batch was cancelled or erased elsewhere, such as in another tab. Choose the file again.",
  "unknown-task": "The service does not know this prediction any more. Press Predict again.",
  "deleted": "This prediction was cancelled elsewhere. Press Predict again.",
  "expired": "This prediction waited for too long, and was given up. Press Predict again.",
};

/** A response that is no success. */
export class Problem extends Error {
  /** @param {Record<string, any>} body */
  constructor(body) {
    const text = body.detail && body.detail !== "See errors." ? body.detail : body.title;
    super(TEXTS[body.type?.split("/").pop() ?? ""] ?? text[0].toUpperCase() + text.slice(1));
    this.body = body;
  }
}

const FAULTS = { // by the code of the API, whose own texts are long
  missing: "Enter a value",
  int_type: "Enter a whole number",
  int_parsing: "Enter a whole number",
  int_from_float: "Enter a whole number",
  int_parsing_size: "Enter a smaller number",
  float_type: "Enter a number",
  float_parsing: "Enter a number",
  finite_number: "Enter a smaller number",
};

/** The text of a fault for people. @param {{code: string, message: string}} fault @returns {string} */
export const faultText = ({ code, message }) => FAULTS[code] ?? message;

const IN_A_HEADER = /^[\x20-\x7e\xa0-\xff]+$/; // fetch throws TypeError for other characters
let key = ""; // in memory only: never in an address, a cookie or the storage
/** @type {Promise<void> | null} */
let asking = null;

/**
 * Send a request until it is answered with anything but 401, 429 and 503; throw a Problem unless it succeeds.
 * @param {string} path relative, so that a gateway may add a prefix
 * @param {RequestInit & {onPause?: (text: string) => void, isQuiet?: boolean, answerS?: number}} [options]
 *   onPause shows a text each second of a pause; without it there is one attempt. isQuiet asks for no key.
 *   answerS limits the time until the headers of the response.
 * @param {(path: string, options: any) => Promise<Response>} transport
 */
export async function send(path, { onPause, isQuiet, answerS = ANSWER_S, ...options } = {}, transport = fetch) {
  for (;;) {
    const attempt = new AbortController();
    const timer = setTimeout(() => attempt.abort(new TypeError("The API does not answer.")), 1000 * answerS);
    const signal = AbortSignal.any([attempt.signal, ...(options.signal ? [options.signal] : [])]);
    const used = key;
    const headers = { ...options.headers, ...(used && { Authorization: `Bearer ${used}` }) };
    let pauseS = 2;
    let reason = "The API does not answer.";
    options.signal?.throwIfAborted();
    try {
      const response = await transport(path, { ...options, headers, signal, credentials: "omit", cache: "no-store" });
      if (response.ok) return response;
      const body = await response.json().catch(() => null);
      const fromGateway = { title: `A gateway answered instead of the API, with status ${response.status}.` };
      const problem = new Problem(body?.title ? body : fromGateway);
      if (response.status === 401 && !isQuiet) {
        if (used === key) await askKey(problem);
        continue;
      }
      if (!onPause || ![429, 503].includes(response.status)) throw problem;
      pauseS = Number(response.headers.get("Retry-After")) || 1;
      reason = problem.message;
    } catch (error) {
      if (!onPause || !(error instanceof TypeError)) throw error; // TypeError: no response
    } finally {
      clearTimeout(timer);
    }
    for (let left = pauseS; left > 0; left--) {
      onPause(`${reason} Trying again in ${left} s.`);
      await sleep(1, options.signal);
    }
    onPause(`${reason} Trying again.`);
  }
}

/** Send a request, and parse the JSON of its response. @param {Parameters<typeof send>} request */
export const read = async (...request) => (await send(...request)).json();

/** Wait, or reject on abort. @param {number} seconds @param {AbortSignal | null} [signal] */
export function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
    signal?.throwIfAborted();
  });
}

let drawnAt = 0;

/** Let the page draw, if it has not for 30 ms. */
export async function letDraw() {
  if (performance.now() - drawnAt < 30) return;
  await sleep(0);
  drawnAt = performance.now();
}

// Ask for the key once for all requests.
function askKey(problem) {
  asking ??= /** @type {Promise<void>} */ (new Promise((resolve, reject) => {
    say("key-fault", key && "The service does not know this key.");
    $("key-form").onsubmit = (event) => {
      const entered = $("key").value.trim();
      if (IN_A_HEADER.test(entered)) {
        key = entered;
        resolve();
      } else {
        event.preventDefault();
        say("key-fault", "A key has only letters of western languages, digits and signs. Copy it again.");
      }
    };
    $("key-cancel").onclick = () => $("key-dialog").close();
    $("key-dialog").onclose = () => { $("key").value = ""; reject(problem); }; // after a submit it is resolved already
    $("key-dialog").showModal();
  })).finally(() => { asking = null; });
  return asking;
}

/**
 * XMLHttpRequest as `fetch`: it reports the progress of an upload.
 * @param {(sent: number, total: number) => void} onProgress
 */
export const uploader = (onProgress) => (path, { method, headers, body, signal }) =>
  /** @type {Promise<Response>} */ (new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, path);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, String(value));
    request.upload.onprogress = ({ loaded, total }) => onProgress(loaded, total);
    request.onload = () => resolve(new Response(request.responseText, {
      status: request.status, headers: { "Retry-After": request.getResponseHeader("Retry-After") ?? "" } }));
    request.onerror = () => reject(new Error("The connection was lost while the file was sent. Try again."));
    request.onabort = () => reject(signal.reason);
    signal.addEventListener("abort", () => request.abort());
    request.send(body);
  }));
