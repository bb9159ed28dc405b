// Start the page. A browser loads neither modules nor WebAssembly from a file, so that it needs a server.
if (location.protocol === "file:") {
  const status = document.getElementById("status");
  status.classList.add("problem");
  status.textContent = "Browsers do not load this page from a file. Serve its folder: python -m http.server 8000";
} else {
  import("./app.mjs");
}
