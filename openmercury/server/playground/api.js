// The server's wire: requests, server-sent events, and errors as one sentence. Knows nothing of the page.

/** What the person is told: a sentence, and whether a key would help. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const UNREACHABLE = "The server cannot be reached: check that it is still running.";
const CUT = "The connection ended before the answer did: try again.";

/** Names of the models served, without their aliases (those with another `root`); the first one is the default. */
export async function models(key) {
  const response = await send("v1/models", { headers: headers(key) });
  const { data } = await response.json();
  return data.filter(({ id, root = id }) => root === id).map(({ id }) => id);
}

/**
 * POST `body` with stream: true; yields every chunk as an object.
 * Ends after `[DONE]`; throws ApiError, or the AbortError of `signal`.
 */
export async function* stream(path, body, { key, signal } = {}) {
  const response = await send(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers(key) },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message);
    yield chunk;
  }
  throw new ApiError(CUT);
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function send(path, options) {
  let response;
  try {
    response = await fetch(path, { credentials: "omit", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(UNREACHABLE);
  }
  if (!response.ok) throw new ApiError(await sentence(response), response.status);
  return response;
}

/** The message of an error answer, whoever wrote it. */
async function sentence(response) {
  try {
    const { error } = await response.json();
    if (typeof error.message === "string") return error.message;
  } catch {
    // A proxy's page, not our JSON: its status is all there is to tell.
  }
  return `The server answered with status ${response.status}: try again, or look at its log.`;
}

/** The `data` of each server-sent event; comments and other fields are skipped. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const lines = rest.split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) yield line.slice(5).trimStart();
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError(CUT);
  } finally {
    reader.cancel().catch(() => {});
  }
}
