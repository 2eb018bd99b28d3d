// The ways to a picture: one of the twelve, a file, something dropped or pasted, the camera.

import { drawPhoto, drawPixels, drawThumbnail } from "./draw.js";
import { SIDE } from "./network.js";
import { fromDrawable, fromFile } from "./picture.js";

export const CLASS_NAMES = [
  "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
];
const OUR_CAT = 1219; // her number among the test images
const element = (id) => document.getElementById(id);
let take; // called with the picture: { name, pixels, label }, where a photo has no label

/** Say what went wrong, or nothing; the picture that is shown stays. */
export function complain(message = "") {
  element("trouble").textContent = message;
}

/** Show what the page did to a photo. */
function showPhoto(photo, name) {
  element("photo").hidden = !photo;
  if (!photo) return;
  const { width, height, square } = photo;
  drawPhoto(element("whole"), photo);
  element("whole").setAttribute("aria-label", `${name}, with a frame round its middle square`);
  drawPixels(element("small"), photo.pixels);
  element("small").setAttribute("aria-label", `${name} as ${SIDE} x ${SIDE} pixels`);
  const [from, each] = [square.side, (square.side / SIDE).toFixed(square.side % SIDE ? 1 : 0)];
  element("photo-words").textContent = from < SIDE
    ? `${name} has ${width} x ${height} pixels, fewer than the network needs. It gets the middle `
      + `square, ${from} x ${from}, with some pixels repeated.`
    : `${name} has ${width} x ${height} pixels. The network gets the middle square, `
      + `${from} x ${from}, shrunk to ${SIDE} x ${SIDE}: each new pixel is the mean of about `
      + `${each} x ${each}. All the rest is gone before it sees anything.`;
}

let chosen = 0; // pictures asked for; a file that takes long doesn't replace a later choice
/** Take a photo, drawn or decoded by `read`, unless that fails. */
async function takePhoto(name, read) {
  chosen += 1;
  const mine = chosen;
  try {
    const photo = await read();
    if (mine !== chosen) return;
    complain();
    press(null);
    showPhoto(photo, name);
    take({ name, pixels: photo.pixels, label: null });
  } catch (error) {
    if (mine === chosen) complain(error.message);
  }
}

/** Mark the button of the picture that is shown. */
function press(button) {
  for (const other of document.querySelectorAll("#twelve button")) {
    other.setAttribute("aria-pressed", other === button);
  }
}

/** A button for one of the twelve. */
function makeButton(pixels, { number, true: label, predicted }) {
  const [name, said] = [CLASS_NAMES[label], CLASS_NAMES[predicted]]; // true, and by the network
  const button = document.createElement("button");
  button.type = "button";
  const canvas = document.createElement("canvas");
  canvas.className = "pixels few";
  drawThumbnail(canvas, pixels);
  const [strong, small] = [document.createElement("strong"), document.createElement("span")];
  strong.textContent = number === OUR_CAT ? `our ${name}` : name;
  small.textContent = `says ${said}`;
  button.append(canvas, strong, small);
  button.addEventListener("click", () => {
    chosen += 1;
    complain();
    press(button);
    showPhoto(null);
    take({ name: `test image ${number}`, pixels, label });
  });
  return button;
}

/** Show the twelve, from one PNG in which they are side by side; returns the button of our cat. */
export async function fetchTwelve() {
  let ours;
  const fetched = await Promise.all(["pictures.json", "pictures.png"].map((name) => fetch(name)));
  const [told, strip] = [await fetched[0].json(), await createImageBitmap(await fetched[1].blob())];
  const canvas = new OffscreenCanvas(strip.width, strip.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(strip, 0, 0);
  for (const [n, picture] of told.entries()) {
    const { data } = context.getImageData(n * SIDE, 0, SIDE, SIDE);
    const pixels = new Uint8Array(data.filter((_, place) => place % 4 < 3)); // without opacity
    const button = makeButton(pixels, picture);
    const item = document.createElement("li");
    item.append(button);
    element("twelve").append(item);
    if (picture.number === OUR_CAT) ours = button;
  }
  return ours;
}

/** A picture among files that were dropped, pasted or chosen. */
function takeFirst(files, nothing) {
  const [file] = files;
  if (file) takePhoto(file.name || "your picture", () => fromFile(file));
  else complain(nothing);
}

/** Ask for the camera, and show what it sees until a picture is taken. */
async function openCamera() {
  const video = element("video");
  if (!navigator.mediaDevices?.getUserMedia) {
    complain("This browser lends no camera to this page. It needs one, and an address with https.");
    return;
  }
  try {
    const wanted = { video: { facingMode: "environment" }, audio: false };
    const stream = await navigator.mediaDevices.getUserMedia(wanted);
    for (const track of video.srcObject?.getTracks() ?? []) track.stop();
    video.srcObject = stream;
    await video.play();
    complain();
    element("live").hidden = false;
    element("shoot").focus();
  } catch (error) {
    const refused = error.name === "NotAllowedError";
    complain(refused ? "The camera wasn't allowed." : "There's no camera that this page can use.");
  }
}

function closeCamera() {
  for (const track of element("video").srcObject?.getTracks() ?? []) track.stop();
  element("video").srcObject = null;
  element("live").hidden = true;
  element("camera").focus();
}

/** Listen to all that may bring a picture, and hand it to `onPicture`. */
export function listen(onPicture) {
  take = onPicture;
  element("file").addEventListener("change", ({ target }) => {
    if (target.files.length) takeFirst(target.files);
    target.value = ""; // so that the same file can be chosen again
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    takeFirst(event.dataTransfer.files, "What you dropped isn't a file: save the picture first.");
  });
  addEventListener("paste", ({ clipboardData }) => {
    takeFirst(clipboardData.files, "There's no picture in the clipboard.");
  });
  element("camera").addEventListener("click", openCamera);
  element("close").addEventListener("click", closeCamera);
  element("shoot").addEventListener("click", () => {
    const video = element("video");
    const read = () => fromDrawable(video, video.videoWidth, video.videoHeight);
    takePhoto("Your picture", read).then(closeCamera);
  });
}
