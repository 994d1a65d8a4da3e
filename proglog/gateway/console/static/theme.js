// Before the first paint: the choice of this browser, else that of the system.
(() => {
  try {
    const kept = localStorage.getItem("proglog.theme");
    if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
  } catch { /* a private window keeps nothing */ }
})();
