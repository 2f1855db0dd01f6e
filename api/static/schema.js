// The features of a customer, read from the OpenAPI document, so that an own model changes the page.

import { number } from "./dom.js";
import { read } from "./http.js";

/**
 * @typedef {{
 *   name: string, title: string, description: string, type: string, categories: string[], extent: string,
 *   isBoolean: boolean, isRequired: boolean, example: any
 * }} Feature
 * @typedef {{title: string, text: string, features: Feature[], version: string}} Schema
 */

/** @returns {Promise<Schema>} */
export async function loadSchema() {
  const { info, paths, components } = await read("openapi.json");
  const resolve = (node) => (node?.$ref ? components.schemas[node.$ref.split("/").pop()] : node);
  const customer = resolve(paths["/churn/predict"].post.requestBody.content["application/json"].schema);
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
      extent: low != null && high != null ? `${number(low)} to ${number(high)}.` : "",
      isRequired: (customer.required ?? []).includes(name),
      example: customer.examples?.[0]?.[name] ?? one.examples?.[0] ?? one.default ?? "",
    };
  });
  return { title: info.title, version: info.version, text: customer.description ?? "", features };
}
