// What the page asks of the server. A refusal becomes an Error with the server's words.

export async function get(path) {
  return answerOf(await fetch(path));
}

export async function post(path, body, signal) {
  return answerOf(await send(path, body, signal));
}

/** Lines of JSON, each as soon as it is there. */
export async function* stream(path, body, signal) {
  const response = await send(path, body, signal);
  if (!response.ok) await answerOf(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

function send(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

async function answerOf(response) {
  const text = await response.text();
  if (response.ok) return JSON.parse(text);
  let answer = { error: `the server answers ${response.status}`, hint: text.slice(0, 200) };
  try {
    answer = JSON.parse(text);
  } catch {
    // not from vqgpt: uvicorn, or a proxy
  }
  throw new Error(`${answer.error}; ${answer.hint}`);
}
