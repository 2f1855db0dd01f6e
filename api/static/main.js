// The page: its views by the end of the address, and the start of each part.

import { startBatch } from "./batch.js";
import { startCustomer } from "./customer.js";
import { $, say, show } from "./dom.js";
import { loadSchema } from "./schema.js";
import { readCard, startService } from "./service.js";

const VIEWS = ["customer", "file", "service"];

function route() {
  const [name] = location.hash.slice(1).split("/");
  if (name && !VIEWS.includes(name)) return; // an anchor within the page
  const view = name || VIEWS[0];
  for (const one of VIEWS) show(`view-${one}`, one === view);
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

addEventListener("hashchange", route);
route();
try {
  const schema = await loadSchema();
  document.title = schema.title;
  $("title").textContent = schema.title;
  $("about").textContent = `${schema.title} ${schema.version}`;
  startService(schema);
  startCustomer(schema, readCard);
  startBatch(schema, readCard);
} catch {
  say("fault", "The API does not answer. Start it, and reload this page.");
}
