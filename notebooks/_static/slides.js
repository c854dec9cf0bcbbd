// Starts reveal.js, and makes each slide fill its frame: no line of code or table runs off the wall.
const FRAME = { width: 1280, height: 720 };
const SMALLEST = 0.62; // a table of 36 rows, in 12; code stays above 0.7, by a test: what needs less is too much for one slide
const LARGEST = 1.6; // of slides that hold nothing but a small table or a sentence

async function fit(section) {
  const inside = Array.from(section.querySelectorAll("*"));
  const pictures = inside.filter((one) => one.tagName === "IMG").map((one) => one.decode().catch(() => {}));
  await Promise.all([document.fonts.ready, ...pictures]); // before, they have no size
  if (section !== Reveal.getCurrentSlide()) return; // left meanwhile
  section.style.zoom = 1;
  let factor = section.querySelector("pre, img, h1, h2, h3") ? 1 : LARGEST;
  const fits = () => {
    section.style.width = `${FRAME.width / factor}px`; // what gets smaller has more room, and wraps less
    const wide = Math.max(...inside.map((one) => one.scrollWidth), 1);
    return section.scrollHeight * factor <= FRAME.height && (wide - 1) * factor <= FRAME.width;
  };
  while (!fits() && factor > SMALLEST) factor = Math.max(factor - 0.03, SMALLEST);
  section.style.width = "";
  section.style.zoom = factor;
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
  const fitCurrent = () => {
    window.fitted = fit(Reveal.getCurrentSlide());
  };
  fitCurrent();
  Reveal.on("slidechanged", fitCurrent);
  document.documentElement.dataset.ready = "yes";
});
