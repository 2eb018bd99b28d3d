// Computes beside the page, so that the page never stalls. A message names a task and its details;
// the answer has the same number. The weights come with the first message: nothing is fetched here.

import {
  LAYERS, channelMeans, forward, gradientsOf, normalise, readWeights, softmax,
} from "./network.js";
import { hide, occlude, randomNumbers, randomise } from "./trust.js";

let trained; // the weights of the file
let weights; // those in use: the same, or with some parts drawn anew
let image; // the one that was asked about last
let answers; // what the network said to it, with the weights in use and with those of the file
let stopped = 0; // the number of the last task that was to be stopped

/** What the page needs of an answer; the ways back stay here. */
function forPage({ logits, stages }) {
  const activations = LAYERS.map((layer) => [layer, stages[layer].activations]);
  return { probabilities: softmax(logits), logits, activations: Object.fromEntries(activations) };
}

/** The weights of the channels of all stages for one class. */
function explain(answer, label) {
  const gradients = gradientsOf(answer, label);
  const found = LAYERS.map((layer) =>
    [layer, channelMeans(answer.stages[layer].activations, gradients[layer])]);
  return Object.fromEntries(found);
}

const tasks = {
  /** Read the file of weights. */
  load({ buffer }) {
    trained = readWeights(buffer);
    weights = trained;
    return null;
  },

  /** What the network says to a picture, and what its stages put out. */
  answer({ pixels }) {
    image = normalise(pixels);
    const used = forward(weights, image);
    answers = { used, trained: weights === trained ? used : forward(trained, image) };
    return { used: forPage(answers.used), trained: forPage(answers.trained) };
  },

  /** The weights of the channels for one class. */
  explain({ label }) {
    const used = explain(answers.used, label);
    const same = answers.used === answers.trained;
    return { used, trained: same ? used : explain(answers.trained, label) };
  },

  /** The probabilities with a part of the picture hidden. */
  without({ mask }) {
    return softmax(forward(weights, hide(image, mask)).logits);
  },

  /** Draw some parts anew. If there are none, all is as it was trained. */
  randomise({ parts, seed }) {
    weights = parts.length ? randomise(trained, parts, randomNumbers(seed)) : trained;
    return null;
  },

  /** The occlusion map; tells how far it is, and lets other messages in between. */
  async occlude({ label }, number) {
    const passes = occlude(weights, image, label);
    let step = passes.next();
    for (; !step.done; step = passes.next()) {
      postMessage({ number, progress: step.value });
      await new Promise((resume) => { setTimeout(resume); });
      if (stopped >= number) return null;
    }
    return step.value;
  },

  /** Stop the tasks that were begun before this one. */
  stop(details, number) {
    stopped = number;
    return null;
  },
};

onmessage = async ({ data: { number, task, details } }) => {
  try {
    postMessage({ number, result: await tasks[task](details, number) });
  } catch (error) {
    postMessage({ number, error: String(error.message ?? error) });
  }
};
