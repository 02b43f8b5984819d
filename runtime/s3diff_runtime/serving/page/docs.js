// The paths of the service, from what OpenAPI says of them.

const made = (name, text, ...children) => {
  const element = document.createElement(name);
  element.append(...(text ? [text] : []), ...children);
  return element;
};
const rangeOf = ({ type, minimum, maximum, enum: choices, default: usual }) =>
  [
    choices ? choices.join(" | ") : type,
    minimum === undefined ? "" : `${minimum} to ${maximum}`,
    usual === undefined ? "" : `default ${usual}`,
  ]
    .filter(Boolean)
    .join(", ");

const paths = document.getElementById("paths");
const here = new URL(".", location.href).href;
document.getElementById("example").textContent = `curl --data-binary @photo.jpg ${here}v1/upscale -o photo-x4.jpg`;
const described = await (await fetch("openapi.json")).json();
for (const [path, methods] of Object.entries(described.paths)) {
  for (const [method, said] of Object.entries(methods)) {
    const table = made("table", "");
    for (const { name, description, schema } of said.parameters ?? []) {
      table.append(made("tr", "", made("td", `?${name}=`), made("td", description), made("td", rangeOf(schema))));
    }
    for (const [status, { description }] of Object.entries(said.responses)) {
      const cell = made("td", description);
      cell.colSpan = 2;
      table.append(made("tr", "", made("td", status), cell));
    }
    const title = made("h2", "", made("b", method.toUpperCase()), ` ${path}`);
    paths.append(title, made("p", said.description), table);
  }
}
