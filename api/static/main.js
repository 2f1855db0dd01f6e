// The page: its views by the end of the address, and the start of each part.

import { startCustomer } from "./customer.js";
import { $, put, say, show } from "./dom.js";
import { loadSchema } from "./schema.js";
import { readCard, startService } from "./service.js";

const VIEWS = ["customer", "file", "service"];

let startBatch = () => {}; // once the schema is there

function route() {
  const [named] = location.hash.slice(1).split("/");
  const view = VIEWS.includes(named) ? named : VIEWS[0];
  for (const one of VIEWS) show(`view-${one}`, one === view);
  for (const link of document.querySelectorAll("nav a")) {
    link.setAttribute("aria-current", link.getAttribute("href") === `#${view}` ? "page" : "false");
  }
  if (view === "file") startBatch();
}

function setTitle(title) {
  document.title = title;
  put("title", title);
}

addEventListener("hashchange", route);
$("skip").onclick = (event) => { // the end of the address stays that of the view, with the id of a batch
  event.preventDefault();
  $("content").focus();
};
addEventListener("dragenter", () => startBatch());
route();
try {
  const schema = await loadSchema();
  setTitle(schema.title);
  put("about", `Version ${schema.version}`);
  startService();
  startCustomer(schema);
  startBatch = async () => { // the code for files is loaded when it is needed
    startBatch = () => {};
    (await import("./batch.js")).startBatch(schema);
  };
  route();
  readCard().then(({ name }) => setTitle(`${name[0].toUpperCase()}${name.slice(1)} predictions`), () => {});
} catch {
  say("fault", "The API does not answer. Start it, and reload this page.");
}
