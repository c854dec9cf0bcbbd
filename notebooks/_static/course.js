// The theme's download button opens the notebook in a tab; a reader wants the file.
document.addEventListener("DOMContentLoaded", () => {
    for (const link of document.querySelectorAll("a.btn-download-source-button")) {
        link.setAttribute("download", "");
        link.removeAttribute("target");
    }
});
