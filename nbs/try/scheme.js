// Light or dark: as the visitor chose on the site, else as the system says. It's the one script
// that runs before the page is drawn, so that nothing flashes.
(() => {
  const key = `${new URL("..", location.href).pathname}.__palette`;
  const kept = () => {
    try {
      return JSON.parse(localStorage.getItem(key))?.color?.scheme;
    } catch {
      return null; // a browser that keeps nothing
    }
  };
  const dark = () => {
    const { scheme } = document.documentElement.dataset;
    return scheme ? scheme === "slate" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  if (kept()) document.documentElement.dataset.scheme = kept();

  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("scheme");
    const name = () => { button.textContent = dark() ? "Light colours" : "Dark colours"; };
    name();
    button.addEventListener("click", () => {
      const scheme = dark() ? "default" : "slate";
      document.documentElement.dataset.scheme = scheme;
      name();
      const color = { media: "", scheme, primary: "custom", accent: "custom" };
      try {
        localStorage.setItem(key, JSON.stringify({ index: scheme === "slate" ? 1 : 0, color }));
      } catch {
        // then it's for this page alone
      }
    });
  });
})();
