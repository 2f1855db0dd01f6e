// The page: its views by the end of the address, and the start of each part.

import { startCustomer } from "./customer.js";
import { put, say, show } from "./dom.js";
import { loadSchema } from "./schema.js";
import { readCard, startService } from "./service.js";

const VIEWS = ["customer", "file", "service"];

let startBatch = null; // once the schema is there

function route() {
  const [name] = location.hash.slice(1).split("/");
  if (name && !VIEWS.includes(name)) return; // an anchor within the page
  const view = name || VIEWS[0];
  for (const one of VIEWS) show(`view-${one}`, one === view);
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (view === "file") loadBatch();
}

function setTitle(title) {
  document.title = title;
  put("title", title);
}

// The code for files is loaded when it is needed.
function loadBatch() {
  startBatch?.();
  startBatch = null;
}

addEventListener("hashchange", route);
addEventListener("dragenter", loadBatch);
route();
try {
  const schema = await loadSchema();
  setTitle(schema.title);
  put("about", `${schema.title} ${schema.version}`);
  startService(schema);
  startCustomer(schema);
  startBatch = async () => (await import("./batch.js")).startBatch(schema);
  route();
  readCard().then(({ name }) => setTitle(`${name[0].toUpperCase()}${name.slice(1)} predictions`), () => {});
} catch {
  say("fault", "The API does not answer. Start it, and reload this page.");
}
