// Starts reveal.js, and makes each slide fill its frame: no line of code or table runs off the wall.
const FRAME = { width: 1280, height: 720 };
const SMALLEST = 0.45;
const LARGEST = 1.6; // of slides that hold nothing but a small table or a sentence

function fit(section) {
  section.style.zoom = 1;
  const wide = Math.max(...Array.from(section.querySelectorAll("*"), (one) => one.scrollWidth), 1);
  const largest = section.querySelector("pre, img, h1, h2, h3") ? 1 : LARGEST;
  const factor = Math.min(largest, FRAME.height / section.scrollHeight, FRAME.width / wide);
  section.style.zoom = Math.max(factor, SMALLEST);
}

Reveal.initialize({
  width: FRAME.width,
  height: FRAME.height,
  margin: 0.03,
  center: false,
  controls: true,
  progress: true,
  hash: true,
  transition: "none",
  slideNumber: "c/t",
  plugins: [RevealNotes],
}).then(() => {
  const fitCurrent = () => fit(Reveal.getCurrentSlide());
  fitCurrent();
  Reveal.on("slidechanged", fitCurrent);
  document.documentElement.dataset.ready = "yes";
});
