// Requests to the public API: the key, a pause and another attempt after 429 and 503, and problems (RFC 9457).

import { $, say } from "./dom.js";

/** @typedef {{pointer: string, code: string, message: string}} Fault */
/** @typedef {{type: string, title: string, status: number, detail: string, errors?: Fault[], rows?: any[], refused?: number}} ProblemBody */
/** @typedef {(reason: string, seconds: number) => void} OnPause */

/** A response that is no success. */
export class Problem extends Error {
  constructor(body) {
    super(body.detail === "See errors." ? body.title : `${body.title}. ${body.detail}`.replaceAll("..", "."));
    this.body = body;
  }
}

let key = ""; // in memory only: never in an address, a cookie or the storage
/** @type {Promise<void> | null} */
let asking = null;

/**
 * Send a request until it is answered with anything but 401, 409, 429 and 503.
 * @param {string} path relative, so that a gateway may add a prefix
 * @param {RequestInit & {headers?: Record<string, string>, onPause?: OnPause, isQuiet?: boolean}} [options]
 *   onPause is called before every second of a pause; without it, and if isQuiet, there is one attempt
 * @param {(path: string, options: any) => Promise<Response>} transport
 * @returns {Promise<Response>} of a success
 * @throws {Problem}
 */
export async function send(path, { onPause, isQuiet, ...options } = {}, transport = fetch) {
  for (;;) {
    const used = key;
    const headers = { ...options.headers, ...(used && { Authorization: `Bearer ${used}` }) };
    let pauseS = 2;
    let reason = "The API does not answer.";
    try {
      const response = await transport(path, { ...options, headers, credentials: "omit", cache: "no-store" });
      if (response.ok) return response;
      const problem = await readProblem(response);
      if (response.status === 401 && !isQuiet) {
        if (used === key) await askKey(problem);
        continue;
      }
      if (!onPause || ![409, 429, 503].includes(response.status)) throw problem;
      pauseS = Number(response.headers.get("Retry-After")) || 1;
      reason = problem.message;
    } catch (error) {
      if (!onPause || !(error instanceof TypeError)) throw error;
    }
    for (let left = pauseS; left > 0; left--) {
      onPause(reason, left);
      await sleep(Math.min(left, 1), options.signal);
    }
    onPause(reason, 0);
  }
}

async function readProblem(response) {
  try {
    return new Problem(await response.json());
  } catch {
    return new Problem({ type: "", title: `Status ${response.status}`, status: response.status, detail: "A gateway answered instead of the API." });
  }
}

/** Wait, or reject as soon as the signal aborts. @param {number} seconds @param {AbortSignal | null} [signal] */
export function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
    signal?.throwIfAborted();
  });
}

let drawnAt = 0;

/** Let the page draw and answer, if the last time is long ago. */
export async function letDraw() {
  if (performance.now() - drawnAt < 30) return;
  await sleep(0);
  drawnAt = performance.now();
}

// Ask for the key once, for all requests that wait for it.
function askKey(problem) {
  asking ??= /** @type {Promise<void>} */ (new Promise((resolve, reject) => {
    const dialog = $("key-dialog");
    if (key) say("key-text", "The service does not know this key. Enter another one.");
    $("key-form").onsubmit = () => { key = $("key").value.trim(); resolve(); };
    $("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => { $("key").value = ""; reject(problem); }; // after a submit it is resolved already
    dialog.showModal();
  })).finally(() => { asking = null; });
  return asking;
}

/** XMLHttpRequest as `fetch`, because it reports the progress of an upload. @param {(sent: number, total: number) => void} onProgress */
export function uploader(onProgress) {
  return (path, { method, headers, body, signal }) =>
    /** @type {Promise<Response>} */ (new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open(method, path);
      for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, String(value));
      request.upload.onprogress = (event) => onProgress(event.loaded, event.total);
      request.onload = () => {
        const after = request.getResponseHeader("Retry-After");
        resolve(new Response(request.responseText, { status: request.status, headers: after ? { "Retry-After": after } : {} }));
      };
      request.onerror = () => reject(new Error("The connection was lost while the file was sent. Try again, with fewer rows if it is lost again."));
      request.onabort = () => reject(signal.reason);
      signal.addEventListener("abort", () => request.abort());
      request.send(body);
    }));
}
