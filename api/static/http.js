// Requests to the public API: the key, a pause and another attempt after 429 and 503, and problems (RFC 9457).

import { $, say } from "./dom.js";

/** A response that is no success. */
export class Problem extends Error {
  /** @param {{title: string, detail: string, errors?: any[], rows?: any[], refused?: number}} body */
  constructor(body) {
    super(body.detail === "See errors." ? body.title : `${body.title}. ${body.detail}`.replaceAll("..", "."));
    this.body = body;
  }
}

let key = ""; // in memory only: never in an address, a cookie or the storage
/** @type {Promise<void> | null} */
let asking = null;

/**
 * Send a request until it is answered with anything but 401, 429 and 503; throw a Problem unless it succeeds.
 * @param {string} path relative, so that a gateway may add a prefix
 * @param {RequestInit & {onPause?: (text: string) => void, isQuiet?: boolean}} [options]
 *   onPause shows a text each second of a pause; without it there is one attempt. isQuiet asks for no key.
 * @param {(path: string, options: any) => Promise<Response>} transport
 */
export async function send(path, { onPause, isQuiet, ...options } = {}, transport = fetch) {
  for (;;) {
    const used = key;
    const headers = { ...options.headers, ...(used && { Authorization: `Bearer ${used}` }) };
    let pauseS = 2;
    let reason = "The API does not answer.";
    options.signal?.throwIfAborted();
    try {
      const response = await transport(path, { ...options, headers, credentials: "omit", cache: "no-store" });
      if (response.ok) return response;
      const problem = new Problem(await response.json().catch(() => (
        { title: `Status ${response.status}`, detail: "A gateway answered instead of the API." })));
      if (response.status === 401 && !isQuiet) {
        if (used === key) await askKey(problem);
        continue;
      }
      if (!onPause || ![429, 503].includes(response.status)) throw problem;
      pauseS = Number(response.headers.get("Retry-After")) || 1;
      reason = problem.message;
    } catch (error) {
      if (!onPause || !(error instanceof TypeError)) throw error; // TypeError: no response
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
    if (key) say("key-text", "The service does not know this key.");
    $("key-form").onsubmit = () => { key = $("key").value.trim(); resolve(); };
    $("key-cancel").onclick = () => $("key-dialog").close();
    $("key-dialog").onclose = () => { $("key").value = ""; reject(problem); }; // after a submit it is resolved already
    $("key-dialog").showModal();
  })).finally(() => { asking = null; });
  return asking;
}

/** XMLHttpRequest as `fetch`: it reports the progress of an upload. @param {(sent: number, total: number) => void} onProgress */
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
