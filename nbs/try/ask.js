// The page's side of the worker: asks for a task, and promises its result.

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const waiting = new Map(); // who waits for an answer, by the number of the question
let asked = 0;

worker.addEventListener("message", ({ data: { number, progress, result, error } }) => {
  const { resolve, reject, onProgress } = waiting.get(number);
  if (progress) {
    onProgress(progress);
    return;
  }
  waiting.delete(number);
  if (error) reject(new Error(error));
  else resolve(result);
});

worker.addEventListener("error", () => { // its modules couldn't be loaded
  for (const { reject } of waiting.values()) reject(new Error("the network couldn't be started"));
});

/** The result of a task of worker.js; what's in `transfer` is handed over, and not copied. */
export function ask(task, details = {}, { onProgress, transfer = [] } = {}) {
  asked += 1;
  const number = asked;
  return new Promise((resolve, reject) => {
    waiting.set(number, { resolve, reject, onProgress });
    worker.postMessage({ number, task, details }, transfer);
  });
}
