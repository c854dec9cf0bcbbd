// Run before the book is printed: opens solutions, leaves out code that only words a sentence, and puts a table of contents on a page of its own.
(() => {
  for (const one of document.querySelectorAll(".tag_hide-input details")) one.remove();  // in the notebook, one click away
  for (const one of document.querySelectorAll("details")) one.open = true;
  for (const table of document.querySelectorAll("table")) {
    const box = table.getBoundingClientRect();
    const room = (document.body.getBoundingClientRect().right - box.left) / box.width;
    if (room < 1) table.style.zoom = room;  // what does not fit on the page gets smaller
  }
  const text = (heading) => heading.innerText.replace("¶", "").trim();
  const chapters = Array.from(document.querySelectorAll("h2")).filter((one) => /^\d\d · |^Teach/.test(text(one)));
  const contents = document.createElement("nav");
  contents.className = "book-contents";
  contents.append(Object.assign(document.createElement("p"), { textContent: "Contents" }));
  for (const chapter of chapters) {
    const section = chapter.closest("section");
    const link = Object.assign(document.createElement("a"), { href: `#${section.id}`, textContent: text(chapter) });
    const names = Array.from(section.querySelectorAll("h3"), text).join(" · ");
    contents.append(link, Object.assign(document.createElement("div"), { textContent: names }));
  }
  chapters[0].closest("section").before(contents);
})();
