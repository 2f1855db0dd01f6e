// The features of a customer, read from the OpenAPI document: an own model changes the page without a change of it.

import { send } from "./http.js";


/** @typedef {{name: string, title: string, description: string, type: string, categories: string[], extent: string, isBoolean: boolean, isRequired: boolean, example: any}} Feature */
/** @typedef {{title: string, text: string, features: Feature[], hasQueue: boolean, version: string}} Schema */

/** @returns {Promise<Schema>} */
export async function loadSchema() {
  const document_ = await (await send("openapi.json")).json();
  const resolve = (node) =>
    node?.$ref ? node.$ref.slice(2).split("/").reduce((at, name) => at[name], document_) : node;
  const content = (body) => resolve(body?.content?.["application/json"]?.schema);
  const customer = content(document_.paths["/churn/predict"].post.requestBody);
  const examples = customer.examples?.[0] ?? {};
  const features = Object.entries(customer.properties).map(([name, property]) => {
    const given = resolve(property);
    const one = { ...given, ...resolve(given.anyOf?.find((kind) => kind.type !== "null")) };
    const isBoolean = one.type === "boolean";
    const categories = (one.enum ?? (isBoolean ? [true, false] : [])).map(String);
    const [low, high] = [one.minimum ?? one.exclusiveMinimum, one.maximum ?? one.exclusiveMaximum];
    return {
      name, categories, isBoolean,
      title: one.title ?? name,
      description: one.description ?? "",
      type: categories.length || one.type === "string" ? "category" : one.type,
      extent: low != null && high != null ? `${low.toLocaleString("en")} to ${high.toLocaleString("en")}.` : "",
      isRequired: (customer.required ?? []).includes(name),
      example: examples[name] ?? one.examples?.[0] ?? one.default,
    };
  });
  return {
    title: document_.info.title,
    version: document_.info.version,
    text: customer.description ?? "",
    features,
    hasQueue: "/churn/queue" in document_.paths,
  };
}
