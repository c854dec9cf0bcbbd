// The theme's download button opens the notebook in a tab; a reader wants the file.
document.addEventListener("DOMContentLoaded", () => {
    for (const link of document.querySelectorAll("a.btn-download-source-button")) {
        link.setAttribute("download", "");
        link.removeAttribute("target");
    }
});

// A field above a table shows the rows that hold all words typed.
document.addEventListener("DOMContentLoaded", () => {
    const field = document.querySelector("input.table-search");
    field?.addEventListener("input", () => {
        const words = field.value.toLowerCase().split(/\s+/);
        for (const row of document.querySelectorAll("table.searched tbody tr")) {
            row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
        }
    });
});
