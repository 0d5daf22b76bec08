// Asks the server; whatever goes wrong is an Error with one line of text.

export function address(path, fields = {}) {
  const given = Object.entries(fields).filter(([, value]) => value !== null && value !== undefined);
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}

async function answered(promise) {
  let answer;
  try {
    answer = await promise;
  } catch {
    throw new Error(`The server does not answer; jobs go on without it. Start it again with --port ${location.port}, open the address it prints in another tab, and go on here.`);
  }
  if (answer.ok) return answer;
  let text = `The server answered ${answer.status}.`;
  try {
    text = (await answer.json()).error || text;
  } catch { /* no JSON: the number has to do */ }
  throw new Error(text);
}

export async function ask(path, fields) {
  return (await answered(fetch(address(path, fields), { cache: "no-store" }))).json();
}

export async function fetchBytes(path, fields) {
  const answer = await answered(fetch(address(path, fields), { cache: "no-store" }));
  try {
    return await answer.arrayBuffer();
  } catch {
    throw new Error("The file could not be read to its end: it is damaged, or the server has ended.");
  }
}

export async function send(path, content) {
  const options = { method: "POST", body: JSON.stringify(content), headers: { "content-type": "application/json" } };
  return (await answered(fetch(path, options))).json();
}

export async function sendBytes(path, fields, body) {
  return (await answered(fetch(address(path, fields), { method: "POST", body }))).json();
}
