// A click on a figure shows it as large as the window, but no smaller than it is; the next click or Escape closes it.
const dialog = document.body.appendChild(document.createElement("dialog"));
dialog.className = "enlarged";
dialog.onclick = () => dialog.close();
dialog.onkeydown = event => event.stopPropagation(); // Sphinx would keep Escape for itself
for (const figure of document.querySelectorAll("article img")) {
  figure.tabIndex = 0;
  figure.role = "button";
  figure.onclick = () => {
    const copy = figure.cloneNode();
    copy.width = Math.max(figure.naturalWidth, 0.96 * Math.min(innerWidth, innerHeight * figure.naturalWidth / figure.naturalHeight));
    dialog.replaceChildren(copy);
    dialog.showModal();
  };
  figure.onkeydown = event => event.key === "Enter" && figure.onclick();
}

// The player tells its height, because a page opened as a file may not look into it.
addEventListener("message", event => {
  for (const frame of document.querySelectorAll("iframe")) if (frame.contentWindow === event.source) frame.height = event.data.height;
});

// Excerpts of search results are fetched, which a page opened as a file may not do either.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
